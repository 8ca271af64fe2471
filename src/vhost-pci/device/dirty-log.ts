/**
 * Moves dirty bits from the driver's bitmap (BAR4, by offset in the peer's memory file) into the log of the peer's QEMU
 * (by guest-physical address), while logging is on (D7). The data path never waits for it, and the event loop never long:
 * a pass goes over the bitmap in slices.
 */
import { type Mapping, native } from '../../sys/native.js';
import { errorText, VhostPciError } from '../../util/errors.js';
import { PAGE } from '../identity.js';
import type { SharedPagesLayout } from '../shared-pages.js';

export interface LogRegion {
  readonly gpa: bigint;
  readonly size: number;
  readonly fileOffset: number;
}

/** Between passes. QEMU reads its log every few hundred milliseconds while it migrates; a pass costs 0.2 ms of a CPU. */
export const PERIOD_MS = 30;
/** Pages of a slice: 32 KiB of bitmap, 1 GiB of memory, at most some 0.2 ms of work. */
const SLICE_PAGES = 1 << 18;
/** Bytes written at a time when every page counts as written. */
const FILL_BYTES = 1 << 16;

interface PageRange {
  /** In the peer's memory file, and with it in the driver's bitmap. */
  readonly first: number;
  readonly count: number;
  /** From a page of the file to the guest's page. */
  readonly shift: number;
}

export class DirtyLogMover implements Disposable {
  readonly #pages: Mapping;
  readonly #layout: SharedPagesLayout;
  readonly #log: Mapping;
  readonly #logOffset: number;
  readonly #ranges: readonly PageRange[];
  readonly #slices: readonly PageRange[];
  readonly #failed: (error: VhostPciError) => void;
  readonly #wrote: () => void;
  #timer: NodeJS.Timeout | undefined;
  #dead = false;
  moved = 0;

  /**
   * `log` is mapped from the front-end's file and has bit 0 at `logOffset`; this object closes it. Throws (scope `connection`)
   * when it is too small. `failed` is called once, when the front-end has taken the log's memory away; `wrote` whenever bits
   * have arrived in the log.
   */
  constructor(
    pages: Mapping,
    layout: SharedPagesLayout,
    log: Mapping,
    regions: readonly LogRegion[],
    failed: (error: VhostPciError) => void,
    logOffset = 0,
    wrote: () => void = () => {},
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
    this.#pages = pages;
    this.#layout = layout;
    this.#log = log;
    this.#logOffset = logOffset;
    this.#ranges = regions.map(({ gpa, size, fileOffset }) => {
      const first = fileOffset / PAGE;
      return { first, count: Math.ceil(size / PAGE), shift: Number(gpa / BigInt(PAGE)) - first };
    });
    this.#slices = this.#ranges.flatMap(sliced);
    this.#failed = failed;
    this.#wrote = wrote;
    this.#schedule(0, PERIOD_MS);
  }

  /** Moves every bit that is set now. Does not throw. */
  flush(): void {
    for (const range of this.#ranges) this.#move(range);
  }

  /**
   * Every page counts as written: for a driver that went without a word, perhaps between a write and its bit. Does not throw.
   */
  markAll(): void {
    this.#guard(() => {
      const { bitmapOffset, bitmapBytes } = this.#layout;
      for (let at = 0; at < bitmapBytes; at += FILL_BYTES)
        this.#pages.write(bitmapOffset + at, Buffer.alloc(Math.min(FILL_BYTES, bitmapBytes - at), 0xff));
    });
    this.flush();
  }

  [Symbol.dispose](): void {
    this.#dead = true;
    clearTimeout(this.#timer);
    this.#log.close();
  }

  /** The next slice of a pass; passes follow each other for as long as this lives. */
  #schedule(slice: number, ms: number): void {
    this.#timer = setTimeout(() => {
      const range = this.#slices[slice];
      if (range) this.#move(range);
      if (this.#dead) return;
      const more = slice + 1 < this.#slices.length;
      this.#schedule(more ? slice + 1 : 0, more ? 0 : PERIOD_MS);
    }, ms);
  }

  #move({ first, count, shift }: PageRange): void {
    const { bitmapOffset, bitmapBytes } = this.#layout;
    this.#guard(() => {
      const moved = native.moveDirtyBits(
        this.#pages,
        bitmapOffset,
        this.#log,
        this.#logOffset,
        bitmapBytes,
        shift,
        first,
        count,
      );
      this.moved += moved;
      if (moved > 0) this.#wrote();
    });
  }

  #guard(work: () => void): void {
    if (this.#dead) return;
    try {
      work();
    } catch (cause) {
      this.#dead = true;
      clearTimeout(this.#timer);
      const why = `the dirty log cannot be written: ${errorText(cause)}`;
      this.#failed(new VhostPciError('connection', 'ELOGMAP', why, { cause }));
    }
  }
}

function sliced({ first, count, shift }: PageRange): PageRange[] {
  return Array.from({ length: Math.ceil(count / SLICE_PAGES) }, (_, i) => ({
    first: first + i * SLICE_PAGES,
    count: Math.min(SLICE_PAGES, count - i * SLICE_PAGES),
    shift,
  }));
}
