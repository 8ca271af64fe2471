import { closeSync, constants, openSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { sleep, until } from '../../support/scope.js';
import { errorOf, openFds } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;

describe('watch', () => {
  it('calls back while an fd is readable, until it is stopped', async () => {
    const before = openFds();
    const fd = native.eventfd();
    let calls = 0;
    const watcher = native.watch(fd, (readable, writable) => {
      expect([readable, writable]).toEqual([true, false]);
      native.eventfdTake(fd);
      calls++;
    });
    native.eventfdSignal(fd);
    await until('the first call', 1000, () => calls === 1);
    native.eventfdSignal(fd);
    await until('the second call', 1000, () => calls === 2);
    watcher.stop();
    watcher.stop();
    native.eventfdSignal(fd);
    await sleep(20);
    expect(calls).toBe(2);
    closeSync(fd);
    await sleep(1);
    expect(openFds()).toBe(before);
  });

  it('waits for what set() names', async () => {
    const [a, b] = native.unixPair();
    const seen: string[] = [];
    const watcher = native.watch(a, (readable, writable) => {
      seen.push(`${readable ? 'r' : ''}${writable ? 'w' : ''}`);
      watcher.set({ readable: false, writable: false });
    });
    watcher.set({ writable: true });
    await until('a call', 1000, () => seen.length === 1);
    native.sendMessage(b, Buffer.from('x'), []);
    await sleep(20);
    expect(seen).toEqual(['w']);
    watcher.set({ readable: true });
    await until('a call', 1000, () => seen.length === 2);
    expect(seen).toEqual(['w', 'r']);
    watcher.stop();
    watcher.set({ readable: true });
    closeSync(a);
    closeSync(b);
  });

  it('tells of the other end that went away', async () => {
    const [a, b] = native.unixPair();
    let ended = false;
    const watcher = native.watch(a, () => {
      ended = native.receiveMessage(a, 10)?.data.length === 0;
      watcher.stop();
    });
    closeSync(b);
    await until('the end', 1000, () => ended);
    closeSync(a);
  });

  it('survives an fd that is closed while watched', async () => {
    const fd = native.eventfd();
    const watcher = native.watch(fd, () => {});
    closeSync(fd);
    watcher.set({ readable: true, writable: true });
    await sleep(10);
    watcher.stop();
  });

  it('lets several watchers have one fd', async () => {
    const fd = native.eventfd();
    const called = new Set<number>();
    const watchers = [1, 2].map((n) => native.watch(fd, () => called.add(n)));
    native.eventfdSignal(fd);
    await until('both', 1000, () => called.size === 2);
    for (const watcher of watchers) watcher.stop();
    closeSync(fd);
  });

  it('refuses what cannot be watched', () => {
    const before = openFds();
    expect(errorOf(() => native.watch(99_999, () => {})).code).toBe('EBADF');
    const file = openSync('/proc/self/exe', constants.O_RDONLY);
    expect(errorOf(() => native.watch(file, () => {})).code).toBe('EPERM');
    closeSync(file);
    expect(() => native.watch(0, bad('no function'))).toThrow(TypeError);
    expect(openFds()).toBe(before);
  });
});
