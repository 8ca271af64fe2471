/**
 * Moves dirty bits from the driver's bitmap (BAR4, by offset in the peer's memory file) into the log of the peer's QEMU
 * (by guest-physical address), while logging is on (D7). A native thread does it; the event loop takes part only where all
 * bits have to be in the log.
 */
import { type LogMover, type Mapping, native, type PageRange } from '../../sys/native.js';
import { errorText, VhostPciError } from '../../util/errors.js';
import { PAGE } from '../identity.js';
import type { SharedPagesLayout } from '../shared-pages.js';

export interface LogRegion {
  readonly gpa: bigint;
  readonly size: number;
  readonly fileOffset: number;
}

/** Between moves. QEMU reads its log every few hundred milliseconds while it migrates; a wake-up may cost 0.1 ms of a CPU. */
const PERIOD_MS = 100;

export class DirtyLogMover implements Disposable {
  readonly #log: Mapping;
  readonly #mover: LogMover;
  readonly #failed: (error: VhostPciError) => void;
  #dead = false;

  /**
   * `log` is mapped from the front-end's file and has bit 0 at `logOffset`; this object closes it, unless it throws: scope
   * `connection` because it is too small, or what a thread could not be made for. `failed` is called once, when the front-end has taken the log's memory away.
   */
  constructor(
    pages: Mapping,
    { bitmapOffset, bitmapBytes }: SharedPagesLayout,
    log: Mapping,
    regions: readonly LogRegion[],
    failed: (error: VhostPciError) => void,
    logOffset = 0,
  ) {
    for (const { gpa, size } of regions) {
      const lastByte = Number((gpa + BigInt(size) - 1n) / BigInt(PAGE) / 8n);
      if (logOffset + lastByte >= log.size)
        throw new VhostPciError(
          'connection',
          'ELOGSIZE',
          `the log of ${log.size - logOffset} bytes ends before guest address 0x${(gpa + BigInt(size)).toString(16)}`,
        );
    }
    this.#log = log;
    this.#failed = failed;
    this.#mover = new native.LogMover({
      from: { mapping: pages, offset: bitmapOffset, bytes: bitmapBytes },
      to: { mapping: log, offset: logOffset, bytes: log.size - logOffset },
      ranges: regions.map(pageRange),
      thread: { periodMs: PERIOD_MS, failed: () => this.#fail() },
    });
  }

  /** Bits that have arrived in the log. */
  get moved(): number {
    return this.#mover.moved;
  }

  /** Moves every bit that is set now. Does not throw. */
  flush(): void {
    this.#guard(() => this.#mover.move());
  }

  /**
   * Every page counts as written: for a driver that went without a word, perhaps between a write and its bit. Does not throw.
   */
  markAll(): void {
    this.#guard(() => this.#mover.markAll());
  }

  /** The front-end's eventfd for writes to the log (SET_LOG_FD). */
  signalTo(eventfd: number): void {
    this.#mover.signalTo(eventfd);
  }

  [Symbol.dispose](): void {
    this.#dead = true;
    this.#mover.close();
    this.#log.close();
  }

  #guard(work: () => void): void {
    if (this.#dead) return;
    try {
      work();
    } catch (cause) {
      this.#fail(cause);
    }
  }

  #fail(cause: unknown = new Error('the mapped file has shrunk')): void {
    if (this.#dead) return;
    this.#dead = true;
    const why = `the dirty log cannot be written: ${errorText(cause)}`;
    this.#failed(new VhostPciError('connection', 'ELOGMAP', why, { cause }));
  }
}

/** From pages of the file, and with them bits of the driver's bitmap, to the guest's pages. */
function pageRange({ gpa, size, fileOffset }: LogRegion): PageRange {
  const first = fileOffset / PAGE;
  return { first, count: Math.ceil(size / PAGE), shift: Number(gpa / BigInt(PAGE)) - first };
}
