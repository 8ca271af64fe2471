import { execFileSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { VhostPciError } from '../../../src/util/errors.js';
import { PeerWindow } from '../../../src/vhost-pci/device/window.js';
import { Scope } from '../../support/scope.js';
import { openFds } from './rig.js';

let scope: Scope;
let folder: string;
let fds: number;
let mappings: number;
beforeEach(() => {
  fds = openFds();
  mappings = native.mappingCount();
  scope = new Scope();
  folder = scope.folder();
});
afterEach(async (context) => {
  await scope.end(context);
  expect([openFds(), native.mappingCount()]).toEqual([fds, mappings]);
});

const file = (): string => join(folder, 'memory');

function create(path: string, size: number): PeerWindow {
  const window = PeerWindow.create(path, size);
  scope.defer(() => window[Symbol.dispose]());
  return window;
}

function refusal(path: string, size: number): string {
  try {
    create(path, size);
  } catch (error) {
    expect(error).toBeInstanceOf(VhostPciError);
    expect((error as VhostPciError).scope).toBe('usage');
    expect((error as VhostPciError).message).not.toContain('\n');
    return (error as VhostPciError).message;
  }
  throw new Error(`${path} with ${size} bytes was taken`);
}

describe('the window', () => {
  it('makes the file, for its owner alone, and shows it in a BAR of the next power of two', () => {
    for (const [i, [size, bar]] of [
      [4096, 4096],
      [3 * 4096, 4 * 4096],
      [64 << 20, 64 << 20],
      [(64 << 20) + 4096, 128 << 20],
      [3 * 2 ** 30, 4 * 2 ** 30],
      [2 ** 40 + 4096, 2 ** 41],
    ].entries() as IterableIterator<[number, [number, number]]>) {
      const path = join(folder, String(i));
      const window = create(path, size);
      expect([window.size, window.barSize]).toEqual([size, bar]);
      expect(statSync(path)).toMatchObject({ size });
      expect(statSync(path).mode & 0o777).toBe(0o600);
    }
  });

  it('takes a file up again as it was left, grows a smaller one, and never shrinks one', () => {
    create(file(), 8192).mapping.write(5000, Buffer.from('kept'));
    create(file(), 8192);
    create(file(), 16384);
    expect(readFileSync(file()).subarray(5000, 5004).toString()).toBe('kept');
    expect(refusal(file(), 8192)).toMatch(
      /has 16384 bytes, more than --peer-memory-size 8192: remove it, or/,
    );
    expect(statSync(file()).size).toBe(16384);
  });

  it('refuses what cannot be the memory of a peer', () => {
    expect(refusal(file(), 4097)).toMatch(/give a multiple of 4096/);
    expect(refusal(folder, 4096)).toMatch(/EISDIR/);
    expect(refusal(join(folder, 'no', 'such'), 4096)).toMatch(/ENOENT/);
    expect(refusal('/dev/null', 4096)).toMatch(/not a regular file/);
    symlinkSync(join(folder, 'no', 'such'), join(folder, 'dangling'));
    expect(refusal(join(folder, 'dangling'), 4096)).toMatch(/ENOENT/);
    writeFileSync(join(folder, 'text'), 'x'.repeat(5000));
    expect(refusal(join(folder, 'text'), 4096)).toMatch(/5000 bytes/);
    mkdirSync(join(folder, 'sub'));
  });

  it('leaves nothing behind that it made, and what was there as it was, when the file may not grow', () => {
    writeFileSync(join(folder, 'small'), 'precious');
    symlinkSync(join(folder, 'target'), join(folder, 'link'));
    // RLIMIT_FSIZE of this process; what exceeds it is told by SIGXFSZ first.
    const limit = (bytes: string): unknown =>
      execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${bytes}:`]);
    const before = execFileSync('prlimit', [
      '--pid',
      String(process.pid),
      '--fsize',
      '-o',
      'SOFT',
      '--noheadings',
    ]);
    limit('65536');
    try {
      for (const name of ['new', 'link', 'small'])
        expect(refusal(join(folder, name), 1 << 20)).toMatch(
          /a file of 1048576 bytes is more than .* takes: give a smaller --peer-memory-size, .* "ulimit -f"$/,
        );
    } finally {
      limit(before.toString().trim());
    }
    expect(readdirSync(folder).sort()).toEqual(['link', 'small']);
    expect(readFileSync(join(folder, 'small'), 'utf8')).toBe('precious');
    expect(process.listenerCount('SIGXFSZ')).toBe(0);
    create(join(folder, 'new'), 1 << 20);
  });

  it('takes a memfd by its path in /proc, as a link to it', () => {
    const memfd = native.memfdCreate('memory', 8192);
    scope.defer(() => closeSync(memfd));
    symlinkSync(`/proc/self/fd/${memfd}`, join(folder, 'link'));
    for (const path of [`/proc/self/fd/${memfd}`, join(folder, 'link')]) {
      const window = create(path, 8192);
      const same = PeerWindow.adopt(memfd);
      scope.defer(() => same[Symbol.dispose]());
      expect(window.is(same.identity)).toBe(true);
    }
    const other = native.memfdCreate('memory', 8192);
    scope.defer(() => closeSync(other));
    const elsewhere = PeerWindow.adopt(other);
    scope.defer(() => elsewhere[Symbol.dispose]());
    expect(create(`/proc/self/fd/${memfd}`, 8192).is(elsewhere.identity)).toBe(false);
  });

  it('survives a file that is shrunk by somebody else: the access fails', () => {
    const memfd = native.memfdCreate('memory', 8192);
    const window = PeerWindow.adopt(memfd);
    scope.defer(() => window[Symbol.dispose]());
    window.mapping.write(4096, Buffer.from('x'));
    ftruncateSync(memfd, 0);
    for (let again = 0; again < 3; again++)
      expect(() => window.mapping.read(4096, 1)).toThrow(expect.objectContaining({ code: 'EFAULT' }));
    // For the next peer, whose QEMU made it whole again.
    ftruncateSync(memfd, 8192);
    closeSync(memfd);
    expect(window.mapping.read(4096, 1)).toEqual(Buffer.alloc(1));
    window.mapping.write(4096, Buffer.from('y'));
    expect(window.mapping.read(4096, 1).toString()).toBe('y');
  });
});
