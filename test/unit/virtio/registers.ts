/** What a test writes into the common configuration, by the names of its fields. */

import type { VirtioPciDevice, VirtioPciDeviceOptions } from '../../../src/virtio/pci-device.js';
import { CommonCfg } from '../../../src/virtio/pci-layout.js';
import { STATUS } from '../../../src/virtio/status.js';
import { LAYOUT, makeDevice, OFFERED } from './rig.js';

export type Field = keyof typeof CommonCfg.fields;
const WIDTH = { u8: 1, u16: 2, u32: 4, u64: 8 } as const;

export const ACK_DRIVER = STATUS.ACKNOWLEDGE | STATUS.DRIVER;
export const FEATURES_OK = ACK_DRIVER | STATUS.FEATURES_OK;
export const LIVE = FEATURES_OK | STATUS.DRIVER_OK;

export class Bench {
  readonly events: string[] = [];
  readonly device: VirtioPciDevice;

  constructor(options: Partial<VirtioPciDeviceOptions> = {}) {
    this.device = makeDevice(this.events, options);
  }

  get common() {
    return CommonCfg.decode(this.device.read(LAYOUT.common.offset, CommonCfg.size));
  }

  set(field: Field, value: number | bigint): void {
    const bytes = Buffer.alloc(WIDTH[CommonCfg.fields[field]]);
    let rest = BigInt(value);
    for (let i = 0; i < bytes.length; i++, rest >>= 8n) bytes[i] = Number(rest & 0xffn);
    this.device.write(LAYOUT.common.offset + CommonCfg.offsets[field], bytes);
  }

  acceptFeatures(mask: bigint): void {
    for (const word of [0, 1]) {
      this.set('driver_feature_select', word);
      this.set('driver_feature', (mask >> BigInt(32 * word)) & 0xffff_ffffn);
    }
  }

  negotiate(mask = OFFERED): void {
    this.set('device_status', STATUS.ACKNOWLEDGE);
    this.set('device_status', ACK_DRIVER);
    this.acceptFeatures(mask);
    this.set('device_status', FEATURES_OK);
  }

  setUpQueue(queue: number): void {
    this.set('queue_select', queue);
    this.set('queue_desc', 0x10000 * (queue + 1));
    this.set('queue_driver', 0x10000 * (queue + 1) + 0x1000);
    this.set('queue_device', 0x10000 * (queue + 1) + 0x2000);
    this.set('queue_enable', 1);
  }

  notify(offset: number, value: number): void {
    this.device.write(offset, Buffer.from([value, 0]));
  }

  /** All the way to DRIVER_OK, with queue 0; forgets the events on the way. */
  live(): void {
    this.negotiate();
    this.setUpQueue(0);
    this.set('device_status', LIVE);
    this.events.length = 0;
  }
}
