import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  barOffset,
  type Capability,
  COMMAND,
  ConfigHeader,
  ConfigSpace,
  type ConfigSpaceOptions,
} from '../../../src/pci/config-space.js';

const OPTIONS: ConfigSpaceOptions = {
  identity: {
    vendorId: 0x1af4,
    deviceId: 0x10f2,
    revision: 1,
    classCode: 0x020001,
    subsystemVendorId: 0x1af4,
    subsystemId: 0x40,
  },
  bars: [
    { index: 0, size: 0x8000, bits: 32, prefetchable: false },
    { index: 2, size: 2 ** 36, bits: 64, prefetchable: true },
  ],
  capabilities: [
    {
      name: 'a',
      initial: Buffer.from([0x11, 0, 1, 2, 3]),
      writable: Buffer.from([0xff, 0xff, 0, 0xf0, 0xff]),
    },
    { name: 'b', initial: Buffer.from([0x09, 0, 4, 5]), writable: Buffer.alloc(4) },
  ],
};

const u32 = (value: number): Buffer => {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(value >>> 0);
  return b;
};

function capabilityWithHooks(log: string[]): Capability {
  return {
    name: 'hooked',
    initial: Buffer.from([0x09, 0, 0, 0, 0, 0, 0, 0]),
    writable: Buffer.alloc(8, 0xff),
    beforeRead: (bytes, from, to) => {
      log.push(`read ${from}-${to}`);
      bytes[4] = 0x42;
    },
    afterWrite: (bytes, from, to) => {
      log.push(`write ${from}-${to} ${bytes[5]}`);
    },
  };
}

describe('configuration space', () => {
  it('presents the identity in the header', () => {
    const header = ConfigHeader.decode(new ConfigSpace(OPTIONS).read(0, 64));
    expect(header).toMatchObject({
      vendor_id: 0x1af4,
      device_id: 0x10f2,
      revision_id: 1,
      class_prog: 1,
      class_device: 0x0200,
      status: 0x10,
      header_type: 0,
      capability_list: 0x40,
      subsystem_vendor_id: 0x1af4,
      subsystem_id: 0x40,
      interrupt_pin: 0,
    });
  });

  it('reads 0 in the extended space: no extended capability', () => {
    expect(new ConfigSpace(OPTIONS).read(0x100, 4096 - 0x100)).toEqual(Buffer.alloc(4096 - 0x100));
  });

  it('links the capabilities at multiples of 4 and ends the list', () => {
    const space = new ConfigSpace(OPTIONS);
    expect([...space.read(0x40, 12)]).toEqual([0x11, 0x48, 1, 2, 3, 0, 0, 0, 0x09, 0, 4, 5]);
  });

  it('never lets a driver change the id or the link of a capability', () => {
    const space = new ConfigSpace(OPTIONS);
    space.write(0x40, Buffer.alloc(12, 0xff));
    expect([...space.read(0x40, 12)]).toEqual([0x11, 0x48, 1, 0xf2, 0xff, 0, 0, 0, 0x09, 0, 4, 5]);
  });

  it('tells the size of a 32-bit BAR to a driver that writes ones', () => {
    const space = new ConfigSpace(OPTIONS);
    space.write(barOffset(0), u32(0xffff_ffff));
    expect(space.read(barOffset(0), 4).readUInt32LE(0)).toBe(0xffff_8000);
  });

  it('tells the size and kind of a 64-bit prefetchable BAR', () => {
    const space = new ConfigSpace(OPTIONS);
    expect(space.read(barOffset(2), 4).readUInt32LE(0)).toBe(0xc);
    space.write(barOffset(2), Buffer.alloc(8, 0xff));
    expect(space.read(barOffset(2), 8).readBigUInt64LE(0)).toBe(0xffff_fff0_0000_000cn);
  });

  it('does not implement the BARs that were not asked for', () => {
    const space = new ConfigSpace(OPTIONS);
    space.write(barOffset(1), u32(0xffff_ffff));
    space.write(barOffset(4), Buffer.alloc(8, 0xff));
    space.write(ConfigHeader.offsets.rom_address, u32(0xffff_ffff));
    expect(space.read(barOffset(1), 4)).toEqual(Buffer.alloc(4));
    expect(space.read(barOffset(4), 8)).toEqual(Buffer.alloc(8));
    expect(space.read(ConfigHeader.offsets.rom_address, 4)).toEqual(Buffer.alloc(4));
  });

  it('knows where a BAR is programmed to, without the flag bits', () => {
    const space = new ConfigSpace(OPTIONS);
    expect(space.barAddress(2)).toBe(0n);
    space.write(barOffset(2), u32(0));
    space.write(barOffset(2) + 4, u32(0x70));
    space.write(barOffset(0), u32(0xfebf_0000));
    expect(space.barAddress(2)).toBe(0x70_0000_0000n);
    expect(space.barAddress(0)).toBe(0xfebf_0000n);
    expect(space.barAddress(5)).toBe(0n);
  });

  it('keeps the command bits that it has and drops the others', () => {
    const space = new ConfigSpace(OPTIONS);
    space.write(ConfigHeader.offsets.command, Buffer.from([0xff, 0xff]));
    expect(space.command).toBe(
      COMMAND.MEMORY | COMMAND.MASTER | COMMAND.PARITY | COMMAND.SERR | COMMAND.INTX_DISABLE,
    );
  });

  it('takes a write that is unaligned and crosses fields byte by byte', () => {
    const space = new ConfigSpace(OPTIONS);
    // The upper byte of the command, all of the status, and revision: only the first may change.
    space.write(ConfigHeader.offsets.command + 1, Buffer.from([0x04, 0xff, 0xff, 0xff]));
    expect(space.command).toBe(COMMAND.INTX_DISABLE);
    expect(space.read(6, 3)).toEqual(Buffer.from([0x10, 0x00, 0x01]));
  });

  it('sets and clears the interrupt status without touching the capability bit', () => {
    const space = new ConfigSpace(OPTIONS);
    space.setInterruptStatus(true);
    expect(space.read(6, 2).readUInt16LE(0)).toBe(0x18);
    space.setInterruptStatus(false);
    expect(space.read(6, 2).readUInt16LE(0)).toBe(0x10);
  });

  it('resets everything but BARs and interrupt line', () => {
    const space = new ConfigSpace(OPTIONS);
    space.write(barOffset(2) + 4, u32(0x70));
    space.write(ConfigHeader.offsets.interrupt_line, Buffer.from([11]));
    space.write(ConfigHeader.offsets.command, Buffer.from([6, 0]));
    space.write(0x44, Buffer.from([0x77]));
    space.reset();
    expect(space.command).toBe(0);
    expect(space.read(0x44, 1)[0]).toBe(3);
    expect(space.barAddress(2)).toBe(0x70_0000_0000n);
    expect(space.read(ConfigHeader.offsets.interrupt_line, 1)[0]).toBe(11);
  });

  it('runs a hook only for accesses that overlap its capability, with the part that they overlap', () => {
    const log: string[] = [];
    const space = new ConfigSpace({ ...OPTIONS, capabilities: [capabilityWithHooks(log)] });
    space.read(0x3c, 4);
    space.read(0x48, 4);
    expect(log).toEqual([]);
    expect(space.read(0x43, 2)[1]).toBe(0x42);
    space.write(0x3e, Buffer.from([1, 1, 1, 1, 9, 9, 9, 9, 9]));
    expect(log).toEqual(['read 3-5', 'write 0-7 9']);
  });

  it.each([
    ['before the start', -1, 1],
    ['past the end', 4096, 1],
    ['across the end', 4094, 4],
  ])('refuses an access %s', (_what, offset, length) => {
    const space = new ConfigSpace(OPTIONS);
    expect(() => space.read(offset, length)).toThrow(
      expect.objectContaining({ code: 'ERANGE', scope: 'message' }),
    );
    expect(() => space.write(offset, Buffer.alloc(length))).toThrow(
      expect.objectContaining({ code: 'ERANGE' }),
    );
  });

  it.each([
    ['a size that is no power of two', [{ index: 0, size: 0x3000, bits: 32, prefetchable: false }]],
    ['a BAR of 8 bytes', [{ index: 0, size: 8, bits: 32, prefetchable: false }]],
    ['a 64-bit BAR in the last place', [{ index: 5, size: 4096, bits: 64, prefetchable: true }]],
    ['4 GiB in a 32-bit BAR', [{ index: 0, size: 2 ** 32, bits: 32, prefetchable: false }]],
    [
      'a BAR in the upper half of another',
      [
        { index: 2, size: 4096, bits: 64, prefetchable: true },
        { index: 3, size: 4096, bits: 32, prefetchable: false },
      ],
    ],
  ] as const)('does not build %s', (_what, bars) => {
    expect(() => new ConfigSpace({ ...OPTIONS, bars })).toThrow(expect.objectContaining({ scope: 'bug' }));
  });

  it('does not build more capabilities than fit below 256 bytes', () => {
    const big = { name: 'big', initial: Buffer.alloc(100), writable: Buffer.alloc(100) };
    expect(() => new ConfigSpace({ ...OPTIONS, capabilities: [big, big] })).toThrow(/no room/);
  });

  const access = fc.record({
    offset: fc.integer({ min: 0, max: 0x120 }),
    data: fc.uint8Array({ minLength: 1, maxLength: 9 }),
  });

  it('changes nothing when the same bytes are written again, whatever was written before', () => {
    fc.assert(
      fc.property(fc.array(access), access, (before, last) => {
        const space = new ConfigSpace(OPTIONS);
        for (const { offset, data } of before) space.write(offset, data);
        space.write(last.offset, last.data);
        const once = space.read(0, 4096);
        space.write(last.offset, last.data);
        expect(space.read(0, 4096)).toEqual(once);
      }),
    );
  });

  it('writes back what it reads without a change', () => {
    fc.assert(
      fc.property(fc.array(access), (before) => {
        const space = new ConfigSpace(OPTIONS);
        for (const { offset, data } of before) space.write(offset, data);
        const now = space.read(0, 4096);
        space.write(0, now);
        expect(space.read(0, 4096)).toEqual(now);
      }),
    );
  });

  it('gives the same bytes in one access and in single ones', () => {
    fc.assert(
      fc.property(fc.array(access), access, (before, { offset, data }) => {
        const wide = new ConfigSpace(OPTIONS);
        const narrow = new ConfigSpace(OPTIONS);
        for (const w of [...before, { offset, data }]) {
          wide.write(w.offset, w.data);
          w.data.forEach((byte, i) => {
            narrow.write(w.offset + i, Buffer.of(byte));
          });
        }
        expect(narrow.read(0, 4096)).toEqual(wide.read(0, 4096));
        const bytes = Array.from(data, (_, i) => wide.read(offset + i, 1)[0]);
        expect([...wide.read(offset, data.length)]).toEqual(bytes);
      }),
    );
  });
});
