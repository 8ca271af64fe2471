/**
 * What a server does for each command. A handler gets a request whose size and number of fds are right, returns the
 * reply's payload, and throws an error with an errno as code. It takes the fds that it keeps out of the list.
 */
import { IRQ } from '../pci/handle.js';
import {
  DEVICE_FLAG,
  DeviceInfo,
  IRQ_INFO_FLAG,
  IRQ_SET,
  IrqInfo,
  IrqSet,
  NUM_IRQS,
  NUM_REGIONS,
  RegionInfoHeader,
} from '../pci/vfio-abi.js';
import { isEventfd } from '../sys/eventfd.js';
import type { Log } from '../util/log.js';
import type { DmaTable } from './dma-table.js';
import type { EventSlot, IrqVectors } from './irq-vectors.js';
import {
  type CommandName,
  connectionError,
  DMA_MAP_FLAG,
  DMA_UNMAP_FLAG,
  DmaMap,
  DmaUnmap,
  LIMIT,
  RegionAccess,
  RegionIoFds,
  RingEventfdsHeader,
  refuse,
  Version,
  WriteMulti,
  WriteOne,
} from './protocol.js';
import { encodeIoFds, encodeRegionInfo } from './region-info.js';
import { encodeRingEventfds, ringsInReply } from './ring-eventfds.js';
import type { ServedDevice, ServedRegion } from './served-device.js';
import { type Capabilities, encodeCapabilities, MAJOR, MINOR, parseCapabilities } from './version.js';

export interface ServerContext {
  readonly device: ServedDevice;
  readonly log: Log;
  readonly irqs: IrqVectors;
  readonly dma: DmaTable;
  /** The client's capabilities, once VERSION is done. */
  client: Capabilities | undefined;
}

export interface Request {
  readonly payload: Buffer;
  readonly fds: number[];
}

interface Reply {
  readonly payload?: Buffer;
  readonly fds?: readonly number[];
}

type Handler = (request: Request, context: ServerContext) => Reply | undefined | Promise<Reply | undefined>;

const unsupported: Handler = () => {
  throw refuse('ENOTSUP', 'not offered');
};

export const HANDLERS: { readonly [name in CommandName]: Handler } = {
  VERSION: version,
  DMA_MAP: dmaMap,
  DMA_UNMAP: dmaUnmap,
  DEVICE_GET_INFO: deviceInfo,
  DEVICE_GET_REGION_INFO: regionInfo,
  DEVICE_GET_REGION_IO_FDS: regionIoFds,
  DEVICE_GET_IRQ_INFO: irqInfo,
  DEVICE_SET_IRQS: setIrqs,
  REGION_READ: regionRead,
  REGION_WRITE: regionWrite,
  DMA_READ: unsupported,
  DMA_WRITE: unsupported,
  DEVICE_RESET: async (_request, { device }) => {
    await device.reset();
    return undefined;
  },
  REGION_WRITE_MULTI: regionWriteMulti,
  // The state of the receiving side's device does not migrate.
  DEVICE_FEATURE: unsupported,
  MIG_DATA_READ: unsupported,
  MIG_DATA_WRITE: unsupported,
  RING_EVENTFDS: ringEventfds,
};

function version({ payload }: Request, context: ServerContext): Reply {
  const { major, minor } = Version.decode(payload);
  if (major !== MAJOR) throw connectionError('ENOTSUP', `major version ${major}`);
  const client = parseCapabilities(payload.subarray(Version.size));
  // Arithmetic, because a page size may lie beyond the 32 bits of the bit operators.
  if (Math.floor(client.pageSizes / LIMIT.PAGE_SIZE) % 2 === 0)
    throw connectionError('EINVAL', `page sizes 0x${client.pageSizes.toString(16)} without 4096`);
  context.client = client;
  const reply = Version.encode({ major: MAJOR, minor: Math.min(minor, MINOR) });
  return { payload: Buffer.concat([reply, encodeCapabilities(client)]) };
}

function needArgsz(argsz: number, least: number): void {
  if (argsz < least) throw refuse('EINVAL', `argsz ${argsz}, at least ${least} is needed`);
}

async function dmaMap({ payload, fds }: Request, { device, dma }: ServerContext): Promise<undefined> {
  const m = DmaMap.decode(payload);
  needArgsz(m.argsz, DmaMap.size);
  const known = DMA_MAP_FLAG.READ | DMA_MAP_FLAG.WRITE;
  if (m.flags === 0 || m.flags & ~known) throw refuse('EINVAL', `flags 0x${m.flags.toString(16)}`);
  const readable = (m.flags & DMA_MAP_FLAG.READ) !== 0;
  const writable = (m.flags & DMA_MAP_FLAG.WRITE) !== 0;
  dma.map({ address: m.address, size: m.size, offset: m.offset, readable, writable }, fds[0]);
  await device.dmaChanged(dma);
}

async function dmaUnmap({ payload }: Request, { device, dma }: ServerContext): Promise<Reply> {
  const m = DmaUnmap.decode(payload);
  needArgsz(m.argsz, DmaUnmap.size);
  if (m.flags & ~DMA_UNMAP_FLAG.ALL) throw refuse('EINVAL', `flags 0x${m.flags.toString(16)}`);
  if (m.flags & DMA_UNMAP_FLAG.ALL) {
    if (m.address !== 0n || m.size !== 0n) throw refuse('EINVAL', 'unmapping all has no address and no size');
    dma.clear();
  } else dma.unmap(m.address, m.size);
  // "Must release all references to that DMA region before replying."
  await device.dmaChanged(dma);
  return { payload: payload.subarray(0, DmaUnmap.size) };
}

function deviceInfo({ payload }: Request): Reply {
  needArgsz(DeviceInfo.decode(payload).argsz, DeviceInfo.size);
  return {
    payload: DeviceInfo.encode({
      argsz: DeviceInfo.size,
      flags: DEVICE_FLAG.RESET | DEVICE_FLAG.PCI,
      num_regions: NUM_REGIONS,
      num_irqs: NUM_IRQS,
    }),
  };
}

function regionInfo({ payload }: Request, { device, client }: ServerContext): Reply {
  const { argsz, index } = RegionInfoHeader.decode(payload);
  needArgsz(argsz, RegionInfoHeader.size);
  if (index >= NUM_REGIONS) throw refuse('EINVAL', `region ${index}`);
  return encodeRegionInfo(index, device.regions[index], argsz, client!.maxMessageFds > 0);
}

function regionIoFds({ payload }: Request, { device, client }: ServerContext): Reply {
  const { argsz, flags, index, count } = RegionIoFds.decode(payload);
  needArgsz(argsz, RegionIoFds.size);
  if (flags !== 0 || count !== 0) throw refuse('EINVAL', 'flags and count have to be 0');
  if (index >= NUM_REGIONS || !device.regions[index]) throw refuse('EINVAL', `region ${index}`);
  return encodeIoFds(index, device.ioFds?.(index) ?? [], argsz, client!.maxMessageFds);
}

function ringEventfds({ payload }: Request, { device, client }: ServerContext): Reply {
  const { argsz, flags, first, count } = RingEventfdsHeader.decode(payload);
  needArgsz(argsz, RingEventfdsHeader.size);
  if (flags !== 0) throw refuse('EINVAL', `flags 0x${flags.toString(16)}`);
  if (!device.takeRings) throw refuse('ENOTSUP', 'not offered');
  const most = Math.min(count, ringsInReply(argsz, client!.maxMessageFds));
  const rings = device.takeRings(first, most);
  if (!rings) throw refuse('EAGAIN', 'no peer is connected');
  return encodeRingEventfds(first, rings);
}

/** INTx is a level: it masks itself when raised. The vectors of the others can be set one by one. */
function irqFlags(index: number): number {
  if (index === IRQ.INTX) return IRQ_INFO_FLAG.EVENTFD | IRQ_INFO_FLAG.MASKABLE | IRQ_INFO_FLAG.AUTOMASKED;
  return index === IRQ.MSI || index === IRQ.MSIX
    ? IRQ_INFO_FLAG.EVENTFD | IRQ_INFO_FLAG.MASKABLE
    : IRQ_INFO_FLAG.EVENTFD;
}

function irqInfo({ payload }: Request, { device }: ServerContext): Reply {
  const { argsz, index } = IrqInfo.decode(payload);
  needArgsz(argsz, IrqInfo.size);
  if (index >= NUM_IRQS) throw refuse('EINVAL', `interrupt index ${index}`);
  const count = device.irqCount(index);
  return { payload: IrqInfo.encode({ argsz: IrqInfo.size, flags: irqFlags(index), index, count }) };
}

function setIrqs({ payload, fds }: Request, { device, irqs }: ServerContext): undefined {
  const { argsz, flags, index, start, count } = IrqSet.decode(payload);
  needArgsz(argsz, IrqSet.size);
  const data = flags & IRQ_SET.DATA_MASK;
  const action = flags & IRQ_SET.ACTION_MASK;
  const oneOf = (value: number, ...allowed: number[]) => allowed.includes(value);
  if (
    flags & ~(IRQ_SET.DATA_MASK | IRQ_SET.ACTION_MASK) ||
    !oneOf(data, IRQ_SET.DATA_NONE, IRQ_SET.DATA_BOOL, IRQ_SET.DATA_EVENTFD) ||
    !oneOf(action, IRQ_SET.MASK, IRQ_SET.UNMASK, IRQ_SET.TRIGGER)
  )
    throw refuse('EINVAL', `flags 0x${flags.toString(16)}`);
  if (index >= NUM_IRQS) throw refuse('EINVAL', `interrupt index ${index}`);
  if (action !== IRQ_SET.TRIGGER && !(irqFlags(index) & IRQ_INFO_FLAG.MASKABLE))
    throw refuse('EINVAL', `interrupt index ${index} cannot be masked`);
  // The fields are 32 bits wide and numbers here: the sum does not wrap.
  if (start + count > device.irqCount(index))
    throw refuse('EINVAL', `vectors ${start} + ${count} of ${device.irqCount(index)}`);
  const bools = payload.subarray(IrqSet.size);
  if (data === IRQ_SET.DATA_BOOL ? bools.length !== count : data === IRQ_SET.DATA_NONE && bools.length > 0)
    throw connectionError('EINVAL', `${bools.length} bytes of data for ${count} vectors`);
  if (fds.length > 0 && (data !== IRQ_SET.DATA_EVENTFD || fds.length !== count))
    throw connectionError('EINVAL', `${fds.length} file descriptors for ${count} vectors`);
  if (count === 0) {
    // "A count (and start) of 0, with data flags of DATA_NONE disables all interrupts of the index."
    if (start !== 0 || data !== IRQ_SET.DATA_NONE || action !== IRQ_SET.TRIGGER)
      throw refuse('EINVAL', 'no vectors');
    irqs.clear(index);
    return;
  }
  if (data === IRQ_SET.DATA_EVENTFD) {
    for (const fd of fds)
      if (!isEventfd(fd)) throw connectionError('EINVAL', 'a file descriptor that is no eventfd');
    const slot: EventSlot =
      action === IRQ_SET.TRIGGER ? 'trigger' : action === IRQ_SET.MASK ? 'onMask' : 'onUnmask';
    const kept = fds.splice(0);
    irqs.set(index, start, kept.length > 0 ? kept : new Array<undefined>(count).fill(undefined), slot);
    return;
  }
  for (let i = 0; i < count; i++) {
    if (data === IRQ_SET.DATA_BOOL && bools[i] === 0) continue;
    if (action === IRQ_SET.TRIGGER) irqs.trigger(index, start + i);
    else irqs.setMasked(index, start + i, 1, action === IRQ_SET.MASK);
  }
}

/** The region, when [offset, offset + count) lies within it. */
function reach(device: ServedDevice, index: number, offset: bigint, count: number): ServedRegion {
  const region = index < NUM_REGIONS ? device.regions[index] : undefined;
  if (!region) throw refuse('EINVAL', `region ${index}`);
  if (offset + BigInt(count) > BigInt(region.size))
    throw refuse(
      'EINVAL',
      `${count} bytes at 0x${offset.toString(16)} of region ${index} (${region.size} bytes)`,
    );
  return region;
}

async function regionRead({ payload }: Request, { device, client }: ServerContext): Promise<Reply> {
  const { offset, region, count } = RegionAccess.decode(payload);
  if (count > Math.min(LIMIT.DATA_XFER, client!.maxDataTransfer)) throw refuse('EINVAL', `${count} bytes`);
  if (!reach(device, region, offset, count).readable)
    throw refuse('EPERM', `region ${region} is not readable`);
  const data = count > 0 ? await device.read(region, Number(offset), count) : Buffer.alloc(0);
  return { payload: Buffer.concat([RegionAccess.encode({ offset, region, count: data.length }), data]) };
}

async function writeRegion(
  device: ServedDevice,
  region: number,
  offset: bigint,
  data: Buffer,
): Promise<void> {
  if (!reach(device, region, offset, data.length).writable)
    throw refuse('EPERM', `region ${region} is not writable`);
  if (data.length > 0) await device.write(region, Number(offset), data);
}

async function regionWrite({ payload }: Request, { device }: ServerContext): Promise<Reply> {
  const { offset, region, count } = RegionAccess.decode(payload);
  const data = payload.subarray(RegionAccess.size);
  if (data.length !== count) throw connectionError('EINVAL', `${data.length} bytes of data, count ${count}`);
  await writeRegion(device, region, offset, data);
  return { payload: RegionAccess.encode({ offset, region, count }) };
}

async function regionWriteMulti({ payload }: Request, { device }: ServerContext): Promise<Reply> {
  const { wr_cnt } = WriteMulti.decode(payload);
  const rows = payload.subarray(WriteMulti.size);
  if (wr_cnt * BigInt(WriteOne.size) !== BigInt(rows.length))
    throw connectionError('EINVAL', `${rows.length} bytes for ${wr_cnt} writes`);
  for (let at = 0; at < rows.length; at += WriteOne.size) {
    const { offset, region, count, data } = WriteOne.decode(rows, at);
    if (count > data.length)
      throw refuse('EINVAL', `a write of ${count} bytes in a place for ${data.length}`);
    await writeRegion(device, region, offset, data.subarray(0, count));
  }
  return { payload: WriteMulti.encode({ wr_cnt }) };
}
