/** Driver side of the configuration header: what a function is, and switching it on. */
import { BAR_TYPE_64, barOffset, COMMAND, ConfigHeader, type FunctionIdentity } from './config-space.js';
import { type PciHandle, REGION } from './handle.js';

export async function readIdentity(handle: PciHandle): Promise<FunctionIdentity> {
  const header = ConfigHeader.decode(await handle.read(REGION.CONFIG, 0, ConfigHeader.size));
  return {
    vendorId: header.vendor_id,
    deviceId: header.device_id,
    revision: header.revision_id,
    classCode: (header.class_device << 8) | header.class_prog,
    subsystemVendorId: header.subsystem_vendor_id,
    subsystemId: header.subsystem_id,
  };
}

/** Address that a memory BAR is programmed with (PCI 3.0, 6.2.5.1); 0n while it is not. */
export async function barAddress(handle: PciHandle, index: number): Promise<bigint> {
  const at = barOffset(index);
  const low = (await handle.read(REGION.CONFIG, at, 4)).readUInt32LE(0);
  const address = BigInt((low & ~0xf) >>> 0);
  if ((low & 0x7) !== BAR_TYPE_64) return address;
  const high = (await handle.read(REGION.CONFIG, at + 4, 4)).readUInt32LE(0);
  return (BigInt(high) << 32n) | address;
}

/** Lets the function answer in its BARs and read and write memory. */
export async function enableBusMaster(handle: PciHandle): Promise<void> {
  const at = ConfigHeader.offsets.command;
  const command = (await handle.read(REGION.CONFIG, at, 2)).readUInt16LE(0);
  const wanted = Buffer.alloc(2);
  wanted.writeUInt16LE(command | COMMAND.MEMORY | COMMAND.MASTER);
  await handle.write(REGION.CONFIG, at, wanted);
}
