/**
 * What kernel VFIO and vfio-user have in common: how a device, its regions and its interrupts are described, in the
 * structs of linux/vfio.h. Declarations, and the one decoder of the sparse mmap capability. Performs no request.
 */
import { VhostPciError } from '../util/errors.js';
import { struct } from '../util/struct.js';
import type { RegionArea } from './handle.js';

/** The part that every version of the struct has. */
export const DeviceInfo = struct('vfio_device_info', 16, {
  argsz: 'u32',
  flags: 'u32',
  num_regions: 'u32',
  num_irqs: 'u32',
});
export const RegionInfoHeader = struct('vfio_region_info', 32, {
  argsz: 'u32',
  flags: 'u32',
  index: 'u32',
  cap_offset: 'u32',
  size: 'u64',
  offset: 'u64',
});
export const CapHeader = struct('vfio_info_cap_header', 8, { id: 'u16', version: 'u16', next: 'u32' });
/** Its capability header included; the areas follow. */
export const SparseCap = struct('vfio_region_info_cap_sparse_mmap', 16, {
  id: 'u16',
  version: 'u16',
  next: 'u32',
  nr_areas: 'u32',
  reserved: 'u32',
});
export const SparseArea = struct('vfio_region_sparse_mmap_area', 16, { offset: 'u64', size: 'u64' });
export const IrqInfo = struct('vfio_irq_info', 16, {
  argsz: 'u32',
  flags: 'u32',
  index: 'u32',
  count: 'u32',
});
/** The eventfds follow: 32 bits each in the kernel's interface, ancillary data in vfio-user. */
export const IrqSet = struct('vfio_irq_set', 20, {
  argsz: 'u32',
  flags: 'u32',
  index: 'u32',
  start: 'u32',
  count: 'u32',
});

export const DEVICE_FLAG = { RESET: 1, PCI: 2 } as const;
export const REGION_FLAG = { READ: 1, WRITE: 2, MMAP: 4, CAPS: 8 } as const;
export const REGION_CAP_SPARSE_MMAP = 1;
export const IRQ_INFO_FLAG = { EVENTFD: 1, MASKABLE: 2, AUTOMASKED: 4, NORESIZE: 8 } as const;
export const IRQ_SET = {
  DATA_NONE: 1,
  DATA_BOOL: 2,
  DATA_EVENTFD: 4,
  DATA_MASK: 7,
  MASK: 8,
  UNMASK: 16,
  TRIGGER: 32,
  ACTION_MASK: 56,
} as const;

/** VFIO_PCI_NUM_REGIONS and VFIO_PCI_NUM_IRQS */
export const NUM_REGIONS = 9;
export const NUM_IRQS = 5;

/** A reply whose numbers contradict each other. */
const bad = (what: string): VhostPciError => new VhostPciError('connection', 'EPROTO', what);

/** A 64-bit length or offset that another party chose, as a number. Throws `EPROTO` (scope connection). */
export function safeNumber(value: bigint, what: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw bad(`${what} of ${value}`);
  return Number(value);
}

/**
 * The areas of the sparse mmap capability in a whole reply whose first capability is at `first`; undefined when there is
 * none. Throws `EPROTO` (scope connection) for a list that leaves the reply.
 */
export function sparseAreas(reply: Buffer, first: number): RegionArea[] | undefined {
  // Each capability has 8 bytes at least and lies behind its predecessor: that bounds the walk.
  for (let at = first, least = RegionInfoHeader.size; at !== 0; ) {
    if (at < least || at + CapHeader.size > reply.length) throw bad(`a region capability at ${at}`);
    const cap = CapHeader.decode(reply, at);
    if (cap.id === REGION_CAP_SPARSE_MMAP) {
      if (at + SparseCap.size > reply.length) throw bad('a cut capability');
      const { nr_areas } = SparseCap.decode(reply, at);
      if (nr_areas > (reply.length - at - SparseCap.size) / SparseArea.size)
        throw bad(`${nr_areas} mmap areas do not fit their capability`);
      return Array.from({ length: nr_areas }, (_, i) => {
        const area = SparseArea.decode(reply, at + SparseCap.size + i * SparseArea.size);
        return { offset: safeNumber(area.offset, 'an area offset'), size: safeNumber(area.size, 'an area') };
      });
    }
    least = at + CapHeader.size;
    at = cap.next;
  }
  return undefined;
}
