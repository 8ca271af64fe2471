/**
 * The memory of a peer: which parts of one file are the peer's guest-physical memory, and at which of the front-end's
 * addresses. Translates addresses and owns the file's fd; maps nothing and reads nothing.
 *
 * Immutable. All regions are parts of a single file, because the receiving VM reaches them through one BAR whose
 * offsets are that file's offsets.
 */
import { closeSync, fstatSync } from 'node:fs';
import { closeAll } from '../sys/framed-socket.js';
import { native } from '../sys/native.js';
import { VhostPciError } from '../util/errors.js';

/** Unit of alignment of every region, and of the dirty log. */
export const PAGE_SIZE = 4096;

export interface MemoryRegion {
  /** Guest-physical address of the first byte. */
  readonly gpa: bigint;
  /** The front-end's own address of the first byte. */
  readonly userAddress: bigint;
  /** Bytes. */
  readonly size: number;
  /** Where the region starts in the file. */
  readonly fileOffset: number;
}

/** A region as it came over the wire: nothing is known of it. */
export interface RawRegion {
  readonly gpa: bigint;
  readonly userAddress: bigint;
  readonly size: bigint;
  readonly fileOffset: bigint;
}

/** What tells one file from another, and its length when the table was made. */
export interface FileIdentity {
  readonly dev: bigint;
  readonly ino: bigint;
  readonly size: number;
}

const END_OF_ADDRESSES = 1n << 64n;
const PAGE_MASK = BigInt(PAGE_SIZE - 1);

const refuse = (code: string, message: string): VhostPciError =>
  new VhostPciError('connection', code, message);

const hex = (value: bigint): string => `0x${value.toString(16)}`;

export class PeerMemory implements Disposable {
  /** Sorted by guest-physical address. */
  readonly regions: readonly MemoryRegion[];
  /** The file, readable and writable; owned by this object. */
  readonly fd: number;
  readonly file: FileIdentity;
  readonly #byUserAddress: readonly MemoryRegion[];
  #disposed = false;

  /**
   * Checks the regions against each other and against the file. `fds[i]` is the file of `regions[i]`. Takes over
   * all `fds`, also when it throws (scope `connection`): one is kept, the others are closed.
   */
  constructor(regions: readonly RawRegion[], fds: readonly number[], maxRegions: number) {
    try {
      this.file = sameFile(fds);
      if (regions.length === 0 || fds.length === 0) throw refuse('ENOREGION', 'the memory table is empty');
      if (regions.length > maxRegions)
        throw refuse('ETOOMANY', `${regions.length} memory regions, at most ${maxRegions} are taken`);
      const checked = regions.map((region) => checkRegion(region, this.file.size));
      // The same bytes twice would have one bit in the dirty log, which is by file offset.
      sortedApart(checked, (r) => BigInt(r.fileOffset), 'file');
      this.regions = sortedApart(checked, (r) => r.gpa, 'guest');
      this.#byUserAddress = sortedApart(checked, (r) => r.userAddress, 'user');
    } catch (error) {
      closeAll(fds);
      throw error;
    }
    this.fd = fds[0]!;
    closeAll(fds.slice(1));
  }

  /** First guest-physical address behind all memory: what a dirty log has to reach. */
  get end(): bigint {
    const last = this.regions[this.regions.length - 1]!;
    return last.gpa + BigInt(last.size);
  }

  /**
   * A table with one region more, whose file is `fd`; takes over `fd`. This table stays as it is and has to be
   * disposed on its own.
   */
  with(region: RawRegion, fd: number, maxRegions: number): PeerMemory {
    let own: number;
    try {
      own = native.dup(this.fd);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    const raw = [...this.regions.map(toRaw), region];
    return new PeerMemory(raw, [own, fd], maxRegions);
  }

  /**
   * A table without the region that has these guest address, user address and size; undefined when none is left.
   * Throws (scope `connection`) when there is no such region.
   */
  without(region: Omit<RawRegion, 'fileOffset'>): PeerMemory | undefined {
    const left = this.regions.filter(
      (r) => r.gpa !== region.gpa || r.userAddress !== region.userAddress || BigInt(r.size) !== region.size,
    );
    if (left.length === this.regions.length)
      throw refuse('ENOREGION', `no memory region at guest address ${hex(region.gpa)} to remove`);
    return left.length === 0
      ? undefined
      : new PeerMemory(left.map(toRaw), [native.dup(this.fd)], left.length);
  }

  /** The guest-physical address of `length` bytes at a user address, or undefined unless one region has them all. */
  userToGuest(address: bigint, length: number): bigint | undefined {
    const region = find(this.#byUserAddress, (r) => r.userAddress, address, length);
    return region && region.gpa + (address - region.userAddress);
  }

  /** The file offset of `length` bytes at a guest-physical address, or undefined unless one region has them all. */
  guestToOffset(gpa: bigint, length: number): number | undefined {
    const region = find(this.regions, (r) => r.gpa, gpa, length);
    return region && region.fileOffset + Number(gpa - region.gpa);
  }

  sameFileAs(other: PeerMemory): boolean {
    return this.file.dev === other.file.dev && this.file.ino === other.file.ino;
  }

  /** Closes the file. Mappings made from it live on. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    closeSync(this.fd);
  }
}

const toRaw = (r: MemoryRegion): RawRegion => ({
  gpa: r.gpa,
  userAddress: r.userAddress,
  size: BigInt(r.size),
  fileOffset: BigInt(r.fileOffset),
});

function sameFile(fds: readonly number[]): FileIdentity {
  const stats = fds.map((fd) => fstatSync(fd, { bigint: true }));
  const first = stats[0];
  if (!first) throw refuse('ENOREGION', 'the memory table has no file');
  if (!first.isFile()) throw refuse('EBADFD', 'the memory is not a file that can be shared');
  if (stats.some((s) => s.dev !== first.dev || s.ino !== first.ino))
    throw refuse(
      'EFILES',
      'the peer has its memory in several files: give it a single memory backend with share=on ' +
        '(QEMU: one memory-backend-memfd or memory-backend-file; DPDK: --single-file-segments)',
    );
  return { dev: first.dev, ino: first.ino, size: Number(first.size) };
}

function checkRegion(raw: RawRegion, fileSize: number): MemoryRegion {
  const where = `memory region at guest address ${hex(raw.gpa)}`;
  if (raw.size === 0n) throw refuse('EREGION', `${where} is empty`);
  if (((raw.gpa | raw.userAddress | raw.size | raw.fileOffset) & PAGE_MASK) !== 0n)
    throw refuse('EALIGN', `${where} is not aligned to ${PAGE_SIZE} bytes`);
  if (raw.gpa + raw.size > END_OF_ADDRESSES || raw.userAddress + raw.size > END_OF_ADDRESSES)
    throw refuse('EWRAP', `${where} wraps around the end of the address space`);
  // Compared as bigint: afterwards both are below the file size, hence safe integers.
  if (raw.fileOffset + raw.size > BigInt(fileSize))
    throw refuse('EFILESIZE', `${where} ends behind its file of ${fileSize} bytes`);
  return {
    gpa: raw.gpa,
    userAddress: raw.userAddress,
    size: Number(raw.size),
    fileOffset: Number(raw.fileOffset),
  };
}

function sortedApart(
  regions: readonly MemoryRegion[],
  key: (r: MemoryRegion) => bigint,
  space: string,
): MemoryRegion[] {
  const sorted = [...regions].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
  sorted.forEach((region, i) => {
    const next = sorted[i + 1];
    if (next && key(region) + BigInt(region.size) > key(next))
      throw refuse('EOVERLAP', `memory regions overlap at ${space} address ${hex(key(next))}`);
  });
  return sorted;
}

/** The region of a sorted list that holds all of `length` bytes at `address`. */
function find(
  sorted: readonly MemoryRegion[],
  key: (r: MemoryRegion) => bigint,
  address: bigint,
  length: number,
): MemoryRegion | undefined {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (key(sorted[middle]!) <= address) low = middle + 1;
    else high = middle;
  }
  const region = sorted[low - 1];
  if (!region || length < 0) return undefined;
  return address + BigInt(length) <= key(region) + BigInt(region.size) ? region : undefined;
}
