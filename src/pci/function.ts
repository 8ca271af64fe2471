/** Driver side of the configuration header: what a function is, and switching it on. */
import { COMMAND, ConfigHeader, type FunctionIdentity } from './config-space.js';
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

/** Lets the function answer in its BARs and read and write memory. */
export async function enableBusMaster(handle: PciHandle): Promise<void> {
  const at = ConfigHeader.offsets.command;
  const command = (await handle.read(REGION.CONFIG, at, 2)).readUInt16LE(0);
  const wanted = Buffer.alloc(2);
  wanted.writeUInt16LE(command | COMMAND.MEMORY | COMMAND.MASTER);
  await handle.write(REGION.CONFIG, at, wanted);
}
