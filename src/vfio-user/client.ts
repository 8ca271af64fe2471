/**
 * A vfio-user client: a PCI device that another process serves, as PciHandle. Believes the server about its device,
 * and about nothing that could hurt this process.
 */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Forwarders } from '../pci/forwarders.js';
import type { PciHandle, RegionArea, RegionInfo, RingEventfds } from '../pci/handle.js';
import { DEVICE_FLAG, DeviceInfo, IRQ_SET, IrqInfo, IrqSet } from '../pci/vfio-abi.js';
import { type Mapping, type NotifyTarget, native } from '../sys/native.js';
import { errorText, usageError } from '../util/errors.js';
import type { StructValue } from '../util/struct.js';
import { ClientRegions, type KnownRegion } from './client-regions.js';
import { ClientConnection } from './connection.js';
import {
  type CommandName,
  connectionError,
  DMA_MAP_FLAG,
  DmaMap,
  DmaUnmap,
  LIMIT,
  RegionAccess,
  RingEventfdsHeader,
  RingEventfdsRow,
  refuse,
  Version,
} from './protocol.js';
import { decodeRingEventfds } from './ring-eventfds.js';
import { type Capabilities, encodeCapabilities, MAJOR, MINOR, parseCapabilities } from './version.js';

export interface ClientOptions {
  /** Limit for each request; default 5000, as QEMU's. */
  readonly timeoutMs?: number;
}

export class Client implements PciHandle {
  readonly name: string;
  readonly gone: Promise<Error>;
  readonly #connection: ClientConnection;
  #server: Capabilities | undefined;
  #info: StructValue<typeof DeviceInfo> | undefined;
  readonly #regions: ClientRegions;
  readonly #forwarders = new Forwarders((...at) => this.write(...at));
  /** Vectors set so far, by interrupt index. */
  readonly #vectors = new Map<number, number>();
  #disposed = false;

  /** Connects and agrees on a version. Throws a usage error when nobody listens on `path`. */
  static async connect(path: string, options: ClientOptions = {}): Promise<Client> {
    let fd: number;
    try {
      fd = native.unixConnect(path);
    } catch (cause) {
      const why = (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'no such socket' : errorText(cause);
      throw usageError(`cannot connect to ${path}: ${why}; start the device process first`, { cause });
    }
    return Client.fromFd(fd, `vfio-user:${path}`, options);
  }

  /** The same on a connection that somebody else made; takes over `fd`. */
  static async fromFd(fd: number, name: string, options: ClientOptions = {}): Promise<Client> {
    const client = new Client(fd, name, options.timeoutMs ?? 5000);
    try {
      await client.#negotiate();
    } catch (error) {
      await client[Symbol.asyncDispose]();
      throw error;
    }
    return client;
  }

  private constructor(fd: number, name: string, timeoutMs: number) {
    this.name = name;
    let tell: (error: Error) => void = () => {};
    this.gone = new Promise((resolve) => {
      tell = resolve;
    });
    this.#connection = new ClientConnection(fd, name, timeoutMs, (error) => {
      if (!this.#disposed) tell(error);
    });
    this.#regions = new ClientRegions(this.#connection, (why) => this.#broken(why));
  }

  async regionInfo(region: number): Promise<RegionInfo> {
    const { size, readable, writable, areas } = (await this.#region(region)).info;
    return { size, readable, writable, areas };
  }

  async read(region: number, offset: number, length: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let at = 0; at < length; ) {
      const count = Math.min(length - at, this.#transferLimit);
      const access = { offset: BigInt(offset + at), region, count };
      const { payload } = await this.#ask('REGION_READ', { payload: RegionAccess.encode(access) });
      const got = this.#decode('REGION_READ', RegionAccess, payload);
      const data = payload.subarray(RegionAccess.size);
      if (got.count !== count || data.length !== count)
        throw this.#broken(`a read of ${count} bytes was answered with ${data.length}`);
      parts.push(data);
      at += count;
    }
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }

  async write(region: number, offset: number, data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length; ) {
      const part = data.subarray(at, at + this.#transferLimit);
      const access = RegionAccess.encode({ offset: BigInt(offset + at), region, count: part.length });
      const { payload } = await this.#ask('REGION_WRITE', { payload: Buffer.concat([access, part]) });
      if (this.#decode('REGION_WRITE', RegionAccess, payload).count !== part.length)
        throw this.#broken(`a write of ${part.length} bytes was taken in part`);
      at += part.length;
    }
  }

  async map(region: number, area: RegionArea, writable: boolean): Promise<Mapping> {
    const { info, fd } = await this.#region(region);
    const within = info.areas.some(
      (a) => a.offset <= area.offset && area.offset + area.size <= a.offset + a.size,
    );
    if (!within || fd === undefined)
      throw refuse('EINVAL', `${this.name}: region ${region} cannot be mapped at ${area.offset}`);
    // vfio-user, "VFIO region info cap sparse mmap": the area's offset is added to the region's.
    return new native.Mapping(fd, info.fdOffset + area.offset, area.size, writable);
  }

  async notifyTarget(region: number, offset: number, value: number): Promise<NotifyTarget> {
    const ioFds = await this.#regions.ioFds(region);
    const io = ioFds.find((f) => f.offset === offset && (f.size === 0 || f.size === 2));
    return { fd: io ? io.fd : this.#forwarders.fd(region, offset, value) };
  }

  async takeRings(count: number): Promise<RingEventfds[]> {
    const rings: RingEventfds[] = [];
    try {
      while (rings.length < count) {
        const more = await this.#takeRings(rings.length, count - rings.length);
        if (more.length === 0) break;
        rings.push(...more);
      }
    } catch (error) {
      const { scope, code } = error as { scope?: string; code?: string };
      // A server without this extension, or without a peer any more, refuses: what is left goes through it.
      if (scope === 'message' && code !== 'ETIMEDOUT') return rings;
      closeRings(rings);
      // A late answer would leave rings without anybody who waits on their kicks.
      throw code === 'ETIMEDOUT' ? this.#broken('no reply to RING_EVENTFDS') : error;
    }
    return rings;
  }

  async #takeRings(first: number, count: number): Promise<RingEventfds[]> {
    const argsz = RingEventfdsHeader.size + count * RingEventfdsRow.size;
    const payload = RingEventfdsHeader.encode({ argsz, first, count });
    const answer = await this.#ask('RING_EVENTFDS', { payload, maxFds: LIMIT.MESSAGE_FDS });
    try {
      const rings = decodeRingEventfds(answer.payload, first, answer.fds);
      if (rings.length <= count) return rings;
      throw connectionError('EPROTO', `the eventfds of ${rings.length} rings, ${count} were asked`);
    } catch (cause) {
      for (const fd of answer.fds) closeSync(fd);
      throw this.#broken(`wrong reply to RING_EVENTFDS: ${errorText(cause)}`);
    }
  }

  async mapDma(fd: number, _mapping: Mapping, offset: number, address: bigint, size: number): Promise<void> {
    const payload = DmaMap.encode({
      argsz: DmaMap.size,
      flags: DMA_MAP_FLAG.READ | DMA_MAP_FLAG.WRITE,
      offset: BigInt(offset),
      address,
      size: BigInt(size),
    });
    await this.#ask('DMA_MAP', { payload, fds: [fd] });
  }

  async unmapDma(address: bigint, size: number): Promise<void> {
    const payload = DmaUnmap.encode({ argsz: DmaUnmap.size, address, size: BigInt(size) });
    await this.#ask('DMA_UNMAP', { payload });
  }

  async irqCount(index: number): Promise<number> {
    if (index >= this.#info!.num_irqs) return 0;
    const { payload } = await this.#ask('DEVICE_GET_IRQ_INFO', {
      payload: IrqInfo.encode({ argsz: IrqInfo.size, index }),
    });
    const { index: got, count } = this.#decode('DEVICE_GET_IRQ_INFO', IrqInfo, payload);
    // MSI-X, the largest, has 2048 vectors.
    if (got !== index || count > 2048) throw this.#broken(`${count} vectors of interrupt index ${got}`);
    return count;
  }

  async setIrqs(index: number, fds: readonly number[]): Promise<void> {
    const set = (flags: number, start: number, count: number, eventfds: readonly number[]) =>
      this.#ask('DEVICE_SET_IRQS', {
        payload: IrqSet.encode({ argsz: IrqSet.size, flags: flags | IRQ_SET.TRIGGER, index, start, count }),
        fds: eventfds,
      });
    const before = this.#vectors.get(index) ?? 0;
    this.#vectors.set(index, fds.length);
    if (fds.length === 0) {
      await set(IRQ_SET.DATA_NONE, 0, 0, []);
      return;
    }
    const chunk = Math.max(1, this.#server!.maxMessageFds);
    for (let start = 0; start < fds.length; start += chunk) {
      const part = fds.slice(start, start + chunk);
      await set(IRQ_SET.DATA_EVENTFD, start, part.length, part);
    }
    // An eventfd message without fds takes back what was set.
    if (before > fds.length) await set(IRQ_SET.DATA_EVENTFD, fds.length, before - fds.length, []);
  }

  async reset(): Promise<void> {
    if (!(this.#info!.flags & DEVICE_FLAG.RESET)) throw refuse('ENOTSUP', `${this.name} cannot be reset`);
    await this.#ask('DEVICE_RESET');
  }

  /** Closes the connection and every fd that came over it. Mappings stay valid. `gone` stays pending. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#connection.close(connectionError('ECANCELED', `${this.name}: closed`));
    this.#forwarders[Symbol.dispose]();
    await this.#regions[Symbol.asyncDispose]();
  }

  get #transferLimit(): number {
    return Math.min(this.#server!.maxDataTransfer, LIMIT.DATA_XFER);
  }

  #ask(command: CommandName, options: Parameters<ClientConnection['request']>[1] = {}) {
    return this.#connection.request(command, options);
  }

  /** The server cannot be trusted any more. */
  #broken(why: string): Error {
    const error = connectionError('EPROTO', `${this.name}: ${why}`);
    this.#connection.close(error);
    return error;
  }

  /** Runs a decoder of untrusted bytes; what it throws ends the connection. */
  #trust<T>(command: CommandName, decode: () => T): T {
    try {
      return decode();
    } catch (cause) {
      throw this.#broken(`wrong reply to ${command}: ${errorText(cause)}`);
    }
  }

  #decode<T>(command: CommandName, as: { decode(from: Uint8Array): T }, payload: Buffer): T {
    return this.#trust(command, () => as.decode(payload));
  }

  async #negotiate(): Promise<void> {
    const proposal = Buffer.concat([Version.encode({ major: MAJOR, minor: MINOR }), encodeCapabilities()]);
    const { payload } = await this.#ask('VERSION', { payload: proposal });
    const { major, minor } = this.#decode('VERSION', Version, payload);
    if (major !== MAJOR || minor > MINOR) throw this.#broken(`the server speaks version ${major}.${minor}`);
    this.#server = this.#trust('VERSION', () => parseCapabilities(payload.subarray(Version.size)));
    const info = await this.#ask('DEVICE_GET_INFO', {
      payload: DeviceInfo.encode({ argsz: DeviceInfo.size }),
    });
    this.#info = this.#decode('DEVICE_GET_INFO', DeviceInfo, info.payload);
    if (!(this.#info.flags & DEVICE_FLAG.PCI)) throw this.#broken('the server serves no PCI device');
  }

  async #region(index: number): Promise<KnownRegion> {
    if (index >= this.#info!.num_regions) throw refuse('EINVAL', `${this.name} has no region ${index}`);
    return this.#regions.region(index);
  }
}

function closeRings(rings: readonly RingEventfds[]): void {
  for (const { kick, call } of rings) for (const fd of [kick, call]) if (fd !== undefined) closeSync(fd);
}

/**
 * Connects as soon as the server listens: tries again every 150 ms, after one call of `onWaiting`, until `signal` is
 * aborted. Only the absence of a listener is waited out.
 */
export async function connectWhenThere(
  path: string,
  options: ClientOptions & { signal?: AbortSignal; onWaiting?: () => void } = {},
): Promise<Client> {
  for (let waiting = false; ; waiting = true) {
    try {
      return await Client.connect(path, options);
    } catch (error) {
      const cause = (error as { cause?: { code?: string } }).cause?.code;
      if (cause !== 'ENOENT' && cause !== 'ECONNREFUSED' && cause !== 'EAGAIN') throw error;
    }
    if (!waiting) options.onWaiting?.();
    await sleep(150, undefined, options.signal ? { signal: options.signal } : {});
  }
}
