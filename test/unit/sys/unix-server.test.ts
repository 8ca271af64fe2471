import { closeSync, existsSync, mkdtempSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { UnixServer } from '../../../src/sys/unix-server.js';
import { shortTmp } from '../../support/scope.js';

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(shortTmp(), 'vp-'));
  path = join(folder, 's');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const inUse = expect.objectContaining({
  scope: 'usage',
  message: expect.stringMatching(/another process serves it/),
});

describe('a path that exists', () => {
  it('is taken over when nobody listens there, and only then', () => {
    closeSync(native.unixListen(path, 1));
    expect(existsSync(path)).toBe(true);
    using server = new UnixServer(path, closeSync);
    expect(() => new UnixServer(path, closeSync)).toThrow(inUse);
    expect(existsSync(server.path)).toBe(true);
  });

  it('is left to a server that is too busy to accept', () => {
    const listener = native.unixListen(path, 1);
    const clients: number[] = [];
    try {
      for (;;) clients.push(native.unixConnect(path));
    } catch (error) {
      expect(error).toMatchObject({ code: 'EAGAIN' });
    }
    expect(() => new UnixServer(path, closeSync)).toThrow(inUse);
    expect(existsSync(path)).toBe(true);
    for (const fd of [...clients, listener]) closeSync(fd);
  });

  it('is left alone when it is something else', () => {
    writeFileSync(path, 'precious');
    expect(() => new UnixServer(path, closeSync)).toThrow(/is not a socket/);
    expect(existsSync(path)).toBe(true);
  });
});

describe('a socket', () => {
  it('is removed at the end, but not when another process has taken its path', () => {
    const first = new UnixServer(path, closeSync);
    unlinkSync(path);
    const second = new UnixServer(path, closeSync);
    first.close();
    expect(existsSync(path)).toBe(true);
    second.close();
    expect(existsSync(path)).toBe(false);
  });

  it('in a folder that is not there is refused in words', () => {
    expect(() => new UnixServer(join(folder, 'no', 's'), closeSync)).toThrow(
      /folder .* is not there; make it first/,
    );
  });
});
