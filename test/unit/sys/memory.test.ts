import { closeSync, ftruncateSync, readSync, writeSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Mapping, native } from '../../../src/sys/native.js';
import { errorOf, openFds } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;
const PAGE = 4096;

let fd: number;
let mapping: Mapping;
beforeEach(() => {
  fd = native.memfdCreate('memory', 4 * PAGE);
  mapping = new native.Mapping(fd, 0, 4 * PAGE, true);
});
afterEach(() => {
  mapping.close();
  closeSync(fd);
});

describe('Mapping', () => {
  it('reads and writes what the file has', () => {
    expect(mapping.size).toBe(4 * PAGE);
    expect(mapping.address % BigInt(PAGE)).toBe(0n);
    mapping.write(100, Buffer.from('from the mapping'));
    const back = Buffer.alloc(16);
    readSync(fd, back, 0, 16, 100);
    expect(back.toString()).toBe('from the mapping');
    writeSync(fd, Buffer.from('file'), 0, 4, 100);
    expect(mapping.read(100, 16).toString()).toBe('file the mapping');
    expect(mapping.read(4 * PAGE, 0)).toHaveLength(0);
  });

  it('maps from an offset, and counts', () => {
    const before = native.mappingCount();
    const second = new native.Mapping(fd, PAGE, PAGE, false);
    expect(native.mappingCount()).toBe(before + 1);
    mapping.write(PAGE + 5, Buffer.from([7]));
    expect(second.read(5, 1)[0]).toBe(7);
    expect(errorOf(() => second.write(0, Buffer.from([1]))).code).toBe('EACCES');
    expect(errorOf(() => second.store32(0, 1)).code).toBe('EACCES');
    second.close();
    expect(native.mappingCount()).toBe(before);
  });

  it('has atomic accesses of aligned words', () => {
    mapping.write(8, Buffer.from([0x78, 0x56, 0x34, 0x12]));
    expect(mapping.load32(8)).toBe(0x12345678);
    expect(mapping.load16(8)).toBe(0x5678);
    mapping.store32(8, 0xffff_ffff);
    expect(mapping.exchange32(8, 5)).toBe(0xffff_ffff);
    expect(mapping.load32(8)).toBe(5);
    expect(() => mapping.load32(2)).toThrow(RangeError);
    expect(() => mapping.load16(1)).toThrow(RangeError);
    expect(() => mapping.load32(4 * PAGE - 2)).toThrow(RangeError);
    expect(() => mapping.store32(0, 2 ** 32)).toThrow(RangeError);
  });

  it('lets nothing outside be reached', () => {
    fc.assert(
      fc.property(fc.maxSafeInteger(), fc.maxSafeInteger(), (offset, length) => {
        const inside = offset >= 0 && length >= 0 && offset + length <= mapping.size;
        if (inside) expect(mapping.read(offset, length)).toHaveLength(length);
        else expect(() => mapping.read(offset, length)).toThrow(RangeError);
      }),
    );
    expect(() => mapping.write(4 * PAGE - 1, Buffer.alloc(2))).toThrow(RangeError);
    expect(() => mapping.write(0, bad([1, 2]))).toThrow(TypeError);
    expect(() => mapping.read(bad('0'), 1)).toThrow(TypeError);
  });

  it('turns a file that shrank into an error, and stays faulted', () => {
    ftruncateSync(fd, PAGE);
    expect(mapping.read(0, PAGE)).toHaveLength(PAGE);
    expect(mapping.faulted).toBe(false);
    expect(errorOf(() => mapping.read(PAGE, 1)).code).toBe('EFAULT');
    expect(mapping.faulted).toBe(true);
    expect(errorOf(() => mapping.write(0, Buffer.from([1]))).code).toBe('EFAULT');
    expect(errorOf(() => mapping.load32(0)).code).toBe('EFAULT');
  });

  it('throws EBADF once it is closed', () => {
    mapping.close();
    mapping.close();
    expect(errorOf(() => mapping.read(0, 1)).code).toBe('EBADF');
    expect(errorOf(() => mapping.size).code).toBe('EBADF');
  });

  it('cannot be made of nothing', () => {
    const before = [openFds(), native.mappingCount()];
    expect(errorOf(() => new native.Mapping(99_999, 0, PAGE, true))).toMatchObject({
      code: 'EBADF',
      syscall: 'mmap',
    });
    expect(errorOf(() => new native.Mapping(fd, 1, PAGE, true)).code).toBe('EINVAL');
    expect(() => new native.Mapping(fd, 0, 0, true)).toThrow(RangeError);
    expect(() => new native.Mapping(fd, -PAGE, PAGE, true)).toThrow(RangeError);
    expect(() => new native.Mapping(fd, 0, PAGE, bad(1))).toThrow(TypeError);
    expect(() => bad<(fd: number) => unknown>(native.Mapping)(fd)).toThrow(TypeError);
    expect([openFds(), native.mappingCount()]).toEqual(before);
  });
});

describe('RegionTable', () => {
  const table = () =>
    new native.RegionTable([
      { address: 0x10_0000n, size: PAGE, mapping, offset: PAGE },
      { address: 0x10_1000n, size: PAGE, mapping, offset: 0 },
      { address: 0xffff_ffff_ffff_f000n, size: PAGE, mapping, offset: 3 * PAGE },
    ]);

  it('translates, also across regions that meet', () => {
    const regions = table();
    expect(regions.regions).toBe(3);
    regions.write(0x10_0ffen, Buffer.from('abcd'));
    expect(regions.read(0x10_0ffen, 4).toString()).toBe('abcd');
    expect(mapping.read(2 * PAGE - 2, 2).toString()).toBe('ab');
    expect(mapping.read(0, 2).toString()).toBe('cd');
    regions.write(0xffff_ffff_ffff_ffffn, Buffer.from('z'));
    expect(mapping.read(4 * PAGE - 1, 1).toString()).toBe('z');
  });

  it('throws EFAULT for addresses in no region, and copies nothing', () => {
    const regions = table();
    const image = mapping.read(0, 4 * PAGE);
    for (const [address, length] of [
      [0n, 1],
      [0xf_ffffn, 2],
      [0x10_1fffn, 2],
      [0x10_0000n, 2 * PAGE + 1],
      [0xffff_ffff_ffff_ffffn, 2],
      [0xffff_ffff_ffff_f000n, Number.MAX_SAFE_INTEGER],
    ] as const) {
      expect(errorOf(() => regions.read(address, length)).code).toBe('EFAULT');
      if (length < 10 * PAGE)
        expect(errorOf(() => regions.write(address, Buffer.alloc(length, 1))).code).toBe('EFAULT');
    }
    expect(mapping.read(0, 4 * PAGE).equals(image)).toBe(true);
    expect(() => regions.read(bad(0), 1)).toThrow(TypeError);
    expect(() => regions.read(-1n, 1)).toThrow(RangeError);
    expect(() => regions.read(1n << 64n, 1)).toThrow(RangeError);
  });

  it('refuses regions that are empty, wrap, overlap or leave their mapping', () => {
    const region = (address: bigint, size: number, offset = 0) => ({ address, size, mapping, offset });
    for (const regions of [
      [region(0n, 0)],
      [region(0n, 5 * PAGE)],
      [region(0n, PAGE, 3 * PAGE + 1)],
      [region(0xffff_ffff_ffff_ffffn, 2)],
      [region(0n, PAGE), region(0xfffn, PAGE)],
      [region(0n, PAGE), region(0n, PAGE)],
      [region(0n, Number.MAX_SAFE_INTEGER)],
    ])
      expect(() => new native.RegionTable(regions)).toThrow(RangeError);
    expect(() => new native.RegionTable([bad({ address: 0n, size: 1, mapping: {}, offset: 0 })])).toThrow(
      TypeError,
    );
    expect(() => new native.RegionTable(bad('regions'))).toThrow(TypeError);
    const closed = new native.Mapping(fd, 0, PAGE, true);
    closed.close();
    expect(errorOf(() => new native.RegionTable([{ ...region(0n, PAGE), mapping: closed }])).code).toBe(
      'EBADF',
    );
  });

  it('keeps its mappings until it is closed', () => {
    const before = native.mappingCount();
    const second = new native.Mapping(fd, 0, PAGE, true);
    const regions = new native.RegionTable([{ address: 0n, size: PAGE, mapping: second, offset: 0 }]);
    second.close();
    regions.write(1n, Buffer.from('x'));
    expect(native.mappingCount()).toBe(before + 1);
    regions.close();
    regions.close();
    expect(native.mappingCount()).toBe(before);
    expect(errorOf(() => regions.read(0n, 1)).code).toBe('EBADF');
  });

  it('does not write through a read-only mapping', () => {
    const readOnly = new native.Mapping(fd, 0, PAGE, false);
    const regions = new native.RegionTable([{ address: 0n, size: PAGE, mapping: readOnly, offset: 0 }]);
    expect(errorOf(() => regions.write(0n, Buffer.from('x'))).code).toBe('EACCES');
    regions.close();
    readOnly.close();
  });

  it('tells of a file that shrank', () => {
    const regions = table();
    ftruncateSync(fd, 0);
    expect(errorOf(() => regions.read(0x10_0000n, 1)).code).toBe('EFAULT');
  });
});
