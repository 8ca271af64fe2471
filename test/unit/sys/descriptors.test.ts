import { closeSync, constants, fstatSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { errorOf, openFds } from './helpers.js';

/** A bad argument has to reach the checks, not the compiler. */
const bad = <T>(value: unknown): T => value as T;

const closeOnExec = (fd: number): boolean => {
  const flags = /flags:\s*(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!;
  return (Number.parseInt(flags, 8) & 0o2000000) !== 0;
};

describe('memfdCreate', () => {
  it('makes a close-on-exec file of the given size', () => {
    const fd = native.memfdCreate('vpci-test', 12345);
    expect(fstatSync(fd).size).toBe(12345);
    expect(closeOnExec(fd)).toBe(true);
    closeSync(fd);
  });

  it('seals the file against shrinking when asked to', () => {
    const sealed = native.memfdCreate('sealed', 4096, true);
    expect(errorOf(() => ftruncateSync(sealed, 0)).code).toBe('EPERM');
    ftruncateSync(sealed, 8192);
    closeSync(sealed);
    const open = native.memfdCreate('open', 4096);
    ftruncateSync(open, 0);
    closeSync(open);
  });

  it('refuses wrong names and sizes before it makes anything', () => {
    const before = openFds();
    expect(() => native.memfdCreate(bad(7), 4096)).toThrow(TypeError);
    expect(() => native.memfdCreate('x'.repeat(250), 4096)).toThrow(RangeError);
    expect(() => native.memfdCreate('a\0b', 4096)).toThrow(RangeError);
    for (const size of [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53])
      expect(() => native.memfdCreate('x', size)).toThrow(RangeError);
    expect(() => native.memfdCreate('x', bad(4096n))).toThrow(TypeError);
    expect(() => native.memfdCreate('x', 4096, bad('yes'))).toThrow(TypeError);
    expect(openFds()).toBe(before);
  });
});

describe('eventfds', () => {
  it('count signals until they are taken', () => {
    const fd = native.eventfd();
    expect(closeOnExec(fd)).toBe(true);
    expect(native.eventfdTake(fd)).toBe(0);
    expect(native.eventfdSignal(fd)).toBe(true);
    expect(native.eventfdSignal(fd)).toBe(true);
    expect(native.eventfdTake(fd)).toBe(2);
    expect(native.eventfdTake(fd)).toBe(0);
    closeSync(fd);
  });

  it('take a full counter for signalled, also when the fd would block', () => {
    const fd = native.eventfd();
    const full = Buffer.alloc(8);
    full.writeBigUInt64LE(0xffff_ffff_ffff_fffen);
    writeSync(fd, full);
    expect(native.eventfdSignal(fd)).toBe(true);
    closeSync(fd);
  });

  it('say so when an fd is none, or closed', () => {
    const file = openSync('/proc/self/stat', constants.O_RDONLY);
    expect(native.eventfdSignal(file)).toBe(false);
    closeSync(file);
    const fd = native.eventfd();
    closeSync(fd);
    expect(native.eventfdSignal(fd)).toBe(false);
    expect(errorOf(() => native.eventfdTake(fd)).code).toBe('EBADF');
    expect(() => native.eventfdSignal(-1)).toThrow(RangeError);
    expect(() => native.eventfdTake(bad('3'))).toThrow(TypeError);
  });
});

describe('dup', () => {
  it('gives a close-on-exec duplicate', () => {
    const fd = native.eventfd();
    const copy = native.dup(fd);
    native.eventfdSignal(fd);
    closeSync(fd);
    expect(native.eventfdTake(copy)).toBe(1);
    expect(closeOnExec(copy)).toBe(true);
    closeSync(copy);
  });

  it('fails with the code of the system call', () => {
    const error = errorOf(() => native.dup(99_999));
    expect(error).toMatchObject({ code: 'EBADF', syscall: 'dup' });
  });
});
