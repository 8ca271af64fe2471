import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CapHeader, RegionInfoHeader, SparseArea, SparseCap } from '../../../src/pci/vfio-abi.js';
import {
  decodeIoFds,
  decodeRegionInfo,
  encodeIoFds,
  encodeRegionInfo,
} from '../../../src/vfio-user/region-info.js';

const area = fc.record({ offset: fc.nat(1000), size: fc.nat(1000) });

describe('region information', () => {
  it('survives the way there and back, in one reply or in two', () => {
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.boolean(),
        fc.array(area, { maxLength: 20 }),
        fc.nat(2 ** 31),
        (readable, writable, areas, fdOffset) => {
          const region = { size: 1 << 20, readable, writable, mappable: { fd: 5, fdOffset, areas } };
          const first = decodeRegionInfo(encodeRegionInfo(3, region, 32, true).payload, 3);
          const whole = encodeRegionInfo(3, region, first.argsz, true);
          expect(whole.fds).toEqual(areas.length > 0 ? [5] : []);
          const offset = areas.length > 0 ? fdOffset : 0;
          expect(decodeRegionInfo(whole.payload, 3)).toEqual({
            argsz: first.argsz,
            size: 1 << 20,
            readable,
            writable,
            areas,
            fdOffset: offset,
          });
        },
      ),
    );
  });

  it('of a region that may be mapped whole, without a list, is one area', () => {
    const payload = RegionInfoHeader.encode({ argsz: 32, flags: 7, index: 2, size: 0x8000n });
    expect(decodeRegionInfo(payload, 2).areas).toEqual([{ offset: 0, size: 0x8000 }]);
  });

  it('finds the areas behind other capabilities', () => {
    const payload = Buffer.concat([
      RegionInfoHeader.encode({ argsz: 88, flags: 15, index: 2, cap_offset: 32, size: 0x8000n }),
      CapHeader.encode({ id: 9, version: 1, next: 56 }),
      Buffer.alloc(16),
      SparseCap.encode({ id: 1, version: 1, nr_areas: 1 }),
      SparseArea.encode({ offset: 0x1000n, size: 0x2000n }),
    ]);
    expect(decodeRegionInfo(payload, 2).areas).toEqual([{ offset: 0x1000, size: 0x2000 }]);
  });

  it('with a list that runs in a circle is refused', () => {
    const payload = Buffer.concat([
      RegionInfoHeader.encode({ argsz: 40, flags: 15, index: 2, cap_offset: 32 }),
      CapHeader.encode({ id: 9, next: 32 }),
    ]);
    expect(() => decodeRegionInfo(payload, 2)).toThrow(/capability at 32/);
  });

  it('is decoded or refused with an error of the connection or a cut struct, whatever the server says', () => {
    const u32 = fc.oneof(fc.nat(100), fc.nat(0xffffffff));
    const u64 = fc.oneof(fc.bigInt({ min: 0n, max: 200n }), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }));
    const header = fc.record({
      argsz: u32,
      flags: fc.nat(15),
      index: fc.nat(2),
      cap_offset: u32,
      size: u64,
      offset: u64,
    });
    fc.assert(
      fc.property(header, fc.uint8Array({ maxLength: 80 }), (h, rest) => {
        try {
          const info = decodeRegionInfo(Buffer.concat([RegionInfoHeader.encode(h), rest]), 2);
          for (const a of info.areas) expect(a.offset + a.size).toBeLessThanOrEqual(info.size);
        } catch (error) {
          expect(['connection', 'message']).toContain((error as { scope: string }).scope);
        }
      }),
      { numRuns: 1000 },
    );
  });
});

describe('region I/O fds', () => {
  const ioFds = Array.from({ length: 20 }, (_, i) => ({ offset: i * 4, size: 2, fd: 100 + i }));

  it('survive the way there and back, as far as a message has room for fds', () => {
    const { payload, fds } = encodeIoFds(0, ioFds, 4096, 16);
    expect(fds.length).toBe(16);
    expect(decodeIoFds(payload, 0, fds)).toEqual(ioFds.slice(0, 16));
  });

  it('share an fd between places', () => {
    const shared = ioFds.map((io) => ({ ...io, fd: 7 }));
    const { payload, fds } = encodeIoFds(0, shared, 4096, 1);
    expect(fds).toEqual([7]);
    expect(decodeIoFds(payload, 0, fds)).toEqual(shared);
  });

  it('are not sent when the client has no room for their description', () => {
    const { payload, fds } = encodeIoFds(0, ioFds, 16, 16);
    expect(payload.length).toBe(16);
    expect(payload.readUInt32LE(0)).toBe(16 + 16 * 40);
    expect(fds).toEqual([]);
  });

  it('that name an fd which did not come are refused', () => {
    const { payload, fds } = encodeIoFds(0, ioFds, 4096, 16);
    expect(() => decodeIoFds(payload, 0, fds.slice(1))).toThrow(/I\/O fd 15 of 15/);
    expect(() => decodeIoFds(payload, 1, fds)).toThrow();
    expect(() => decodeIoFds(payload.subarray(0, 60), 0, fds)).toThrow();
  });
});
