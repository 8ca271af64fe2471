/**
 * The file that holds the peer's memory, as BAR2 shows it (D5). In *window* mode the device process creates it; in
 * *adopt* mode it is the peer's own, learnt from SET_MEM_TABLE. Owns the fd.
 */
import { closeSync, constants, fstatSync, ftruncateSync, openSync, statfsSync } from 'node:fs';
import { type Mapping, native } from '../../sys/native.js';
import { usageError, VhostPciError } from '../../util/errors.js';
import { nextPowerOfTwo, PAGE } from '../identity.js';

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
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    } catch (cause) {
      throw usageError(`--peer-memory ${path}: ${(cause as Error).message}`, { cause });
    }
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile()) throw usageError(`--peer-memory ${path}: not a regular file`);
      // Never shrink it: a receiver may have it mapped.
      if (stat.size > size)
        throw usageError(
          `--peer-memory ${path} has ${stat.size} bytes, more than --peer-memory-size ${size}: remove it, or give its size`,
        );
      if (stat.size < size) ftruncateSync(fd, size);
      const { bsize } = statfsSync(path);
      if (size % bsize !== 0)
        throw usageError(
          `--peer-memory-size ${size}: ${path} lies on pages of ${bsize} bytes; give a multiple`,
        );
      return new PeerWindow(fd);
    } catch (error) {
      closeSync(fd);
      if (error instanceof VhostPciError) throw error;
      throw usageError(`--peer-memory ${path}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** Adopt mode: the peer's own memory file. */
  static adopt(fd: number): PeerWindow {
    return new PeerWindow(native.dup(fd));
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
