import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { REGION_FLAG, RegionInfoHeader, SparseArea, SparseCap } from '../../../src/pci/vfio-abi.js';
import { decodeRegionInfo } from '../../../src/vfio/region.js';

const { READ, WRITE, MMAP, CAPS } = REGION_FLAG;
const header = (more: object): Buffer =>
  RegionInfoHeader.encode({
    argsz: 32,
    flags: READ | WRITE,
    index: 2,
    size: 0x10000n,
    offset: 2n << 40n,
    ...more,
  });
const sparse = (areas: readonly [bigint, bigint][], nr = areas.length): Buffer =>
  Buffer.concat([
    SparseCap.encode({ id: 1, version: 1, nr_areas: nr }),
    ...areas.map(([offset, size]) => SparseArea.encode({ offset, size })),
  ]);
const withAreas = (areas: readonly [bigint, bigint][], nr?: number): Buffer =>
  Buffer.concat([header({ flags: READ | MMAP | CAPS, cap_offset: 32 }), sparse(areas, nr)]);

describe('the description of a region', () => {
  it('tells size, access and place', () => {
    expect(decodeRegionInfo(header({}))).toEqual({
      size: 0x10000,
      readable: true,
      writable: true,
      areas: [],
      fdOffset: 2 * 2 ** 40,
    });
  });

  it('can be mapped as a whole when nothing else is said', () => {
    expect(decodeRegionInfo(header({ flags: READ | MMAP })).areas).toEqual([{ offset: 0, size: 0x10000 }]);
    const msix = Buffer.alloc(8);
    msix.writeUInt16LE(3);
    const other = Buffer.concat([header({ flags: MMAP | CAPS, cap_offset: 32 }), msix]);
    expect(decodeRegionInfo(other).areas).toEqual([{ offset: 0, size: 0x10000 }]);
  });

  it('can be mapped in the areas that are named, which may be none', () => {
    expect(decodeRegionInfo(withAreas([[0x1000n, 0x2000n]])).areas).toEqual([
      { offset: 0x1000, size: 0x2000 },
    ]);
    expect(decodeRegionInfo(withAreas([])).areas).toEqual([]);
  });

  it('of size 0 cannot be mapped', () => {
    expect(decodeRegionInfo(header({ flags: MMAP, size: 0n })).areas).toEqual([]);
  });

  it('is refused when an area leaves the region or the list leaves the answer', () => {
    expect(() => decodeRegionInfo(withAreas([[0xf000n, 0x2000n]]))).toThrow(/behind the region/);
    expect(() => decodeRegionInfo(withAreas([[0n, 0x1000n]], 2))).toThrow(/do not fit/);
    expect(() => decodeRegionInfo(header({ flags: MMAP | CAPS, cap_offset: 32 }))).toThrow(
      /capability at 32/,
    );
    expect(() => decodeRegionInfo(header({ size: 1n << 60n }))).toThrow(/1152921504606846976/);
  });

  it('never makes the decoder run away, whatever it holds', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 32, maxLength: 256 }), (bytes) => {
        const reply = Buffer.from(bytes);
        reply.writeUInt32LE(MMAP | CAPS, RegionInfoHeader.offsets.flags);
        try {
          for (const { offset, size } of decodeRegionInfo(reply).areas)
            expect(offset + size).toBeLessThanOrEqual(Number(reply.readBigUInt64LE(16)));
        } catch (error) {
          expect(error).toMatchObject({ code: 'EPROTO' });
        }
      }),
    );
  });
});
