/**
 * The file that holds the peer's memory, as BAR2 shows it (D5). In *window* mode the device process creates it; in
 * *adopt* mode it is the peer's own, learnt from SET_MEM_TABLE. Owns the fd.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readlinkSync,
  statfsSync,
  unlinkSync,
} from 'node:fs';
import { type Mapping, native } from '../../sys/native.js';
import { usageError, VhostPciError } from '../../util/errors.js';
import { nextPowerOfTwo, PAGE } from '../identity.js';

/** Unit of st_blocks (stat(2)). */
const STAT_BLOCK = 512;

export interface FileIdentity {
  readonly dev: bigint;
  readonly ino: bigint;
}

export class PeerWindow implements Disposable {
  readonly fd: number;
  /** Bytes of the file. */
  readonly size: number;
  readonly identity: FileIdentity;
  #mapping: Mapping | undefined;

  /** Takes over `fd`. */
  constructor(fd: number) {
    const stat = fstatSync(fd, { bigint: true });
    this.fd = fd;
    this.size = Number(stat.size);
    this.identity = { dev: stat.dev, ino: stat.ino };
  }

  /** Window mode: creates (or takes up again) the memory file. Throws usage errors. */
  static create(path: string, size: number): PeerWindow {
    if (size % PAGE !== 0)
      throw usageError(
        `--peer-memory-size ${size}: give a multiple of ${PAGE}, the size of the peer's memory`,
      );
    const { fd, created } = openOrCreate(path);
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile()) throw usageError(`--peer-memory ${path}: not a regular file`);
      // Never shrink it: a receiver may have it mapped.
      if (stat.size > size)
        throw usageError(
          `--peer-memory ${path} has ${stat.size} bytes, more than --peer-memory-size ${size}: remove it, or give its size`,
        );
      const { bsize } = statfsSync(path);
      if (size % bsize !== 0)
        throw usageError(
          `--peer-memory-size ${size}: ${path} lies on pages of ${bsize} bytes; give a multiple`,
        );
      if (stat.size < size) grow(fd, path, size);
      return new PeerWindow(fd);
    } catch (error) {
      if (created) unlinkSync(readlinkSync(`/proc/self/fd/${fd}`));
      closeSync(fd);
      if (error instanceof VhostPciError) throw error;
      throw usageError(`--peer-memory ${path}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** Adopt mode: the peer's own memory file. */
  static adopt(fd: number): PeerWindow {
    return new PeerWindow(native.dup(fd));
  }

  /**
   * Bytes that the file system has no room for, should the peer use all of its memory: it takes no page before it is
   * written, and then there is nothing but SIGBUS. 0 where no limit is known.
   */
  get shortage(): number {
    const { blocks, bavail, bsize } = statfsSync(`/proc/self/fd/${this.fd}`);
    // hugetlbfs and tmpfs without a limit say 0.
    if (blocks === 0) return 0;
    const missing = this.size - fstatSync(this.fd).blocks * STAT_BLOCK;
    return Math.max(missing - bavail * bsize, 0);
  }

  /** Size of the BAR that shows the file. */
  get barSize(): number {
    return Math.max(nextPowerOfTwo(this.size), PAGE);
  }

  /** The whole file. Pages are touched only by the accesses that are made. */
  get mapping(): Mapping {
    // A fault took the file out of the mapping for good; the file itself may be whole again.
    if (this.#mapping?.faulted) {
      this.#mapping.close();
      this.#mapping = undefined;
    }
    this.#mapping ??= new native.Mapping(this.fd, 0, this.size, true);
    return this.#mapping;
  }

  is(other: FileIdentity): boolean {
    return this.identity.dev === other.dev && this.identity.ino === other.ino;
  }

  [Symbol.dispose](): void {
    this.#mapping?.close();
    closeSync(this.fd);
  }
}

function openOrCreate(path: string): { fd: number; created: boolean } {
  const flags = constants.O_RDWR;
  try {
    return { fd: openSync(path, flags), created: false };
  } catch (first) {
    try {
      if ((first as NodeJS.ErrnoException).code !== 'ENOENT') throw first;
      return { fd: openSync(path, flags | constants.O_CREAT, 0o600), created: true };
    } catch (cause) {
      throw usageError(`--peer-memory ${path}: ${(cause as Error).message}`, { cause });
    }
  }
}

function grow(fd: number, path: string, size: number): void {
  // setrlimit(2): beyond RLIMIT_FSIZE there is a signal first, which would end the process without a word.
  const ignore = (): void => {};
  process.on('SIGXFSZ', ignore);
  try {
    ftruncateSync(fd, size);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EFBIG') throw cause;
    throw usageError(
      `--peer-memory ${path}: a file of ${size} bytes is more than its file system or the limit of this process ` +
        'takes: give a smaller --peer-memory-size, another place such as /dev/shm, or raise "ulimit -f"',
      { cause },
    );
  } finally {
    process.off('SIGXFSZ', ignore);
  }
}
