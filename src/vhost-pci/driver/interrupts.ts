/**
 * The driver's interrupt vectors: MSI-X or MSI, whichever the device has, spread over the control queues and the queue
 * pairs. With a single vector everything shares it (D10): a signal is then passed on to all. A device with INTx alone is
 * polled: its vectors go without the ISR status, which INTx would have to be quieted by (VIRTIO 1.3, 4.1.4.5).
 */
import { closeSync } from 'node:fs';
import { IRQ, type PciHandle } from '../../pci/handle.js';
import { native, type Watcher } from '../../sys/native.js';
import { NO_VECTOR } from '../../virtio/pci-layout.js';

/** Vector of the configuration and the control queues. */
export const CONTROL_VECTOR = 0;

/** How often the control queue is looked at when the device has no interrupts at all. */
const POLL_MS = 10;

export class Interrupts implements AsyncDisposable {
  readonly #handle: PciHandle;
  readonly #index: number | undefined;
  readonly #fds: readonly number[];
  readonly #pairFds: readonly number[];
  readonly #watcher: Watcher | undefined;
  readonly #timer: NodeJS.Timeout | undefined;

  private constructor(
    handle: PciHandle,
    index: number | undefined,
    vectors: number,
    pairs: number,
    control: () => void,
  ) {
    this.#handle = handle;
    this.#index = index;
    this.#fds = Array.from({ length: vectors }, () => native.eventfd());
    const shared = vectors <= pairs;
    // A worker waits on an eventfd of its own when the vector is shared, since each signal has one reader.
    this.#pairFds = Array.from({ length: pairs }, (_, i) =>
      shared ? native.eventfd() : (this.#fds[1 + i] as number),
    );
    const first = this.#fds[CONTROL_VECTOR];
    if (first === undefined) {
      this.#timer = setInterval(control, POLL_MS);
      return;
    }
    this.#watcher = native.watch(first, () => {
      native.eventfdTake(first);
      if (shared) for (const fd of this.#pairFds) native.eventfdSignal(fd);
      control();
    });
    this.#watcher.set({ readable: true });
  }

  /** Takes as many vectors as the device has, up to one a pair and one for control. Calls `control` for the latter. */
  static async create(handle: PciHandle, pairs: number, control: () => void): Promise<Interrupts> {
    for (const index of [IRQ.MSIX, IRQ.MSI]) {
      const count = await handle.irqCount(index);
      if (count === 0) continue;
      const interrupts = new Interrupts(handle, index, count > pairs ? pairs + 1 : 1, pairs, control);
      try {
        await handle.setIrqs(index, interrupts.#fds);
      } catch (error) {
        await interrupts[Symbol.asyncDispose]();
        throw error;
      }
      return interrupts;
    }
    return new Interrupts(handle, undefined, 0, pairs, control);
  }

  /** The vector to write into a pair's queue_msix_vector. */
  vector(pair: number): number {
    if (this.#fds.length === 0) return NO_VECTOR;
    return this.#fds.length > 1 ? 1 + pair : CONTROL_VECTOR;
  }

  get controlVector(): number {
    return this.#fds.length === 0 ? NO_VECTOR : CONTROL_VECTOR;
  }

  /** The eventfd that the pair's kicks arrive on; undefined when the pair has to be polled. */
  pairFd(pair: number): number | undefined {
    return this.#fds.length === 0 ? undefined : this.#pairFds[pair];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#watcher?.stop();
    clearInterval(this.#timer);
    if (this.#index !== undefined)
      await this.#handle.setIrqs(this.#index, []).catch(() => {
        // The device is gone, and its interrupts with it.
      });
    for (const fd of new Set([...this.#fds, ...this.#pairFds])) closeSync(fd);
  }
}
