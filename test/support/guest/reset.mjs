/**
 * Resets a vhost-pci function through src/vfio, inside a receiving guest: node reset.mjs ADDRESS. Prints the device status
 * after it was written, and after the reset, as one JSON array.
 */
import { VfioDevice } from '/opt/vhost-pci/dist/vfio/device.js';
import { findStructures } from '/opt/vhost-pci/dist/virtio/pci-capabilities.js';
import { CommonCfg } from '/opt/vhost-pci/dist/virtio/pci-layout.js';
import { STATUS } from '/opt/vhost-pci/dist/virtio/status.js';

const device = VfioDevice.open(process.argv[2]);
const { common } = await findStructures(device);
const at = common.offset + CommonCfg.offsets.device_status;
const status = async () => (await device.read(common.bar, at, 1))[0];
await device.write(common.bar, at, Buffer.of(STATUS.ACKNOWLEDGE));
const before = await status();
await device.reset();
console.log(JSON.stringify([before, await status()]));
await device[Symbol.asyncDispose]();
