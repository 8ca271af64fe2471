/**
 * The client's memory as the server sees it: DMA addresses to mapped files. A file is mapped once, whole, however many
 * windows of it the client announces (a guest IOMMU sends hundreds of 4 KiB windows of one file). Windows without a
 * file are remembered and cannot be reached. Knows no messages.
 */
import { fstatSync } from 'node:fs';
import { type Mapping, native, type Region, type RegionTable } from '../sys/native.js';
import { LIMIT, refuse } from './protocol.js';

export interface DmaWindow {
  readonly address: bigint;
  readonly size: bigint;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Byte of the file that `address` names. */
  readonly offset: bigint;
}

/** A file, or a part of it, that is mapped for as long as windows use it. */
interface Backing {
  readonly key: string;
  readonly mapping: Mapping;
  /** First byte of the file in the mapping, and where the mapping ends. */
  readonly start: bigint;
  readonly end: bigint;
  users: number;
}

interface Entry extends DmaWindow {
  readonly backing: Backing | undefined;
}

const TOP = 1n << 64n;
/** Distinct mappings of one client: a client with more memory files than this is not one. */
const MAX_BACKINGS = 256;
/** Address space that one client may take of this process, which has 128 TiB for all. */
const MAX_MAPPED = 1n << 44n;
const PAGE = 4096n;

export class DmaTable implements Disposable {
  /** Sorted by address, without overlaps. */
  #entries: Entry[] = [];
  #backings: Backing[] = [];
  #table: RegionTable | undefined;
  #version = 0;

  /** Changes whenever a table taken before is out of date. */
  get version(): number {
    return this.#version;
  }

  /** The windows, sorted by address. */
  get windows(): readonly DmaWindow[] {
    return this.#entries;
  }

  /** Mappings that exist for the windows. */
  get mappings(): number {
    return this.#backings.length;
  }

  /**
   * The memory that can be reached now, for queues. Windows that follow each other in address and file are one region.
   * Valid until `version` changes.
   */
  table(): RegionTable {
    this.#table ??= new native.RegionTable(this.#regions());
    return this.#table;
  }

  /**
   * Adds a window. `fd` stays the caller's, who may close it at once. Throws (scope `message`) EEXIST for an overlap,
   * EINVAL for a window that is empty, wraps, or leaves its file, ENOSPC when there are too many.
   */
  map(window: DmaWindow, fd: number | undefined): void {
    const { address, size } = window;
    if (size <= 0n || address + size > TOP)
      throw refuse('EINVAL', `a window of ${size} bytes at 0x${address.toString(16)}`);
    const at = this.#search(address);
    const next = this.#entries[at];
    if (next && next.address < address + size)
      throw refuse('EEXIST', `a window at 0x${address.toString(16)} overlaps 0x${next.address.toString(16)}`);
    if (this.#entries.length >= LIMIT.DMA_MAPS) throw refuse('ENOSPC', `more than ${LIMIT.DMA_MAPS} windows`);
    const backing = fd === undefined ? undefined : this.#backingFor(fd, window);
    if (backing) backing.users++;
    this.#entries.splice(at, 0, { ...window, backing });
    this.#changed();
  }

  /**
   * Removes the windows within [address, address + size). More than one may lie there: a guest IOMMU announces pages and
   * withdraws tables, as kernel VFIO allows. Throws (scope `message`) ENOENT when there is none, EINVAL when one lies
   * there only in part.
   */
  unmap(address: bigint, size: bigint): void {
    if (size <= 0n || address + size > TOP)
      throw refuse('EINVAL', `cannot unmap ${size} bytes at 0x${address.toString(16)}`);
    const from = this.#search(address);
    let to = from;
    for (let e = this.#entries[to]; e && e.address < address + size; e = this.#entries[++to])
      if (e.address < address || e.address + e.size > address + size)
        throw refuse('EINVAL', `0x${address.toString(16)} + ${size} is only a part of a window`);
    if (to === from) throw refuse('ENOENT', `no window at 0x${address.toString(16)}`);
    this.#release(this.#entries.splice(from, to - from));
  }

  /** Removes every window. */
  clear(): void {
    this.#release(this.#entries.splice(0));
  }

  [Symbol.dispose](): void {
    this.clear();
  }

  #release(gone: Entry[]): void {
    for (const { backing } of gone) {
      if (!backing || --backing.users > 0) continue;
      this.#backings.splice(this.#backings.indexOf(backing), 1);
      backing.mapping.close();
    }
    this.#changed();
  }

  #changed(): void {
    this.#version++;
    // Whoever still reads it gets EBADF; memory goes when the last queue made from it is closed.
    this.#table?.close();
    this.#table = undefined;
  }

  /** Index of the first window that ends after `address`. */
  #search(address: bigint): number {
    let low = 0;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const e = this.#entries[middle]!;
      if (e.address + e.size <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #regions(): Region[] {
    const regions: { address: bigint; size: number; mapping: Mapping; offset: number }[] = [];
    for (const { address, size, offset, backing } of this.#entries) {
      if (!backing) continue;
      const inMapping = Number(offset - backing.start);
      const last = regions.at(-1);
      const follows =
        last &&
        last.mapping === backing.mapping &&
        last.address + BigInt(last.size) === address &&
        last.offset + last.size === inMapping;
      if (follows) last.size += Number(size);
      else regions.push({ address, size: Number(size), mapping: backing.mapping, offset: inMapping });
    }
    return regions;
  }

  /** The mapping that holds the window's bytes; undefined when the fd has no bytes to map. */
  #backingFor(fd: number, window: DmaWindow): Backing | undefined {
    const stat = fstatSync(fd, { bigint: true });
    // Devices (guest memory in /dev/dax, other devices' BARs) are legal here, and nobody's rings lie in them.
    if (stat.isCharacterDevice()) return undefined;
    if (!stat.isFile()) throw refuse('EINVAL', 'the fd of a window is not a file');
    const end = window.offset + window.size;
    if (end > stat.size)
      throw refuse('EINVAL', `a window ends at byte ${end} of a file of ${stat.size} bytes`);
    const key = `${stat.dev}:${stat.ino}`;
    const known = this.#backings.find(
      (b) => b.key === key && b.start <= window.offset && end <= b.end && !b.mapping.faulted,
    );
    if (known) return known;
    if (this.#backings.length >= MAX_BACKINGS)
      throw refuse('ENOSPC', `more than ${MAX_BACKINGS} memory files`);
    const free = this.#backings.reduce((left, b) => left - (b.end - b.start), MAX_MAPPED);
    const backing =
      tryMap(fd, key, 0n, stat.size, free) ??
      // The file may be too large where its window is not.
      tryMap(fd, key, window.offset - (window.offset % PAGE), end, free);
    // Firmware and other read-only files: nobody's rings lie in them either.
    if (backing === 'forbidden') return undefined;
    if (!backing) throw refuse('ENOMEM', `cannot map ${window.size} bytes of a file of ${stat.size} bytes`);
    this.#backings.push(backing);
    return backing;
  }
}

/**
 * Always writable, also for windows that the device may only read: a queue that writes where its driver forbids it hurts
 * that driver alone, while a store to a read-only mapping would end this process. Undefined when it cannot be done;
 * `forbidden` when the file cannot be written.
 */
function tryMap(
  fd: number,
  key: string,
  start: bigint,
  end: bigint,
  limit: bigint,
): Backing | 'forbidden' | undefined {
  if (end - start > limit || end > BigInt(Number.MAX_SAFE_INTEGER)) return undefined;
  try {
    const mapping = new native.Mapping(fd, Number(start), Number(end - start), true);
    return { key, mapping, start, end, users: 0 };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return code === 'EACCES' || code === 'EPERM' ? 'forbidden' : undefined;
  }
}
