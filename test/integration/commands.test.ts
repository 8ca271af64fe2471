/** The commands as a user meets them: help, mistakes told in one line with exit status 2, and the back-end conventions. */
import { closeSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../src/sys/native.js';
import { FrontEnd } from '../../src/vhost-user/front-end.js';
import { type Child, vhostPci } from '../support/process.js';
import { Scope, sleep, until } from '../support/scope.js';

let scope: Scope;
let folder: string;
beforeEach(() => {
  scope = new Scope();
  folder = scope.folder();
});
afterEach((context) => scope.end(context));

const LIMIT = { timeout: 60_000 };

async function ended(args: readonly string[], fds: readonly number[] = []): Promise<Child> {
  const child = vhostPci(scope, args, { fds });
  const exit = await Promise.race([child.exited, sleep(15_000)]);
  if (!exit) throw new Error(`vhost-pci ${args.join(' ')} goes on${child.tail()}`);
  return child;
}

describe('a mistake', () => {
  it('is told in one line, with exit status 2', LIMIT, async () => {
    writeFileSync(join(folder, 'file'), 'x');
    for (const [line, words] of [
      ['nonsense', /unknown command "nonsense"; the commands are device, net/],
      ['constructor', /unknown command/],
      ['device --vfio-user @/b', /--socket-path or --fd is missing/],
      ['device --fd 77 --vfio-user @/b', /not open; the parent process has to hand it down/],
      ['net vfio-user:@/b --cpu 4095', /CPU 4095 cannot run a worker/],
      ['net vfio-user:@/file', /is not a socket/],
      ['net vfio-user:@/file/socket', /ENOTDIR/],
      ['device --socket-path @/a --vfio-user @/nowhere/b', /cannot listen on .*nowhere\/b/],
    ] as const) {
      const child = await ended(line.split(' ').map((word) => word.replaceAll('@', folder)));
      expect(child.exit, `vhost-pci ${line}${child.tail()}`).toEqual({ code: 2, signal: null });
      expect(child.stdout).toEqual([]);
      expect(child.stderr).toEqual([expect.stringMatching(words)]);
      expect(child.stderr[0]).toMatch(/^vhost-pci: /);
    }
    const bare = await ended([]);
    expect([bare.exit?.code, bare.stdout.length]).toEqual([2, 0]);
    expect(bare.stderr).toEqual([expect.stringMatching(/^vhost-pci: COMMAND is missing: device, net, /)]);
  });
});

describe('help', () => {
  it('is on stdout, in lines that fit a terminal', LIMIT, async () => {
    for (const args of [
      ['--help'],
      ['help'],
      ['device', '--help'],
      ['net', '-h'],
      ['backend-json', '--help'],
    ]) {
      const child = await ended(args);
      expect([child.exit?.code, child.stderr]).toEqual([0, []]);
      expect(child.stdout[0]).toMatch(/^Usage: vhost-pci/);
      expect(Math.max(...child.stdout.map((l) => l.length))).toBeLessThanOrEqual(120);
    }
  });
});

describe('the conventions for back-end programs', () => {
  it('--print-capabilities is JSON, whatever else is there', LIMIT, async () => {
    for (const more of [[], ['--nonsense'], ['--socket-path', '/no/such/path']]) {
      const child = await ended(['device', '--print-capabilities', ...more]);
      expect([child.exit?.code, child.stderr]).toEqual([0, []]);
      expect(JSON.parse(child.stdout.join('\n'))).toEqual({ type: 'net' });
    }
  });

  it('backend-json describes the program', LIMIT, async () => {
    const child = await ended(['backend-json', '/usr/libexec/vhost-pci-device']);
    expect(child.exit?.code).toBe(0);
    expect(JSON.parse(child.stdout.join('\n'))).toMatchObject({
      type: 'net',
      binary: '/usr/libexec/vhost-pci-device',
      description: expect.any(String),
    });
  });

  it('--fd serves an inherited connection, and ends with it', LIMIT, async () => {
    const [ours, theirs] = native.unixPair();
    const frontEnd = new FrontEnd(ours);
    scope.defer(() => frontEnd.close());
    const child = vhostPci(scope, ['device', '--fd', '3', '--vfio-user', join(folder, 'b')], {
      fds: [theirs],
    });
    closeSync(theirs);
    const { features } = await frontEnd.negotiate(2n ** 64n - 1n, 0xffffn);
    expect(features & (1n << 32n)).not.toBe(0n);
    frontEnd.close();
    expect(await child.exited).toEqual({ code: 0, signal: null });
  });

  it('--fd that is no socket is refused', LIMIT, async () => {
    const fd = native.memfdCreate('no-socket', 4096);
    const child = await ended(['device', '--fd', '3', '--vfio-user', join(folder, 'b')], [fd]);
    closeSync(fd);
    expect(child.exit?.code).toBe(2);
    expect(child.stderr[0]).toMatch(/--fd 3: not a socket; the parent process has to hand down/);
  });
});

describe('output that nobody reads', () => {
  it('ends the driver in order', LIMIT, async () => {
    const net = vhostPci(scope, ['net', `vfio-user:${folder}/b`, '--json', '--stats', '1']);
    await net.line(/waiting for a device process/, 10_000, 'stderr');
    net.closeStdout();
    await until('its end', 5000, () => net.exit);
    expect(net.exit).toEqual({ code: 0, signal: null });
    expect(net.stderr.filter((line) => /Error|at /.test(line))).toEqual([]);
  });
});
