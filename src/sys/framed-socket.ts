/**
 * A Unix stream socket that carries framed messages with file descriptors: a header of fixed length that tells the
 * length of the whole. Messages are handled one after the other, also when the handler is asynchronous. Knows no
 * protocol.
 */
import { closeSync } from 'node:fs';
import { VhostPciError } from '../util/errors.js';
import { native, type Watcher } from './native.js';

export interface Framing {
  readonly headerBytes: number;
  /** Length of the whole message, header included. Throws (scope `connection`) when the header is unacceptable. */
  totalBytes(header: Buffer): number;
}

export interface FramedSocketHandlers {
  /** The handler owns `fds` and closes them. A rejection or throw closes the socket with that error. */
  message(data: Buffer, fds: number[]): void | Promise<void>;
  /**
   * Called once; without an error when the other side closed in an orderly way between two messages. The code of the error is
   * `ESHUTDOWN` when the other side reads no more and has not ended: it may still use what it was given.
   */
  closed(error?: Error): void;
}

/** A peer that does not read its replies gets no more than this many bytes queued. */
const SEND_LIMIT = 4 << 20;
/** Most descriptors of one message, however its bytes arrive. */
const FDS_A_MESSAGE = 16;
/** Messages handled before the event loop gets its turn again, so that a flood starves nobody. */
const MESSAGES_A_TURN = 64;
/** Reads of what was sent before the end, and their length, when the end itself is looked for. */
const LAST_READS = 64;
const LAST_READ_BYTES = 1 << 16;

interface Outgoing {
  data: Uint8Array;
  fds: number[];
}

export function closeAll(fds: readonly number[]): void {
  for (const fd of fds) closeSync(fd);
}

const deaf = (cause: unknown): VhostPciError =>
  new VhostPciError('connection', 'ESHUTDOWN', 'the other side reads no more', { cause });

export class FramedSocket implements Disposable {
  readonly #fd: number;
  readonly #framing: Framing;
  readonly #handlers: FramedSocketHandlers;
  readonly #watcher: Watcher;
  #parts: Buffer[] = [];
  #have = 0;
  #want: number;
  #haveHeader = false;
  #fds: number[] = [];
  #busy = false;
  #closed = false;
  #queue: Outgoing[] = [];
  #queuedBytes = 0;

  /** Takes over `fd`, a connected non-blocking stream socket, also when it throws (EMFILE). */
  constructor(fd: number, framing: Framing, handlers: FramedSocketHandlers) {
    this.#fd = fd;
    this.#framing = framing;
    this.#handlers = handlers;
    this.#want = framing.headerBytes;
    try {
      this.#watcher = native.watch(fd, (readable, writable) => {
        if (writable) this.#flush();
        if (readable) this.#read();
      });
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    this.#watch();
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** The other side has ended; `closed` tells so only when the message in progress is done. */
  get hungUp(): boolean {
    return this.#closed || native.hungUp(this.#fd);
  }

  /** Queues a message; `fds` stay the caller's. A socket whose other side does not read is closed. */
  send(data: Uint8Array, fds: readonly number[] = []): void {
    if (this.#closed) return;
    this.#queue.push({ data, fds: fds.map((fd) => native.dup(fd)) });
    this.#queuedBytes += data.length;
    this.#flush();
    if (this.#queuedBytes > SEND_LIMIT)
      this.close(new VhostPciError('connection', 'ENOBUFS', 'the other side does not read its messages'));
  }

  /** Keep or do not keep the process alive for this socket. */
  unref(): void {
    this.#watcher.unref();
  }

  close(error?: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher.stop();
    closeSync(this.#fd);
    closeAll(this.#fds);
    for (const out of this.#queue) closeAll(out.fds);
    this.#fds = [];
    this.#queue = [];
    this.#handlers.closed(error);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #watch(): void {
    if (!this.#closed) this.#watcher.set({ readable: !this.#busy, writable: this.#queue.length > 0 });
  }

  #flush(): void {
    try {
      for (let out = this.#queue[0]; out && !this.#closed; out = this.#queue[0]) {
        const sent = native.sendMessage(this.#fd, out.data, out.fds);
        if (sent < 0) break;
        if (sent > 0) {
          closeAll(out.fds);
          out.fds = [];
        }
        this.#queuedBytes -= sent;
        if (sent === out.data.length) this.#queue.shift();
        else out.data = out.data.subarray(sent);
      }
    } catch (error) {
      this.close(this.#isDeaf(error as Error) ? deaf(error) : (error as Error));
      return;
    }
    this.#watch();
  }

  /** True when the other side has shut its reading down (shutdown(2), SHUT_RD) and has not closed the socket. */
  #isDeaf(error: NodeJS.ErrnoException): boolean {
    if (error.code !== 'EPIPE') return false;
    try {
      for (let n = 0; n < LAST_READS; n++) {
        const got = native.receiveMessage(this.#fd, LAST_READ_BYTES);
        if (!got) return true;
        closeAll(got.fds);
        if (got.data.length === 0) return false;
      }
    } catch {
      // Reset: it has ended with something unread.
      return false;
    }
    return true;
  }

  #read(): void {
    for (let n = 0; n < MESSAGES_A_TURN && !this.#busy && !this.#closed; ) {
      let data: Buffer;
      try {
        const got = native.receiveMessage(this.#fd, this.#want - this.#have);
        if (!got) break;
        this.#fds.push(...got.fds);
        if (got.truncated || this.#fds.length > FDS_A_MESSAGE)
          throw new VhostPciError('connection', 'ECTRUNC', 'more file descriptors than a message may carry');
        data = got.data;
        if (data.length === 0) {
          const torn = this.#have > 0 || this.#haveHeader;
          this.close(
            torn ? new VhostPciError('connection', 'ETORN', 'closed in the middle of a message') : undefined,
          );
          return;
        }
        this.#parts.push(data);
        this.#have += data.length;
        if (this.#have < this.#want) continue;
        if (!this.#haveHeader) {
          const header = Buffer.concat(this.#parts);
          this.#parts = [header];
          const total = this.#framing.totalBytes(header);
          this.#haveHeader = true;
          this.#want = total;
          if (this.#have < total) continue;
        }
      } catch (error) {
        this.close(error as Error);
        return;
      }
      n++;
      this.#deliver();
    }
    this.#watch();
  }

  #deliver(): void {
    const message = this.#parts.length === 1 ? this.#parts[0]! : Buffer.concat(this.#parts);
    const fds = this.#fds;
    this.#parts = [];
    this.#fds = [];
    this.#have = 0;
    this.#haveHeader = false;
    this.#want = this.#framing.headerBytes;
    try {
      const pending = this.#handlers.message(message, fds);
      if (!(pending instanceof Promise)) return;
      this.#busy = true;
      pending.then(
        () => {
          this.#busy = false;
          // Level-triggered: what already waits is reported as soon as it is watched for again.
          this.#watch();
        },
        (error) => this.close(error as Error),
      );
    } catch (error) {
      this.close(error as Error);
    }
  }
}
