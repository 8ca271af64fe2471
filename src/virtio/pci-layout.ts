/** Structures of virtio over PCI, as both sides see them (VIRTIO 1.3, 4.1.4). Only layouts: no behaviour. */
import { struct } from '../util/struct.js';

/** cfg_type */
export const CFG_TYPE = {
  COMMON: 1,
  NOTIFY: 2,
  ISR: 3,
  DEVICE: 4,
  PCI: 5,
  SHARED_MEMORY: 8,
  VENDOR: 9,
} as const;

/** An event without an interrupt. */
export const NO_VECTOR = 0xffff;

export const ISR = { QUEUE: 1, CONFIG: 2 } as const;

const CAP_FIELDS = {
  cap_vndr: 'u8',
  cap_next: 'u8',
  cap_len: 'u8',
  cfg_type: 'u8',
  bar: 'u8',
  id: 'u8',
  padding: { bytes: 2 },
  offset: 'u32',
  length: 'u32',
} as const;

export const VirtioPciCap = struct('virtio_pci_cap', 16, CAP_FIELDS); // 4.1.4
export const VirtioPciCap64 = struct('virtio_pci_cap64', 24, {
  ...CAP_FIELDS,
  offset_hi: 'u32',
  length_hi: 'u32',
}); // 4.1.4
export const VirtioPciNotifyCap = struct('virtio_pci_notify_cap', 20, {
  ...CAP_FIELDS,
  notify_off_multiplier: 'u32',
}); // 4.1.4.4
export const VirtioPciCfgCap = struct('virtio_pci_cfg_cap', 20, {
  ...CAP_FIELDS,
  pci_cfg_data: { bytes: 4 },
}); // 4.1.4.9

const VENDOR_FIELDS = {
  cap_vndr: 'u8',
  cap_next: 'u8',
  cap_len: 'u8',
  cfg_type: 'u8',
  vendor_id: 'u16',
} as const;

/** The head of every vendor data capability. */
export const VirtioPciVendorCap = struct('virtio_pci_vndr_data', 6, VENDOR_FIELDS); // 4.1.4.8
/** The seed's VIRTIO_PCI_CAP_PEER_NOTIFY_CFG (protocol.md, P3). */
export const PeerNotifyCap = struct('peer_notify_cap', 20, {
  ...VENDOR_FIELDS,
  kind: 'u8',
  bar: 'u8',
  offset: 'u32',
  length: 'u32',
  notify_off_multiplier: 'u32',
});

export const CommonCfg = struct('virtio_pci_common_cfg', 64, {
  device_feature_select: 'u32',
  device_feature: 'u32',
  driver_feature_select: 'u32',
  driver_feature: 'u32',
  config_msix_vector: 'u16',
  num_queues: 'u16',
  device_status: 'u8',
  config_generation: 'u8',
  queue_select: 'u16',
  queue_size: 'u16',
  queue_msix_vector: 'u16',
  queue_enable: 'u16',
  queue_notify_off: 'u16',
  queue_desc: 'u64',
  queue_driver: 'u64',
  queue_device: 'u64',
  queue_notif_config_data: 'u16',
  queue_reset: 'u16',
  admin_queue_index: 'u16',
  admin_queue_num: 'u16',
}); // 4.1.4.3

export interface RegisterWindow {
  readonly offset: number;
  readonly length: number;
}

/** One 16-bit register for each of a number of things, `multiplier` bytes apart. */
export interface NotifyWindow extends RegisterWindow {
  readonly multiplier: number;
}

/** Where the virtio structures are in the register BAR; the windows do not overlap. */
export interface RegisterLayout {
  /** Bytes of the BAR. */
  readonly size: number;
  readonly common: RegisterWindow;
  readonly isr: RegisterWindow;
  readonly device: RegisterWindow;
  readonly notify: NotifyWindow;
  /** Notifications for the rings of the peer (protocol.md, P3). */
  readonly peerNotify?: NotifyWindow;
}

/** A window of one of the BARs. */
export interface BarWindow extends RegisterWindow {
  readonly bar: number;
}
