/**
 * Driver side: finds the virtio structures in the capability list and checks that each lies inside its BAR, before
 * anything is read or written through them (VIRTIO 1.3, 4.1.4).
 */
import { CAP_ID } from '../pci/capabilities.js';
import type { PciHandle } from '../pci/handle.js';
import { type FoundCapability, walkCapabilities } from '../pci/walk.js';
import { VhostPciError } from '../util/errors.js';
import {
  type BarWindow,
  CFG_TYPE,
  CommonCfg,
  VirtioPciCap,
  VirtioPciCap64,
  VirtioPciNotifyCap,
  VirtioPciVendorCap,
} from './pci-layout.js';

export interface VendorData {
  readonly vendorId: number;
  /** The whole capability. */
  readonly bytes: Buffer;
}

export interface VirtioStructures {
  readonly common: BarWindow;
  readonly notify: BarWindow & { readonly multiplier: number };
  readonly isr: BarWindow;
  /** Absent for a device type without configuration. */
  readonly device: BarWindow | undefined;
  readonly sharedMemory: ReadonlyMap<number, BarWindow>;
  readonly vendorData: readonly VendorData[];
}

const LAST_BAR = 5;
/** The fields of VIRTIO 1.0; later ones exist with features that are not used here. */
const COMMON_BYTES = CommonCfg.offsets.queue_notif_config_data;

/** What each structure needs: its capability's bytes, and its own. */
const NEEDS: {
  readonly [cfgType: number]: { name: string; capBytes: number; bytes: number; align: number };
} = {
  [CFG_TYPE.COMMON]: {
    name: 'common configuration',
    capBytes: VirtioPciCap.size,
    bytes: COMMON_BYTES,
    align: 4,
  },
  [CFG_TYPE.NOTIFY]: { name: 'notification', capBytes: VirtioPciNotifyCap.size, bytes: 2, align: 2 },
  [CFG_TYPE.ISR]: { name: 'ISR status', capBytes: VirtioPciCap.size, bytes: 1, align: 1 },
  [CFG_TYPE.DEVICE]: { name: 'device configuration', capBytes: VirtioPciCap.size, bytes: 1, align: 4 },
  [CFG_TYPE.SHARED_MEMORY]: { name: 'shared memory', capBytes: VirtioPciCap64.size, bytes: 1, align: 1 },
};

const fault = (handle: PciHandle, what: string): VhostPciError =>
  new VhostPciError('device', 'EVIRTIOPCI', `${handle.name}: ${what}`);

/** Throws `EVIRTIOPCI` (scope device) when a structure is missing, or lies outside its BAR. */
export async function findStructures(handle: PciHandle): Promise<VirtioStructures> {
  const first = new Map<number, BarWindow & { readonly capability: FoundCapability }>();
  const sharedMemory = new Map<number, BarWindow>();
  const vendorData: VendorData[] = [];

  for (const capability of await walkCapabilities(handle)) {
    if (capability.id !== CAP_ID.VENDOR || capability.bytes.length < VirtioPciVendorCap.size) continue;
    const { cap_len, cfg_type, vendor_id } = VirtioPciVendorCap.decode(capability.bytes);
    if (cap_len > capability.bytes.length)
      throw fault(handle, `the capability at 0x${capability.offset.toString(16)} is longer than its space`);
    if (cfg_type === CFG_TYPE.VENDOR && cap_len >= VirtioPciVendorCap.size)
      vendorData.push({ vendorId: vendor_id, bytes: Buffer.from(capability.bytes.subarray(0, cap_len)) });

    const needs = NEEDS[cfg_type];
    // 4.1.4.1: reserved types are ignored, and the first of several structures of a type is preferred.
    if (!needs || (first.has(cfg_type) && cfg_type !== CFG_TYPE.SHARED_MEMORY)) continue;
    if (cap_len < needs.capBytes)
      throw fault(handle, `the ${needs.name} capability has ${cap_len} bytes, not ${needs.capBytes}`);
    const cap = VirtioPciCap.decode(capability.bytes);
    if (cap.bar > LAST_BAR) continue;
    const window = cfg_type === CFG_TYPE.SHARED_MEMORY ? wideWindow(capability) : cap;
    await checkWindow(handle, `the ${needs.name} structure`, window, needs.bytes, needs.align);
    const place: BarWindow = { bar: window.bar, offset: window.offset, length: window.length };
    if (cfg_type !== CFG_TYPE.SHARED_MEMORY) first.set(cfg_type, { ...place, capability });
    else if (sharedMemory.has(cap.id)) throw fault(handle, `shared memory ${cap.id} is there twice`);
    else sharedMemory.set(cap.id, place);
  }

  const required = (cfgType: number): BarWindow & { capability: FoundCapability } => {
    const found = first.get(cfgType);
    if (!found) throw fault(handle, `not a modern virtio device: no ${NEEDS[cfgType]?.name} structure`);
    return found;
  };
  const place = ({ bar, offset, length }: BarWindow): BarWindow => ({ bar, offset, length });
  const notify = required(CFG_TYPE.NOTIFY);
  const device = first.get(CFG_TYPE.DEVICE);
  return {
    common: place(required(CFG_TYPE.COMMON)),
    notify: {
      ...place(notify),
      multiplier: VirtioPciNotifyCap.decode(notify.capability.bytes).notify_off_multiplier,
    },
    isr: place(required(CFG_TYPE.ISR)),
    device: device && place(device),
    sharedMemory,
    vendorData,
  };
}

/** Checks a window that a device has named, of at least `bytes`. Throws `EVIRTIOPCI` (scope device). */
export async function checkWindow(
  handle: PciHandle,
  what: string,
  window: BarWindow,
  bytes: number,
  align: number,
): Promise<void> {
  const { bar, offset, length } = window;
  if (bar > LAST_BAR) throw fault(handle, `${what} is in BAR ${bar}`);
  const { size } = await handle.regionInfo(bar);
  if (size === 0) throw fault(handle, `${what} is in BAR ${bar}, which is not there`);
  if (offset % align !== 0) throw fault(handle, `${what} is not aligned to ${align} bytes`);
  if (length < bytes) throw fault(handle, `${what} has ${length} bytes, not ${bytes}`);
  // Sums of safe integers below 2^54 are exact enough to compare: neither wraps.
  if (offset + length > size)
    throw fault(handle, `${what} ends at 0x${(offset + length).toString(16)}, past the end of BAR ${bar}`);
}

/** Offsets and lengths above 2^53 become inexact, and are far outside any BAR either way. */
function wideWindow(capability: FoundCapability): BarWindow {
  const cap = VirtioPciCap64.decode(capability.bytes);
  return {
    bar: cap.bar,
    offset: cap.offset_hi * 2 ** 32 + cap.offset,
    length: cap.length_hi * 2 ** 32 + cap.length,
  };
}
