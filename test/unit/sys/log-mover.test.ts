import { closeSync, ftruncateSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Bitmap, type LogMoverOptions, type Mapping, native } from '../../../src/sys/native.js';
import { errorOf } from './helpers.js';

const PAGE = 4096;
const BYTES = 64;
let fd: number;
let mapping: Mapping;
let from: Bitmap;
let to: Bitmap;

beforeEach(() => {
  fd = native.memfdCreate('bits', 2 * PAGE);
  mapping = new native.Mapping(fd, 0, 2 * PAGE, true);
  from = { mapping, offset: 0, bytes: BYTES };
  to = { mapping, offset: 2 * PAGE - BYTES, bytes: BYTES };
});

afterEach(() => {
  mapping.close();
  closeSync(fd);
});

const image = (set: readonly number[]): Buffer => {
  const bytes = Buffer.alloc(BYTES);
  for (const n of set) bytes[n >> 3]! |= 1 << (n & 7);
  return bytes;
};

describe('the mover of bits', () => {
  it('moves every bit of its ranges once, shifted, like a model over sets', () => {
    const bits = fc.uniqueArray(fc.nat(8 * BYTES - 1), { maxLength: 40 });
    const range = fc.record({
      first: fc.nat(600),
      count: fc.nat(600),
      shift: fc.integer({ min: -600, max: 600 }),
    });
    fc.assert(
      fc.property(bits, bits, range, (source, target, { first, count, shift }) => {
        mapping.write(from.offset, image(source));
        mapping.write(to.offset, image(target));
        const taken = source.filter((n) => n >= first && n < first + count);
        const landed = taken.map((n) => n + shift).filter((n) => n >= 0 && n < 8 * BYTES);
        const mover = new native.LogMover({ from, to, ranges: [{ first, count, shift }] });
        mover.move();
        expect(mover.moved).toBe(landed.length);
        mover.close();
        const left = source.filter((n) => !taken.includes(n));
        expect(mapping.read(from.offset, BYTES).equals(image(left))).toBe(true);
        expect(mapping.read(to.offset, BYTES).equals(image([...target, ...landed]))).toBe(true);
      }),
    );
  });

  it('sets every bit of a range, and none else', () => {
    const range = fc.record({
      first: fc.nat(300),
      count: fc.nat(200),
      shift: fc.integer({ min: -300, max: 300 }),
    });
    fc.assert(
      fc.property(range, ({ first, count, shift }) => {
        mapping.write(to.offset, Buffer.alloc(BYTES));
        const mover = new native.LogMover({ from, to, ranges: [{ first, count, shift }] });
        mover.markAll();
        mover.close();
        const all = Array.from({ length: count }, (_, i) => first + i + shift);
        expect(mapping.read(to.offset, BYTES).equals(image(all.filter((n) => n >= 0 && n < 8 * BYTES)))).toBe(
          true,
        );
      }),
    );
  });

  it('does nothing once it is closed, which may be twice', () => {
    const mover = new native.LogMover({ from, to, ranges: [], thread: { periodMs: 1, failed: () => {} } });
    mover.close();
    mover.close();
    expect(errorOf(() => mover.move()).code).toBe('EBADF');
    expect(errorOf(() => mover.signalTo(fd)).code).toBe('EBADF');
  });

  it('throws when the memory of a bitmap has vanished', () => {
    const other = native.memfdCreate('bits', PAGE);
    const gone = new native.Mapping(other, 0, PAGE, true);
    const mover = new native.LogMover({
      from,
      to: { mapping: gone, offset: 0, bytes: PAGE },
      ranges: [{ first: 0, count: 8, shift: 0 }],
    });
    ftruncateSync(other, 0);
    expect(errorOf(() => mover.markAll()).code).toBe('EFAULT');
    expect(errorOf(() => mover.move()).code).toBe('EFAULT');
    mover.close();
    gone.close();
    closeSync(other);
  });

  it('checks its arguments', () => {
    const make = (options: Partial<LogMoverOptions>) => () =>
      new native.LogMover({ from, to, ranges: [], ...options });
    const range = { first: 0, count: 1, shift: 0 };
    expect(make({ from: { ...from, bytes: 2 * PAGE + 1 } })).toThrow(RangeError);
    expect(make({ to: { ...to, offset: 2 * PAGE } })).toThrow(RangeError);
    expect(make({ from: {} as unknown as Bitmap })).toThrow(TypeError);
    expect(make({ ranges: [{ ...range, shift: 0.5 }] })).toThrow(RangeError);
    expect(make({ ranges: [{ ...range, shift: Number.NaN }] })).toThrow(RangeError);
    expect(make({ ranges: [{ ...range, first: -1 }] })).toThrow(RangeError);
    expect(make({ thread: { periodMs: 0, failed: () => {} } })).toThrow(RangeError);
    expect(make({ thread: { periodMs: 10 } as LogMoverOptions['thread'] & object })).toThrow(TypeError);
    const readOnly = new native.Mapping(fd, 0, PAGE, false);
    expect(errorOf(make({ to: { mapping: readOnly, offset: 0, bytes: 1 } })).code).toBe('EACCES');
    readOnly.close();
  });
});
