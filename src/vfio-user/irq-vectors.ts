/**
 * The eventfds that a client set for its interrupt vectors, and which of them are masked. Owns the fds. A thread that
 * signals a vector itself takes `fd()` and looks again when `changed` is called.
 */
import { closeSync } from 'node:fs';
import { IRQ } from '../pci/handle.js';
import { NUM_IRQS } from '../pci/vfio-abi.js';
import { native } from '../sys/native.js';

interface Vector {
  trigger?: number;
  /** Signalled when the vector becomes masked or unmasked (SET_IRQS with an eventfd for these actions). */
  onMask?: number;
  onUnmask?: number;
  masked: boolean;
  /** Raised while masked. */
  pending: boolean;
}

export type EventSlot = 'trigger' | 'onMask' | 'onUnmask';

export class IrqVectors implements Disposable {
  readonly #vectors: Map<number, Vector>[] = Array.from({ length: NUM_IRQS }, () => new Map());
  readonly #changed: (index: number, start: number, count: number) => void;

  /** `changed` is called after `fd()` of the vectors may have changed; by then the old fds are closed. */
  constructor(changed: (index: number, start: number, count: number) => void = () => {}) {
    this.#changed = changed;
  }

  /** The eventfd to signal now; undefined when there is none or the vector is masked. Stays this object's. */
  fd(index: number, vector: number): number | undefined {
    const v = this.#vectors[index]?.get(vector);
    return v && !v.masked ? v.trigger : undefined;
  }

  /** Signals the vector, or notes it for the time when it is unmasked. False when nobody listens. */
  trigger(index: number, vector: number): boolean {
    const v = this.#vectors[index]?.get(vector);
    if (v?.trigger === undefined) return false;
    if (v.masked) {
      v.pending = true;
      return true;
    }
    const sent = native.eventfdSignal(v.trigger);
    // VFIO_IRQ_INFO_AUTOMASKED: a level interrupt rests until the client has served it and unmasks it.
    if (index === IRQ.INTX) this.setMasked(index, vector, 1, true);
    return sent;
  }

  /** Takes over `fds[i]` for vector `start + i`; undefined removes what is there. */
  set(index: number, start: number, fds: readonly (number | undefined)[], slot: EventSlot = 'trigger'): void {
    for (const [i, fd] of fds.entries()) {
      const v = this.#vector(index, start + i);
      const old = v[slot];
      delete v[slot];
      if (old !== undefined) closeSync(old);
      if (fd !== undefined) v[slot] = fd;
      else if (slot === 'trigger') v.pending = false;
    }
    if (slot === 'trigger') this.#changed(index, start, fds.length);
  }

  setMasked(index: number, start: number, count: number, masked: boolean): void {
    for (let vector = start; vector < start + count; vector++) {
      const v = this.#vector(index, vector);
      if (v.masked === masked) continue;
      v.masked = masked;
      const watcher = masked ? v.onMask : v.onUnmask;
      if (watcher !== undefined) native.eventfdSignal(watcher);
      this.#changed(index, vector, 1);
      if (masked || !v.pending) continue;
      v.pending = false;
      this.trigger(index, vector);
    }
  }

  /** Removes all vectors of an index: fds, masks and what was pending. */
  clear(index: number): void {
    const vectors = this.#vectors[index];
    if (!vectors || vectors.size === 0) return;
    const last = Math.max(...vectors.keys());
    for (const { trigger, onMask, onUnmask } of vectors.values())
      for (const fd of [trigger, onMask, onUnmask]) if (fd !== undefined) closeSync(fd);
    vectors.clear();
    this.#changed(index, 0, last + 1);
  }

  clearAll(): void {
    for (let index = 0; index < NUM_IRQS; index++) this.clear(index);
  }

  [Symbol.dispose](): void {
    this.clearAll();
  }

  #vector(index: number, vector: number): Vector {
    const vectors = this.#vectors[index]!;
    let v = vectors.get(vector);
    if (!v) {
      v = { masked: false, pending: false };
      vectors.set(vector, v);
    }
    return v;
  }
}
