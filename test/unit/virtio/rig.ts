/** A virtio-pci function made of the device model, and a PciHandle over it, without a transport between the two. */
import { MsixTable } from '../../../src/pci/capabilities.js';
import type { ConfigSpace } from '../../../src/pci/config-space.js';
import { type PciHandle, REGION, type RegionInfo } from '../../../src/pci/handle.js';
import { bits } from '../../../src/util/flags.js';
import { FEATURE } from '../../../src/virtio/features.js';
import { buildConfigSpace, type VirtioStructure } from '../../../src/virtio/pci-config.js';
import {
  type DeviceEvents,
  VirtioPciDevice,
  type VirtioPciDeviceOptions,
} from '../../../src/virtio/pci-device.js';
import { CFG_TYPE, PeerNotifyCap, type RegisterLayout } from '../../../src/virtio/pci-layout.js';

export const LAYOUT: RegisterLayout = {
  size: 0x8000,
  common: { offset: 0, length: 0x1000 },
  isr: { offset: 0x1000, length: 0x1000 },
  device: { offset: 0x2000, length: 0x1000 },
  notify: { offset: 0x3000, length: 0x1000, multiplier: 4 },
  peerNotify: { offset: 0x4000, length: 16, multiplier: 4 },
};

export const OFFERED = bits(0, 22, FEATURE.VERSION_1, FEATURE.ACCESS_PLATFORM);
/** Two control queues, and two without rings. */
export const QUEUE_SIZES = [64, 64, 0, 0];
export const MSIX_PLACE = { vectors: 3, bar: 1, tableOffset: 0, pbaOffset: 0x1000 };
export const PEER_MEMORY = 5 * 2 ** 30;

export const STRUCTURES: readonly VirtioStructure[] = [
  { cfgType: CFG_TYPE.COMMON, bar: 0, ...LAYOUT.common },
  { cfgType: CFG_TYPE.NOTIFY, bar: 0, ...LAYOUT.notify },
  { cfgType: CFG_TYPE.ISR, bar: 0, ...LAYOUT.isr },
  { cfgType: CFG_TYPE.DEVICE, bar: 0, ...LAYOUT.device },
  { cfgType: CFG_TYPE.SHARED_MEMORY, bar: 2, offset: 0, length: PEER_MEMORY, id: 0 },
  { cfgType: CFG_TYPE.SHARED_MEMORY, bar: 4, offset: 0, length: 0x4000, id: 1 },
  {
    cfgType: CFG_TYPE.VENDOR,
    bytes: PeerNotifyCap.encode({
      vendor_id: 0x1234,
      kind: 1,
      offset: 0x4000,
      length: 16,
      notify_off_multiplier: 4,
    }),
  },
];

export interface Rig {
  readonly device: VirtioPciDevice;
  readonly config: ConfigSpace;
  readonly events: string[];
  readonly handle: PciHandle;
  functionResets: number;
}

const hex = (n: bigint): string => `0x${n.toString(16)}`;

/** Events as lines, in their order. */
export function recorder(events: string[]): DeviceEvents {
  return {
    queueEnabled: (queue, r) =>
      events.push(`queue ${queue}: ${r.size} ${hex(r.desc)} ${hex(r.driver)} ${hex(r.device)}`),
    driverOk: (features) => events.push(`driver ok ${hex(features)}`),
    reset: () => events.push('reset'),
    notify: (queue) => events.push(`notify ${queue}`),
    peerNotify: (ring) => events.push(`peer notify ${ring}`),
    interrupt: (vector) => events.push(`interrupt ${vector}`),
    isrChanged: (pending) => events.push(`isr ${pending}`),
  };
}

export function makeDevice(events: string[], options: Partial<VirtioPciDeviceOptions> = {}): VirtioPciDevice {
  return new VirtioPciDevice({
    features: OFFERED,
    queueSizes: QUEUE_SIZES,
    vectors: MSIX_PLACE.vectors,
    layout: LAYOUT,
    events: recorder(events),
    ...options,
  });
}

export function makeRig(
  options: Partial<VirtioPciDeviceOptions> = {},
  structures: readonly VirtioStructure[] = STRUCTURES,
): Rig {
  const events: string[] = [];
  const device = makeDevice(events, options);
  const table = new MsixTable(MSIX_PLACE, 0x2000);
  const config = buildConfigSpace({
    identity: {
      vendorId: 0x1af4,
      deviceId: 0x10f2,
      revision: 1,
      classCode: 0x020000,
      subsystemVendorId: 0x1af4,
      subsystemId: 0x40,
    },
    bars: [
      { index: 0, size: 0x8000, bits: 32, prefetchable: false },
      { index: 1, size: 0x2000, bits: 32, prefetchable: false },
      { index: 2, size: 8 * 2 ** 30, bits: 64, prefetchable: true },
      { index: 4, size: 0x4000, bits: 64, prefetchable: true },
    ],
    interrupts: { kind: 'msix', ...MSIX_PLACE },
    structures,
    registers: {
      read: (_bar, offset, length) => device.read(offset, length),
      write: (_bar, offset, data) => device.write(offset, data),
    },
    onFunctionReset: () => {
      rig.functionResets++;
    },
  });
  const regions = new Map<
    number,
    { size: number; model?: { read: ConfigSpace['read']; write: ConfigSpace['write'] } }
  >([
    [REGION.BAR0, { size: LAYOUT.size, model: device }],
    [REGION.BAR1, { size: 0x2000, model: table }],
    [REGION.BAR2, { size: 8 * 2 ** 30 }],
    [REGION.BAR4, { size: 0x4000 }],
    [REGION.CONFIG, { size: 4096, model: config }],
  ]);
  const model = (region: number) => {
    const found = regions.get(region)?.model;
    if (!found) throw new Error(`no registers in region ${region}`);
    return found;
  };
  const absent = (): never => {
    throw new Error('not part of this handle');
  };
  const handle: PciHandle = {
    name: 'model',
    gone: new Promise(() => {}),
    regionInfo: async (region): Promise<RegionInfo> => ({
      size: regions.get(region)?.size ?? 0,
      readable: regions.has(region),
      writable: regions.has(region),
      areas: [],
    }),
    read: async (region, offset, length) => model(region).read(offset, length),
    write: async (region, offset, data) => model(region).write(offset, data),
    map: async () => absent(),
    // The rig's stand-in for a target: the register, as a "doorbell" test reads it back.
    notifyTarget: async (region, offset, value) => ({ fd: region * 1_000_000 + offset * 10 + value }),
    mapDma: async () => absent(),
    unmapDma: async () => absent(),
    irqCount: async () => MSIX_PLACE.vectors,
    setIrqs: async () => {},
    reset: async () => device.reset(),
    [Symbol.asyncDispose]: async () => {},
  };
  const rig: Rig = { device, config, events, handle, functionResets: 0 };
  return rig;
}
