/**
 * What a client knows about the server's regions: their information, the fds that came with it, and the I/O fds. Each is
 * asked for once and kept; a question that failed is asked again. Owns the fds.
 */
import { closeSync, fstatSync } from 'node:fs';
import { RegionInfoHeader } from '../pci/vfio-abi.js';
import { errorText } from '../util/errors.js';
import type { ClientConnection } from './connection.js';
import { LIMIT, RegionIoFds } from './protocol.js';
import { type DecodedRegionInfo, decodeIoFds, decodeRegionInfo } from './region-info.js';
import type { IoFd } from './served-device.js';

export interface KnownRegion {
  readonly info: DecodedRegionInfo;
  readonly fd: number | undefined;
}

export class ClientRegions implements AsyncDisposable {
  readonly #connection: ClientConnection;
  readonly #broken: (why: string) => Error;
  readonly #regions = new Map<number, Promise<KnownRegion>>();
  readonly #ioFds = new Map<number, Promise<readonly IoFd[]>>();

  /** `broken` ends the connection with a server that cannot be trusted, and gives the error to throw. */
  constructor(connection: ClientConnection, broken: (why: string) => Error) {
    this.#connection = connection;
    this.#broken = broken;
  }

  region(index: number): Promise<KnownRegion> {
    return once(this.#regions, index, () => this.#askRegion(index));
  }

  /** Empty when the server has none. */
  ioFds(index: number): Promise<readonly IoFd[]> {
    return once(this.#ioFds, index, () => this.#askIoFds(index));
  }

  /** Closes the fds. The connection has to be closed before, so that no reply brings more. */
  async [Symbol.asyncDispose](): Promise<void> {
    const fds = new Set<number>();
    for (const known of await Promise.allSettled(this.#regions.values()))
      if (known.status === 'fulfilled' && known.value.fd !== undefined) fds.add(known.value.fd);
    for (const known of await Promise.allSettled(this.#ioFds.values()))
      if (known.status === 'fulfilled') for (const { fd } of known.value) fds.add(fd);
    closeEach(fds);
  }

  async #askRegion(index: number): Promise<KnownRegion> {
    // vfio-user, "Message sizes": the first reply tells how much the whole one takes.
    const first = await this.#askRegionInfo(index, RegionInfoHeader.size);
    if (first.info.argsz <= RegionInfoHeader.size) return usable(first);
    if (first.fd !== undefined) closeSync(first.fd);
    return usable(await this.#askRegionInfo(index, first.info.argsz));
  }

  async #askRegionInfo(index: number, argsz: number): Promise<KnownRegion> {
    const payload = RegionInfoHeader.encode({ argsz, index });
    const answer = await this.#connection.request('DEVICE_GET_REGION_INFO', { payload, maxFds: 1 });
    const info = this.#trust(answer.fds, () => decodeRegionInfo(answer.payload, index));
    return { info, fd: answer.fds[0] };
  }

  async #askIoFds(index: number): Promise<readonly IoFd[]> {
    const payload = RegionIoFds.encode({ argsz: 4096, index });
    const options = { payload, maxFds: LIMIT.MESSAGE_FDS };
    let answer: Awaited<ReturnType<ClientConnection['request']>>;
    try {
      answer = await this.#connection.request('DEVICE_GET_REGION_IO_FDS', options);
    } catch (error) {
      // An optional feature: a server without it refuses.
      if ((error as { scope?: string }).scope === 'message') return [];
      throw error;
    }
    const ioFds = this.#trust(answer.fds, () => decodeIoFds(answer.payload, index, answer.fds));
    const used = new Set(ioFds.map((io) => io.fd));
    closeEach(answer.fds.filter((fd) => !used.has(fd)));
    return ioFds;
  }

  #trust<T>(fds: readonly number[], decode: () => T): T {
    try {
      return decode();
    } catch (cause) {
      closeEach(fds);
      throw this.#broken(`wrong information on a region: ${errorText(cause)}`);
    }
  }
}

/** Without a file behind it, nothing of a region can be mapped. */
function usable({ info, fd }: KnownRegion): KnownRegion {
  return fd !== undefined && fstatSync(fd).isFile() ? { info, fd } : { info: { ...info, areas: [] }, fd };
}

function closeEach(fds: Iterable<number>): void {
  for (const fd of fds) closeSync(fd);
}

/** The promise kept under `key`, made on the first call; one that fails is forgotten. */
function once<T>(kept: Map<number, Promise<T>>, key: number, make: () => Promise<T>): Promise<T> {
  let promise = kept.get(key);
  if (!promise) {
    promise = make();
    kept.set(key, promise);
    promise.catch(() => kept.delete(key));
  }
  return promise;
}
