import { describe, expect, it } from 'vitest';
import { COMMAND } from '../../../src/pci/config-space.js';
import { barAddress, enableBusMaster, readIdentity } from '../../../src/pci/function.js';
import { handleOver } from './rig.js';

describe('configuration header, driver side', () => {
  it('reads the identity', async () => {
    const bytes = Buffer.alloc(4096);
    bytes.set([0xf4, 0x1a, 0xf2, 0x10, 0, 0, 0, 0, 7, 0x33, 0x00, 0x02]);
    bytes.set([0xaa, 0xbb, 0xcc, 0xdd], 0x2c);
    expect(await readIdentity(handleOver(bytes))).toEqual({
      vendorId: 0x1af4,
      deviceId: 0x10f2,
      revision: 7,
      classCode: 0x020033,
      subsystemVendorId: 0xbbaa,
      subsystemId: 0xddcc,
    });
  });

  it('reads the address of a BAR of either width', async () => {
    const bytes = Buffer.alloc(4096);
    bytes.writeUInt32LE(0xfe00_0000, 0x14);
    bytes.writeUInt32LE(0x8000_000c, 0x20);
    bytes.writeUInt32LE(0x12, 0x24);
    const handle = handleOver(bytes);
    expect(await barAddress(handle, 1)).toBe(0xfe00_0000n);
    expect(await barAddress(handle, 4)).toBe(0x12_8000_0000n);
    expect(await barAddress(handle, 2)).toBe(0n);
  });

  it('switches memory and bus master on and leaves the other command bits alone', async () => {
    const bytes = Buffer.alloc(4096);
    bytes.writeUInt16LE(COMMAND.INTX_DISABLE, 4);
    await enableBusMaster(handleOver(bytes));
    expect(bytes.readUInt16LE(4)).toBe(COMMAND.INTX_DISABLE | COMMAND.MEMORY | COMMAND.MASTER);
  });
});
