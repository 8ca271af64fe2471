/** Numbers of the vhost-pci-net PCI device: docs/protocol.md, P1 to P4. Both sides derive from here. */

export const PCI_ID = { vendor: 0x1af4, device: 0x10f2, subsystemVendor: 0x1af4, subsystem: 0x0040 } as const;
/** Ethernet controller. */
export const CLASS_CODE = 0x020000;

/** P2: where things are. */
export const BAR = { REGISTERS: 0, MSIX: 1, PEER_MEMORY: 2, SHARED: 4 } as const;
export const REGISTERS_SIZE = 0x8000;
export const MSIX_SIZE = 0x2000;
export const REGISTER_BLOCK = {
  common: 0x0000,
  isr: 0x1000,
  config: 0x2000,
  notify: 0x3000,
  peerNotify: 0x4000,
} as const;
export const BLOCK_SIZE = 0x1000;
export const NOTIFY_MULTIPLIER = 4;

/** P3: ids of the SHARED_MEMORY_CFG capabilities. */
export const SHMID = { PEER_MEMORY: 0, SHARED: 1 } as const;
/** P3: vendor and `kind` of our vendor-specific capability. */
export const VENDOR_CAP = { VENDOR: 0xffff, PEER_NOTIFY: 1 } as const;

/** P4: queue numbers. */
export const QUEUE = { CONTROL_RECEIVE: 0, CONTROL_TRANSMIT: 1, FIRST_RECEIVE: 2 } as const;
export const CONTROL_QUEUE_SIZE = 64;
export const MAX_QUEUE_PAIRS = 128;

/** P5: size of a buffer in the control receiveq; holds the virtq info of 128 pairs (10,250 bytes). */
export const CONTROL_BUFFER_BYTES = 16 << 10;

/** Unit of the dirty log and of the alignment of peer memory. */
export const PAGE = 4096;

/** The smallest power of two that is at least `n`. */
export function nextPowerOfTwo(n: number): number {
  return 2 ** Math.ceil(Math.log2(n));
}
