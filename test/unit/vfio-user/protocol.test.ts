import { execFileSync } from 'node:child_process';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import * as vfio from '../../../src/pci/vfio-abi.js';
import type { Field, Struct } from '../../../src/util/struct.js';
import * as protocol from '../../../src/vfio-user/protocol.js';
import {
  COMMANDS,
  commandName,
  encodeMessage,
  errnoOf,
  FRAMING,
  Header,
} from '../../../src/vfio-user/protocol.js';

type AnyStruct = Struct<Record<string, Field>>;
const structs = Object.values({ ...protocol, ...vfio } as Record<string, unknown>).filter(
  (v): v is AnyStruct => typeof v === 'object' && v !== null && 'decode' in v && 'fields' in v,
);

const arbitrary = (field: Field): fc.Arbitrary<unknown> =>
  field === 'u64'
    ? fc.bigInt({ min: 0n, max: (1n << 64n) - 1n })
    : field === 'u32'
      ? fc.nat(0xffffffff)
      : field === 'u16'
        ? fc.nat(0xffff)
        : fc.uint8Array({ minLength: 8, maxLength: 8 }).map((a) => Buffer.from(a));

describe('every struct of vfio-user', () => {
  it('is found by this test', () => {
    expect(structs.length).toBe(21);
  });

  for (const s of structs) {
    it(`${s.name}: what is encoded is decoded, and a cut one is refused`, () => {
      const record = fc.record(
        Object.fromEntries(Object.entries(s.fields).map(([name, field]) => [name, arbitrary(field)])),
      );
      fc.assert(
        fc.property(record, (value) => {
          const bytes = s.encode(value as never);
          expect(bytes.length).toBe(s.size);
          expect({ ...s.decode(bytes) }).toEqual({ ...value });
          for (let cut = 0; cut < s.size; cut += 3)
            expect(() => s.decode(bytes.subarray(0, cut))).toThrow(/are there/);
        }),
        { numRuns: 50 },
      );
    });
  }
});

describe('the structs that Linux has too', () => {
  const compiler = ['cc', 'gcc', 'clang'].find((cc) => {
    try {
      execFileSync(cc, ['-E', '-x', 'c', '-'], { input: '#include <linux/vfio.h>\n', stdio: 'pipe' });
      return true;
    } catch {
      return false;
    }
  });

  it.skipIf(!compiler)('have the sizes of linux/vfio.h (skipped without a compiler and headers)', () => {
    const same = [
      [vfio.DeviceInfo, 'struct vfio_device_info', 16],
      [vfio.RegionInfoHeader, 'struct vfio_region_info', 32],
      [vfio.CapHeader, 'struct vfio_info_cap_header', 8],
      [vfio.SparseCap, 'struct vfio_region_info_cap_sparse_mmap', 16],
      [vfio.SparseArea, 'struct vfio_region_sparse_mmap_area', 16],
      [vfio.IrqInfo, 'struct vfio_irq_info', 16],
      [vfio.IrqSet, 'struct vfio_irq_set', 20],
      [protocol.DmaUnmap, 'struct vfio_iommu_type1_dma_unmap', 24],
      [protocol.DmaMap, 'struct vfio_iommu_type1_dma_map', 32],
    ] as const;
    for (const [s, , size] of same) expect(s.size, s.name).toBe(size);
    // vfio_device_info has grown since; its first fields are what vfio-user took over.
    const checks = same
      .filter(([s]) => s !== vfio.DeviceInfo)
      .map(([s, c]) => `_Static_assert(sizeof(${c}) == ${s.size}, "${s.name}");`);
    const offsets = [
      ...Object.entries(vfio.RegionInfoHeader.offsets).map(([f, at]) => ['struct vfio_region_info', f, at]),
      ...Object.entries(vfio.IrqSet.offsets).map(([f, at]) => ['struct vfio_irq_set', f, at]),
      ...Object.entries(vfio.DeviceInfo.offsets).map(([f, at]) => ['struct vfio_device_info', f, at]),
    ].map(([c, f, at]) => `_Static_assert(__builtin_offsetof(${c}, ${f}) == ${at}, "${c}.${f}");`);
    const source = `#include <linux/vfio.h>\n${[...checks, ...offsets].join('\n')}\n`;
    execFileSync(compiler!, ['-fsyntax-only', '-x', 'c', '-'], { input: source, stdio: 'pipe' });
  });
});

describe('the command table', () => {
  it('has every number once, and finds names by number', () => {
    const numbers = Object.values(COMMANDS).map((row) => row.command);
    expect(new Set(numbers).size).toBe(numbers.length);
    for (const [name, row] of Object.entries(COMMANDS)) {
      expect(row.name).toBe(name);
      expect(commandName(row.command)).toBe(name);
    }
    expect(commandName(14)).toBeUndefined();
  });

  it('names no payload that the framing would not let through', () => {
    for (const row of Object.values(COMMANDS)) {
      const size = Header.size + (row.request?.size ?? 0) + row.extra;
      expect(FRAMING.totalBytes(Header.encode({ size, command: row.command })), row.name).toBe(size);
    }
  });
});

describe('the framing', () => {
  it('tells the length of what encodeMessage made', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 50 }), { maxLength: 4 }),
        fc.nat(0xffff),
        (parts, id) => {
          const message = encodeMessage({ id, command: 9, flags: 1 }, ...parts);
          expect(FRAMING.totalBytes(message.subarray(0, 16))).toBe(message.length);
          expect(Header.decode(message).id).toBe(id);
        },
      ),
    );
  });

  it('either gives a bounded length or throws an error of the connection', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), (bytes) => {
        try {
          const total = FRAMING.totalBytes(Buffer.from(bytes));
          expect(total).toBeGreaterThanOrEqual(16);
          expect(total).toBeLessThan(2 << 20);
        } catch (error) {
          expect(error).toMatchObject({ scope: 'connection' });
        }
      }),
    );
  });
});

describe('the errno of an error', () => {
  it('is the one that its code names, else EIO', () => {
    expect(errnoOf({ code: 'EEXIST' })).toBe(17);
    expect(errnoOf({ code: 'ETRUNCATED' })).toBe(5);
    expect(errnoOf({ code: 'constructor' })).toBe(5);
    expect(errnoOf({ code: 7 })).toBe(5);
    expect(errnoOf(undefined)).toBe(5);
  });
});
