import { closeSync, fstatSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { shortTmp } from '../../support/scope.js';
import { errorOf, openFds } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(shortTmp(), 'vp-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('listening and connecting', () => {
  it('carry bytes both ways and end', () => {
    const before = openFds();
    const path = join(folder, 's');
    const listener = native.unixListen(path, 4);
    expect(native.unixAccept(listener)).toBeUndefined();
    const client = native.unixConnect(path);
    const server = native.unixAccept(listener)!;
    expect(native.receiveMessage(server, 100)).toBeUndefined();
    expect(native.sendMessage(client, Buffer.from('to the server'), [])).toBe(13);
    expect(native.receiveMessage(server, 100)).toMatchObject({ fds: [], truncated: false });
    native.sendMessage(server, Buffer.from('to the client'), []);
    expect(native.receiveMessage(client, 6)!.data.toString()).toBe('to the');
    expect(native.receiveMessage(client, 100)!.data.toString()).toBe(' client');
    closeSync(client);
    expect(native.receiveMessage(server, 100)!.data.length).toBe(0);
    expect(errorOf(() => native.sendMessage(server, Buffer.from('x'), [])).code).toBe('EPIPE');
    closeSync(server);
    closeSync(listener);
    expect(openFds()).toBe(before);
  });

  it('fail with a code and leave no descriptor', () => {
    const before = openFds();
    const path = join(folder, 's');
    expect(errorOf(() => native.unixConnect(path))).toMatchObject({ code: 'ENOENT', syscall: 'connect' });
    const listener = native.unixListen(path, 1);
    expect(errorOf(() => native.unixListen(path, 1))).toMatchObject({ code: 'EADDRINUSE', syscall: 'bind' });
    closeSync(listener);
    expect(errorOf(() => native.unixConnect(path)).code).toBe('ECONNREFUSED');
    expect(() => native.unixListen(join(folder, 'x'.repeat(108)), 1)).toThrow(RangeError);
    expect(() => native.unixListen('', 1)).toThrow(RangeError);
    expect(() => native.unixListen(bad(1), 1)).toThrow(TypeError);
    expect(() => native.unixListen(join(folder, 't'), -1)).toThrow(RangeError);
    expect(errorOf(() => native.unixAccept(0)).syscall).toBe('accept');
    expect(openFds()).toBe(before);
  });
});

describe('messages', () => {
  it('carry descriptors with the first byte, close-on-exec', () => {
    const [a, b] = native.unixPair();
    const given = [native.memfdCreate('one', 4096), native.eventfd()];
    expect(native.sendMessage(a, Buffer.from('abcd'), given)).toBe(4);
    const got = native.receiveMessage(b, 2)!;
    expect(got.data.toString()).toBe('ab');
    expect(got.fds).toHaveLength(2);
    expect(got.truncated).toBe(false);
    expect(fstatSync(got.fds[0]!).ino).toBe(fstatSync(given[0]!).ino);
    for (const fd of got.fds) {
      const flags = /flags:\s*(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!;
      expect(Number.parseInt(flags, 8) & 0o2000000).not.toBe(0);
    }
    expect(native.receiveMessage(b, 2)!.fds).toEqual([]);
    for (const fd of [...got.fds, ...given, a, b]) closeSync(fd);
  });

  it('take 16 descriptors and no more', () => {
    const before = openFds();
    const [a, b] = native.unixPair();
    const fd = native.eventfd();
    native.sendMessage(a, Buffer.from('x'), new Array(16).fill(fd));
    const got = native.receiveMessage(b, 10)!;
    expect(got.fds).toHaveLength(16);
    expect(() => native.sendMessage(a, Buffer.from('x'), new Array(17).fill(fd))).toThrow(RangeError);
    for (const open of [...got.fds, fd, a, b]) closeSync(open);
    expect(openFds()).toBe(before);
  });

  it('tell a full socket from a sent message', () => {
    const [a, b] = native.unixPair();
    const block = Buffer.alloc(1 << 16);
    let sent = 0;
    for (;;) {
      const n = native.sendMessage(a, block, []);
      if (n < 0) break;
      sent += n;
    }
    expect(sent).toBeGreaterThan(0);
    let received = 0;
    for (;;) {
      const message = native.receiveMessage(b, 1 << 20);
      if (!message) break;
      received += message.data.length;
    }
    expect(received).toBe(sent);
    closeSync(a);
    closeSync(b);
  });

  it('check every argument', () => {
    const [a, b] = native.unixPair();
    expect(() => native.sendMessage(a, bad('text'), [])).toThrow(TypeError);
    expect(() => native.sendMessage(a, Buffer.alloc(0), [])).toThrow(RangeError);
    expect(() => native.sendMessage(a, Buffer.from('x'), bad(3))).toThrow(TypeError);
    expect(() => native.sendMessage(a, Buffer.from('x'), [bad('3')])).toThrow(TypeError);
    expect(() => native.sendMessage(a, Buffer.from('x'), [-1])).toThrow(RangeError);
    expect(errorOf(() => native.sendMessage(a, Buffer.from('x'), [99_999])).code).toBe('EBADF');
    expect(() => native.receiveMessage(b, 0)).toThrow(RangeError);
    expect(() => native.receiveMessage(b, 2 ** 40)).toThrow(RangeError);
    expect(native.receiveMessage(b, 10)).toBeUndefined();
    closeSync(a);
    closeSync(b);
    expect(errorOf(() => native.receiveMessage(99_999, 10))).toMatchObject({
      code: 'EBADF',
      syscall: 'recvmsg',
    });
  });
});
