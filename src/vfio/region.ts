/** What a VFIO device's region is, and which parts of it can be mapped (VFIO_DEVICE_GET_REGION_INFO). */
import type { RegionInfo } from '../pci/handle.js';
import { REGION_FLAG, RegionInfoHeader, safeNumber, sparseAreas } from '../pci/vfio-abi.js';
import { ioctl } from '../sys/ioctl.js';
import { VhostPciError } from '../util/errors.js';
import { VFIO } from './abi.js';

export interface VfioRegion extends RegionInfo {
  /** Where the region starts in the device's fd, for pread, pwrite and mmap. */
  readonly fdOffset: number;
}

/** Longest description that makes sense. */
const MOST_BYTES = 64 << 10;

/** A region that the device lacks has size 0: the kernel answers EINVAL for some of those. */
export function readRegionInfo(fd: number, index: number, name: string): VfioRegion {
  const ask = (argsz: number): Buffer => {
    const argument = Buffer.alloc(argsz);
    RegionInfoHeader.encodeInto(argument, 0, { argsz, index });
    ioctl(fd, VFIO.DEVICE_GET_REGION_INFO, argument, `${name}: ask for region ${index}`);
    return argument;
  };
  let reply: Buffer;
  try {
    reply = ask(RegionInfoHeader.size);
    // The first answer tells how much there is to say.
    const { argsz } = RegionInfoHeader.decode(reply);
    if (argsz > reply.length && argsz <= MOST_BYTES) reply = ask(argsz);
  } catch (error) {
    if ((error as VhostPciError).code !== 'EINVAL') throw error;
    return { size: 0, readable: false, writable: false, areas: [], fdOffset: 0 };
  }
  return decodeRegionInfo(reply);
}

/** Decodes a whole answer. Throws `EPROTO` when it contradicts itself. */
export function decodeRegionInfo(reply: Buffer): VfioRegion {
  const info = RegionInfoHeader.decode(reply);
  const size = safeNumber(info.size, `a region ${info.index}`);
  const fdOffset = safeNumber(info.offset, `an offset of region ${info.index}`);
  const mappable = (info.flags & REGION_FLAG.MMAP) !== 0 && size > 0;
  const sparse = mappable && info.flags & REGION_FLAG.CAPS ? sparseAreas(reply, info.cap_offset) : undefined;
  const areas = sparse ?? (mappable ? [{ offset: 0, size }] : []);
  if (areas.some((a) => a.offset + a.size > size))
    throw new VhostPciError('connection', 'EPROTO', `an area of region ${info.index} ends behind the region`);
  return {
    size,
    readable: (info.flags & REGION_FLAG.READ) !== 0,
    writable: (info.flags & REGION_FLAG.WRITE) !== 0,
    areas,
    fdOffset,
  };
}
