import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DEVCAP_FLR,
  DEVCTL_FLR,
  ExpressCap,
  expressCapability,
  MSI_CONTROL,
  MSIX_CONTROL,
  MsiCap,
  MsixCap,
  MsixEntry,
  MsixTable,
  msiCapability,
  msixCapability,
} from '../../../src/pci/capabilities.js';
import { type Capability, ConfigSpace } from '../../../src/pci/config-space.js';

const PLACE = { vectors: 5, bar: 1, tableOffset: 0, pbaOffset: 0x1000 };

function spaceWith(capability: Capability): ConfigSpace {
  const identity = {
    vendorId: 1,
    deviceId: 2,
    revision: 0,
    classCode: 0,
    subsystemVendorId: 0,
    subsystemId: 0,
  };
  return new ConfigSpace({ identity, bars: [], capabilities: [capability] });
}

describe('MSI-X capability', () => {
  it('tells the number of vectors, less one, and where table and PBA are', () => {
    const cap = MsixCap.decode(spaceWith(msixCapability(PLACE)).read(0x40, 12));
    expect(cap).toMatchObject({ cap_id: 0x11, control: 4, table: 1, pba: 0x1001 });
  });

  it('lets a driver change enable and function mask only', () => {
    const space = spaceWith(msixCapability(PLACE));
    space.write(0x40, Buffer.alloc(12, 0xff));
    expect(MsixCap.decode(space.read(0x40, 12))).toMatchObject({
      control: 4 | MSIX_CONTROL.ENABLE | MSIX_CONTROL.MASK_ALL,
      table: 1,
      pba: 0x1001,
    });
  });

  it.each([0, 2049])('cannot have %i vectors', (vectors) => {
    expect(() => msixCapability({ ...PLACE, vectors })).toThrow(expect.objectContaining({ scope: 'bug' }));
  });
});

describe('MSI capability', () => {
  it.each([
    [1, 0x0080],
    [4, 0x0084],
    [32, 0x008a],
  ])('offers %i vectors', (vectors, control) => {
    expect(MsiCap.decode(spaceWith(msiCapability(vectors)).read(0x40, 14))).toMatchObject({
      cap_id: 5,
      control,
    });
  });

  it('lets a driver write address, data, enable and the number of enabled vectors', () => {
    const space = spaceWith(msiCapability(4));
    space.write(0x40, Buffer.alloc(14, 0xff));
    expect(MsiCap.decode(space.read(0x40, 14))).toMatchObject({
      control: 0x0084 | MSI_CONTROL.ENABLE | MSI_CONTROL.ENABLED,
      address: 0xffff_ffff_ffff_fffcn,
      data: 0xffff,
    });
  });

  it.each([0, 3, 64])('cannot have %i vectors', (vectors) => {
    expect(() => msiCapability(vectors)).toThrow(expect.objectContaining({ scope: 'bug' }));
  });
});

describe('PCI Express capability', () => {
  it('is an endpoint of version 1 with Function Level Reset', () => {
    const cap = ExpressCap.decode(spaceWith(expressCapability(() => {})).read(0x40, 20));
    expect(cap.cap_id).toBe(0x10);
    expect(cap.flags).toBe(1);
    expect(cap.device_cap & DEVCAP_FLR).toBe(DEVCAP_FLR);
  });

  it('asks for a reset when the bit is written, and reads it as 0', () => {
    let resets = 0;
    const space = spaceWith(
      expressCapability(() => {
        resets++;
      }),
    );
    const at = 0x40 + ExpressCap.offsets.device_control;
    space.write(at, Buffer.from([0x10, 0x28]));
    expect(resets).toBe(0);
    space.write(at, Buffer.from([0x10, 0x28 | (DEVCTL_FLR >> 8)]));
    expect(resets).toBe(1);
    expect(space.read(at, 2).readUInt16LE(0)).toBe(0x2810);
  });

  it('is reset through a write of the upper byte alone', () => {
    let resets = 0;
    const space = spaceWith(
      expressCapability(() => {
        resets++;
      }),
    );
    space.write(0x40 + ExpressCap.offsets.device_control + 1, Buffer.from([0x80]));
    expect(resets).toBe(1);
  });
});

describe('MSI-X table', () => {
  it('starts with every vector masked and nothing pending', () => {
    const table = new MsixTable(PLACE, 0x2000);
    for (let v = 0; v < 5; v++)
      expect(MsixEntry.decode(table.read(16 * v, 16))).toEqual({ address: 0n, data: 0, control: 1 });
    expect(table.read(0x1000, 8)).toEqual(Buffer.alloc(8));
  });

  it('keeps address, data and mask of the vectors that there are', () => {
    const table = new MsixTable(PLACE, 0x2000);
    table.write(0, Buffer.alloc(0x2000, 0xff));
    expect(MsixEntry.decode(table.read(64, 16))).toEqual({
      address: 0xffff_ffff_ffff_fffcn,
      data: 0xffff_ffff,
      control: 1,
    });
    expect(table.read(80, 0x2000 - 80)).toEqual(Buffer.alloc(0x2000 - 80));
    table.write(12, Buffer.alloc(1));
    expect(MsixEntry.decode(table.read(0, 16)).control).toBe(0);
    table.reset();
    expect(MsixEntry.decode(table.read(0, 16))).toEqual({ address: 0n, data: 0, control: 1 });
  });

  it('refuses accesses outside the BAR, and takes every other', () => {
    const table = new MsixTable(PLACE, 0x2000);
    fc.assert(
      fc.property(fc.integer({ min: -16, max: 0x2010 }), fc.uint8Array({ maxLength: 17 }), (offset, data) => {
        const inside = offset >= 0 && offset + data.length <= 0x2000;
        if (inside) {
          table.write(offset, data);
          expect(table.read(offset, data.length)).toHaveLength(data.length);
        } else {
          expect(() => table.write(offset, data)).toThrow(expect.objectContaining({ code: 'ERANGE' }));
          expect(() => table.read(offset, data.length)).toThrow(expect.objectContaining({ code: 'ERANGE' }));
        }
      }),
    );
  });

  it('does not fit where the PBA lies in the table', () => {
    expect(() => new MsixTable({ ...PLACE, vectors: 257 }, 0x2000)).toThrow(/do not fit/);
  });
});
