/**
 * vfio-user on the wire: header, commands, structs, flags and what each command may carry (QEMU's
 * docs/interop/vfio-user.rst, version 0.0). Both sides use these rows. Holds no state and performs no request.
 */
import { constants } from 'node:os';
import { DeviceInfo, IrqInfo, IrqSet, RegionInfoHeader } from '../pci/vfio-abi.js';
import type { Framing } from '../sys/framed-socket.js';
import { VhostPciError } from '../util/errors.js';
import { type Struct, struct } from '../util/struct.js';

/** vfio-user, "Header". `size` counts the header too. */
export const Header = struct('vfio_user_header', 16, {
  id: 'u16',
  command: 'u16',
  size: 'u32',
  flags: 'u32',
  error: 'u32',
});

export const HEADER_FLAG = { TYPE_MASK: 0xf, COMMAND: 0, REPLY: 1, NO_REPLY: 0x10, ERROR: 0x20 } as const;

// What follows the header, beside the structs of linux/vfio.h (pci/vfio-abi.ts).
export const Version = struct('vfio_user_version', 4, { major: 'u16', minor: 'u16' });
export const DmaMap = struct('vfio_user_dma_map', 32, {
  argsz: 'u32',
  flags: 'u32',
  offset: 'u64',
  address: 'u64',
  size: 'u64',
});
export const DmaUnmap = struct('vfio_user_dma_unmap', 24, {
  argsz: 'u32',
  flags: 'u32',
  address: 'u64',
  size: 'u64',
});
export const RegionIoFds = struct('vfio_user_region_io_fds', 16, {
  argsz: 'u32',
  flags: 'u32',
  index: 'u32',
  count: 'u32',
});
export const IoEventFd = struct('vfio_user_sub_region_ioeventfd', 40, {
  offset: 'u64',
  size: 'u64',
  fd_index: 'u32',
  type: 'u32',
  flags: 'u32',
  padding: 'u32',
  datamatch: 'u64',
});
export const RegionAccess = struct('vfio_user_region_access', 16, {
  offset: 'u64',
  region: 'u32',
  count: 'u32',
});
export const DmaAccess = struct('vfio_user_dma_access', 16, { address: 'u64', count: 'u64' });
export const WriteMulti = struct('vfio_user_write_multi', 8, { wr_cnt: 'u64' });
export const WriteOne = struct('vfio_user_write_one', 24, {
  offset: 'u64',
  region: 'u32',
  count: 'u32',
  data: { bytes: 8 },
});
// docs/protocol.md, P7: not of the specification.
export const RingEventfdsHeader = struct('vpci_ring_eventfds', 16, {
  argsz: 'u32',
  flags: 'u32',
  first: 'u32',
  count: 'u32',
});
export const RingEventfdsRow = struct('vpci_ring_eventfds_row', 8, { kick: 'u32', call: 'u32' });
export const DeviceFeature = struct('vfio_device_feature', 8, { argsz: 'u32', flags: 'u32' });
export const MigrationData = struct('vfio_user_mig_data', 8, { argsz: 'u32', size: 'u32' });

export const DMA_MAP_FLAG = { READ: 1, WRITE: 2 } as const;
export const DMA_UNMAP_FLAG = { ALL: 2 } as const;
export const IO_FD_TYPE_IOEVENTFD = 0;
/** KVM_IOEVENTFD_FLAG_DATAMATCH */
export const IOEVENTFD_FLAG = { DATAMATCH: 1 } as const;

/** What we offer and accept; the specification's defaults and QEMU's upper limits. */
export const LIMIT = {
  MESSAGE_FDS: 16,
  DATA_XFER: 1 << 20,
  /** As many regions as an address space of the engine may have. */
  DMA_MAPS: 4096,
  PAGE_SIZE: 4096,
  /** VERSION's JSON; QEMU's is below 200 bytes. */
  VERSION_JSON: 16 << 10,
  /** Reply with region capabilities that a client asks for. */
  REGION_INFO: 64 << 10,
  /** As QEMU's VFIO_USER_MULTI_MAX, with room. */
  WRITE_MULTI: 1024,
} as const;

/** What a command's messages carry after the header. */
export interface CommandRow {
  readonly command: number;
  readonly name: string;
  /** Who asks. */
  readonly from: 'client' | 'server';
  /** The fixed part of the request, or undefined when it has no payload. */
  readonly request: Struct<Record<string, never>> | undefined;
  /** Bytes that may follow the fixed part. */
  readonly extra: number;
  /** Most file descriptors that the request may carry. */
  readonly fds: number;
}

const row = (
  command: number,
  name: string,
  request?: { readonly size: number },
  more: { extra?: number; fds?: number; from?: 'server' } = {},
): CommandRow => ({
  command,
  name,
  from: more.from ?? 'client',
  request: request as CommandRow['request'],
  extra: more.extra ?? 0,
  fds: more.fds ?? 0,
});

/** vfio-user, "Commands". 14 was DIRTY_PAGES and is gone. */
export const COMMANDS = {
  VERSION: row(1, 'VERSION', Version, { extra: LIMIT.VERSION_JSON }),
  DMA_MAP: row(2, 'DMA_MAP', DmaMap, { fds: 1 }),
  // The old dirty bitmap request followed; its flag is refused, its bytes are not an error of the framing.
  DMA_UNMAP: row(3, 'DMA_UNMAP', DmaUnmap, { extra: 16 }),
  DEVICE_GET_INFO: row(4, 'DEVICE_GET_INFO', DeviceInfo),
  DEVICE_GET_REGION_INFO: row(5, 'DEVICE_GET_REGION_INFO', RegionInfoHeader),
  DEVICE_GET_REGION_IO_FDS: row(6, 'DEVICE_GET_REGION_IO_FDS', RegionIoFds),
  DEVICE_GET_IRQ_INFO: row(7, 'DEVICE_GET_IRQ_INFO', IrqInfo),
  DEVICE_SET_IRQS: row(8, 'DEVICE_SET_IRQS', IrqSet, { extra: 4096, fds: LIMIT.MESSAGE_FDS }),
  REGION_READ: row(9, 'REGION_READ', RegionAccess),
  REGION_WRITE: row(10, 'REGION_WRITE', RegionAccess, { extra: LIMIT.DATA_XFER }),
  DMA_READ: row(11, 'DMA_READ', DmaAccess, { from: 'server' }),
  DMA_WRITE: row(12, 'DMA_WRITE', DmaAccess, { from: 'server', extra: LIMIT.DATA_XFER }),
  DEVICE_RESET: row(13, 'DEVICE_RESET'),
  REGION_WRITE_MULTI: row(15, 'REGION_WRITE_MULTI', WriteMulti, { extra: LIMIT.WRITE_MULTI * WriteOne.size }),
  DEVICE_FEATURE: row(16, 'DEVICE_FEATURE', DeviceFeature, { extra: 4096 }),
  MIG_DATA_READ: row(17, 'MIG_DATA_READ', MigrationData),
  MIG_DATA_WRITE: row(18, 'MIG_DATA_WRITE', MigrationData, { extra: LIMIT.DATA_XFER }),
  // Our own (docs/protocol.md, P7), far from what the specification may number next.
  RING_EVENTFDS: row(0x8000, 'RING_EVENTFDS', RingEventfdsHeader),
} as const satisfies Record<string, CommandRow>;

export type CommandName = keyof typeof COMMANDS;

const byNumber = new Map<number, CommandName>(
  (Object.keys(COMMANDS) as CommandName[]).map((name) => [COMMANDS[name].command, name]),
);

/** The name of a command number, or undefined. */
export const commandName = (command: number): CommandName | undefined => byNumber.get(command);

/** Longest message of either direction: a region access with all its data. */
const MAX_MESSAGE = Header.size + RegionAccess.size + LIMIT.DATA_XFER;

export const FRAMING: Framing = {
  headerBytes: Header.size,
  totalBytes(bytes) {
    const header = Header.decode(bytes);
    if (header.size < Header.size || header.size > MAX_MESSAGE)
      throw connectionError('EMSGSIZE', `a message of ${header.size} bytes`);
    const type = header.flags & HEADER_FLAG.TYPE_MASK;
    if (type !== HEADER_FLAG.COMMAND && type !== HEADER_FLAG.REPLY)
      throw connectionError('EPROTO', `a message of unknown type ${type}`);
    return header.size;
  },
};

/** A whole message. `payload` may come in parts. */
export function encodeMessage(
  header: { id: number; command: number; flags: number; error?: number },
  ...payload: readonly Uint8Array[]
): Buffer {
  const size = payload.reduce((n, part) => n + part.length, Header.size);
  return Buffer.concat([Header.encode({ ...header, size }), ...payload], size);
}

/** The request is answered with this errno; the connection goes on. */
export const refuse = (errno: string, why: string): VhostPciError => new VhostPciError('message', errno, why);

/** The connection cannot be trusted any more. */
export const connectionError = (errno: string, why: string, cause?: unknown): VhostPciError =>
  new VhostPciError('connection', errno, why, { cause });

/** The number that a reply carries for an error: its errno when `code` names one. */
export function errnoOf(error: unknown, otherwise: 'EIO' | 'EINVAL' = 'EIO'): number {
  const code = (error as { code?: unknown } | null)?.code;
  const known = constants.errno as Record<string, number>;
  return (typeof code === 'string' && Object.hasOwn(known, code) && known[code]) || known[otherwise]!;
}

/** `EINVAL` for 22; for messages. */
export function errnoName(errno: number): string {
  const known = Object.entries(constants.errno).find(([, number]) => number === errno);
  return known ? known[0] : `error ${errno}`;
}
