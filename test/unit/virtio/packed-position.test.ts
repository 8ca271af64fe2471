import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { basePosition, PackedDesc, packedBase, positionByUsed } from '../../../src/virtio/packed-position.js';

const AVAIL = 1 << 7;
const USED = 1 << 15;

/** A ring in which `used` is the lap's wrap counter up to `at`, and of what follows `available` were made available. */
function ring(size: number, at: number, wrap: boolean, available: number): Buffer {
  const bytes = Buffer.alloc(size * PackedDesc.size);
  const flags = (w: boolean, u: boolean): number => (w ? AVAIL : 0) | (u ? USED : 0);
  for (let i = 0; i < size; i++) {
    const lap = i < at ? wrap : !wrap;
    PackedDesc.encodeInto(bytes, i * PackedDesc.size, { addr: 1n, len: 2, id: i, flags: flags(lap, lap) });
  }
  for (let n = 0; n < available; n++) {
    const i = (at + n) % size;
    const w = at + n < size ? wrap : !wrap;
    bytes.writeUInt16LE(flags(w, !w) | 3, i * PackedDesc.size + PackedDesc.offsets.flags);
  }
  return bytes;
}

describe('the position in a packed ring', () => {
  it('is told by the USED bits, whatever has been made available', () => {
    const any = fc.integer({ min: 1, max: 300 }).chain((size) =>
      fc.record({
        size: fc.constant(size),
        at: fc.integer({ min: 0, max: size - 1 }),
        wrap: fc.boolean(),
        available: fc.integer({ min: 0, max: size }),
      }),
    );
    fc.assert(
      fc.property(any, ({ size, at, wrap, available }) => {
        expect(positionByUsed(ring(size, at, wrap, available))).toBe(at | (wrap ? 0x8000 : 0));
      }),
    );
  });

  it('is the start of a ring that is all zero', () => {
    expect(positionByUsed(Buffer.alloc(16 * 8))).toBe(0x8000);
  });

  it('is not told by a ring that a device has left chains unmarked in', () => {
    const bytes = ring(8, 6, true, 0);
    bytes.writeUInt16LE(AVAIL, 3 * 16 + 14);
    expect(positionByUsed(bytes)).toBeUndefined();
  });

  it('is both halves of a base when nothing is in flight, and the lower half of any', () => {
    expect(packedBase(0x8005)).toBe(0x8005_8005);
    expect(basePosition(0x8005_8005)).toBe(0x8005);
    expect(basePosition(0x0000_8000)).toBe(0x8000);
  });
});
