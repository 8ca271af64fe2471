/**
 * Kernel VFIO as linux/vfio.h has it, as far as vfio-user does not share it: request numbers, and the structs of
 * container and group. Only declarations; the ABI test compares them with the header.
 */
import { struct } from '../util/struct.js';

/** _IO(VFIO_TYPE, VFIO_BASE + n): neither direction nor size is part of the number. */
const request = (n: number): number => (0x3b << 8) | (100 + n);

export const VFIO = {
  API_VERSION: 0,
  TYPE1v2_IOMMU: 3,
  GET_API_VERSION: request(0),
  CHECK_EXTENSION: request(1),
  SET_IOMMU: request(2),
  GROUP_GET_STATUS: request(3),
  GROUP_SET_CONTAINER: request(4),
  GROUP_GET_DEVICE_FD: request(6),
  DEVICE_GET_INFO: request(7),
  DEVICE_GET_REGION_INFO: request(8),
  DEVICE_GET_IRQ_INFO: request(9),
  DEVICE_SET_IRQS: request(10),
  DEVICE_RESET: request(11),
  IOMMU_MAP_DMA: request(13),
  IOMMU_UNMAP_DMA: request(14),
} as const;

export const GroupStatus = struct('vfio_group_status', 8, { argsz: 'u32', flags: 'u32' });
export const DmaMap = struct('vfio_iommu_type1_dma_map', 32, {
  argsz: 'u32',
  flags: 'u32',
  vaddr: 'u64',
  iova: 'u64',
  size: 'u64',
});
export const DmaUnmap = struct('vfio_iommu_type1_dma_unmap', 24, {
  argsz: 'u32',
  flags: 'u32',
  iova: 'u64',
  size: 'u64',
});

export const GROUP_FLAG = { VIABLE: 1, CONTAINER_SET: 2 } as const;
export const DMA_MAP_FLAG = { READ: 1, WRITE: 2 } as const;
