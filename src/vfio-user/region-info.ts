/**
 * The two replies of variable length that describe a region: its information with sparse mmap areas, and its I/O fds.
 * Encodes for the server and decodes, distrusting every number, for the client.
 */
import type { RegionArea, RegionInfo } from '../pci/handle.js';
import {
  REGION_CAP_SPARSE_MMAP,
  REGION_FLAG,
  RegionInfoHeader,
  SparseArea,
  SparseCap,
  safeNumber,
  sparseAreas,
} from '../pci/vfio-abi.js';
import {
  connectionError,
  IO_FD_TYPE_IOEVENTFD,
  IOEVENTFD_FLAG,
  IoEventFd,
  LIMIT,
  RegionIoFds,
} from './protocol.js';
import type { IoFd, ServedRegion } from './served-device.js';

export interface EncodedReply {
  readonly payload: Buffer;
  readonly fds: number[];
}

/**
 * The reply to DEVICE_GET_REGION_INFO for a client that takes `argsz` bytes. When that is too little for the areas, it
 * gets the fixed part, with the size needed, and no fd (vfio-user, "Message sizes"): QEMU asks again, and wants
 * `cap_offset` to be valid in both replies.
 */
export function encodeRegionInfo(
  index: number,
  region: ServedRegion | undefined,
  argsz: number,
  mayPassFd: boolean,
): EncodedReply {
  const map = mayPassFd && region?.mappable?.areas.length ? region.mappable : undefined;
  const needed = RegionInfoHeader.size + (map ? SparseCap.size + map.areas.length * SparseArea.size : 0);
  let flags = 0;
  if (region?.readable) flags |= REGION_FLAG.READ;
  if (region?.writable) flags |= REGION_FLAG.WRITE;
  if (map) flags |= REGION_FLAG.MMAP | REGION_FLAG.CAPS;
  const header = RegionInfoHeader.encode({
    argsz: needed,
    flags,
    index,
    cap_offset: map ? RegionInfoHeader.size : 0,
    size: BigInt(region?.size ?? 0),
    offset: BigInt(map?.fdOffset ?? 0),
  });
  if (!map || argsz < needed) return { payload: header, fds: [] };
  const cap = SparseCap.encode({ id: REGION_CAP_SPARSE_MMAP, version: 1, nr_areas: map.areas.length });
  const areas = map.areas.map((a) => SparseArea.encode({ offset: BigInt(a.offset), size: BigInt(a.size) }));
  return { payload: Buffer.concat([header, cap, ...areas]), fds: [map.fd] };
}

export interface DecodedRegionInfo extends RegionInfo {
  /** Bytes that the whole reply needs. */
  readonly argsz: number;
  /** Where the region starts in the fd that came with the reply. */
  readonly fdOffset: number;
}

/** Decodes a reply. Areas are there only when the whole reply is. Throws (scope `connection`) what cannot be. */
export function decodeRegionInfo(payload: Buffer, index: number): DecodedRegionInfo {
  const h = RegionInfoHeader.decode(payload);
  if (h.index !== index) throw connectionError('EPROTO', `asked for region ${index}, got region ${h.index}`);
  if (h.argsz < RegionInfoHeader.size || h.argsz > LIMIT.REGION_INFO)
    throw connectionError('EPROTO', `information on region ${index} of ${h.argsz} bytes`);
  const size = safeNumber(h.size, `a region ${index}`);
  const fdOffset = safeNumber(h.offset, `a file offset of region ${index}`);
  const mappable = (h.flags & REGION_FLAG.MMAP) !== 0;
  const whole = payload.length >= h.argsz;
  let areas: RegionArea[] = [];
  if (mappable && whole)
    areas = (h.flags & REGION_FLAG.CAPS && sparseAreas(payload, h.cap_offset)) || [{ offset: 0, size }];
  for (const area of areas)
    if (area.offset + area.size > size)
      throw connectionError('EPROTO', `an area of region ${index} ends behind the region`);
  return {
    argsz: h.argsz,
    size,
    readable: (h.flags & REGION_FLAG.READ) !== 0,
    writable: (h.flags & REGION_FLAG.WRITE) !== 0,
    areas,
    fdOffset,
  };
}

/**
 * The reply to DEVICE_GET_REGION_IO_FDS. Sub-regions beyond the `maxFds` that the client takes in a message are left
 * out: they are reached by REGION_WRITE.
 */
export function encodeIoFds(
  index: number,
  ioFds: readonly IoFd[],
  argsz: number,
  maxFds: number,
): EncodedReply {
  const fds: number[] = [];
  const rows: Buffer[] = [];
  for (const { offset, size, fd } of ioFds) {
    if (!fds.includes(fd)) {
      if (fds.length >= maxFds) continue;
      fds.push(fd);
    }
    rows.push(
      IoEventFd.encode({
        offset: BigInt(offset),
        size: BigInt(size),
        fd_index: fds.indexOf(fd),
        type: IO_FD_TYPE_IOEVENTFD,
      }),
    );
  }
  const needed = RegionIoFds.size + rows.length * IoEventFd.size;
  const header = RegionIoFds.encode({ argsz: needed, index, count: rows.length });
  if (argsz < needed) return { payload: header, fds: [] };
  return { payload: Buffer.concat([header, ...rows]), fds };
}

/** Decodes a whole reply that came with `fds`. The fds stay the caller's, named or not. */
export function decodeIoFds(payload: Buffer, index: number, fds: readonly number[]): IoFd[] {
  const h = RegionIoFds.decode(payload);
  if (h.index !== index || h.count > (payload.length - RegionIoFds.size) / IoEventFd.size)
    throw connectionError('EPROTO', `I/O fds of region ${index} that do not fit their message`);
  const out: IoFd[] = [];
  for (let i = 0; i < h.count; i++) {
    const row = IoEventFd.decode(payload, RegionIoFds.size + i * IoEventFd.size);
    // A match on the value, or a mechanism other than eventfds, is not for us: REGION_WRITE remains.
    if (row.type !== IO_FD_TYPE_IOEVENTFD || row.flags & IOEVENTFD_FLAG.DATAMATCH) continue;
    const fd = fds[row.fd_index];
    if (fd === undefined) throw connectionError('EPROTO', `I/O fd ${row.fd_index} of ${fds.length}`);
    out.push({
      offset: safeNumber(row.offset, 'an I/O offset'),
      size: safeNumber(row.size, 'an I/O size'),
      fd,
    });
  }
  return out;
}
