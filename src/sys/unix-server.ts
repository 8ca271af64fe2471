/** A listening Unix socket. Owns its path: removes it at the end, and a stale one at the start. */
import { closeSync, lstatSync, unlinkSync } from 'node:fs';
import { dirname } from 'node:path';
import { usageError } from '../util/errors.js';
import { native, type Watcher } from './native.js';

/** Pause after accept failed for want of resources. */
const RETRY_MS = 100;

export class UnixServer implements Disposable {
  readonly path: string;
  readonly #fd: number;
  readonly #inode: bigint | undefined;
  readonly #watcher: Watcher;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;

  /**
   * Listens on `path` and calls `accepted` with each connection's fd, which the callee owns. Throws a usage
   * error when the path is taken by a live server or by something that is not a socket.
   */
  constructor(path: string, accepted: (fd: number) => void) {
    this.path = path;
    removeStaleSocket(path);
    try {
      this.#fd = native.unixListen(path, 4);
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      const why = code === 'ENOENT' ? `the folder ${dirname(path)} is not there; make it first` : message;
      throw usageError(`cannot listen on ${path}: ${why}`, { cause });
    }
    this.#inode = inodeOf(path);
    this.#watcher = native.watch(this.#fd, () => this.#acceptAll(accepted));
    this.#watcher.set({ readable: true });
  }

  #acceptAll(accepted: (fd: number) => void): void {
    try {
      for (let fd = native.unixAccept(this.#fd); fd !== undefined; fd = native.unixAccept(this.#fd)) {
        accepted(fd);
        if (this.#closed) return;
      }
    } catch {
      // EMFILE, ENOMEM: the connection stays in the backlog until descriptors come free.
      this.#watcher.set({});
      this.#retry = setTimeout(() => this.#watcher.set({ readable: true }), RETRY_MS);
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#watcher.stop();
    closeSync(this.#fd);
    // Not one that another process has put there since.
    if (this.#inode === undefined || inodeOf(this.path) !== this.#inode) return;
    try {
      unlinkSync(this.path);
    } catch {
      // Somebody else removed it: that is what was wanted.
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function inodeOf(path: string): bigint | undefined {
  try {
    return lstatSync(path, { bigint: true }).ino;
  } catch {
    return undefined;
  }
}

function removeStaleSocket(path: string): void {
  let isSocket: boolean;
  try {
    isSocket = lstatSync(path).isSocket();
  } catch {
    return;
  }
  if (!isSocket)
    throw usageError(`cannot listen on ${path}: it exists and is not a socket; name another path`);
  try {
    closeSync(native.unixConnect(path));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    // unix(7): refused means that nobody listens. EAGAIN is a server whose backlog is full, EACCES somebody else's.
    if (code === 'ECONNREFUSED') {
      unlinkSync(path);
      return;
    }
    if (code === 'ENOENT') return;
    if (code !== 'EAGAIN')
      throw usageError(`cannot listen on ${path}: ${(cause as Error).message}; name another path`, { cause });
  }
  throw usageError(
    `cannot listen on ${path}: another process serves it; stop that process or name another path`,
  );
}
