/**
 * The interrupts of a VFIO device: eventfds for MSI-X, MSI and INTx vectors (VFIO_DEVICE_SET_IRQS). Closes none of the
 * eventfds that it is given.
 */
import { closeSync } from 'node:fs';
import { IRQ } from '../pci/handle.js';
import { IRQ_SET, IrqInfo, IrqSet } from '../pci/vfio-abi.js';
import { ioctl } from '../sys/ioctl.js';
import { native, type Watcher } from '../sys/native.js';
import { VhostPciError } from '../util/errors.js';
import { VFIO } from './abi.js';

/** MSI-X, the largest, has 2048 vectors. */
const MOST_VECTORS = 2048;

/** Stands before the caller's eventfd: the kernel masks INTx at each signal (linux/vfio.h, VFIO_IRQ_INFO_AUTOMASKED). */
interface Intx {
  readonly fd: number;
  readonly watcher: Watcher;
}

export class VfioInterrupts implements Disposable {
  readonly #device: number;
  readonly #name: string;
  readonly #indices: number;
  /** Vectors set, by interrupt index. */
  readonly #set = new Map<number, number>();
  #intx: Intx | undefined;

  /** `indices` is the number of interrupt indices that the device has. */
  constructor(device: number, name: string, indices: number) {
    this.#device = device;
    this.#name = name;
    this.#indices = indices;
  }

  /**
   * Vectors that can be had of an index. Without interrupt remapping the kernel gives fewer MSI vectors than the device
   * has, and tells only when it is asked for them.
   */
  count(index: number): number {
    if (index >= this.#indices) return 0;
    const info = IrqInfo.encode({ argsz: IrqInfo.size, index });
    ioctl(this.#device, VFIO.DEVICE_GET_IRQ_INFO, info, `${this.#name}: ask for interrupt ${index}`);
    const count = Math.min(IrqInfo.decode(info).count, MOST_VECTORS);
    if ((index !== IRQ.MSI && index !== IRQ.MSIX) || count <= 1 || this.#set.has(index)) return count;
    try {
      const available = this.#ioctl(index, IRQ_SET.DATA_EVENTFD | IRQ_SET.TRIGGER, new Array(count).fill(-1));
      if (available > 0) return available;
      this.#ioctl(index, IRQ_SET.DATA_NONE | IRQ_SET.TRIGGER, []);
      return count;
    } catch {
      // None at the moment: the next kind of interrupt has its turn.
      return 0;
    }
  }

  /** Signals `fds[i]` for vector i; an empty list turns the index off. Throws (scope device) what the kernel refuses. */
  set(index: number, fds: readonly number[]): void {
    this.#off(index);
    if (fds.length === 0) return;
    const given = index === IRQ.INTX ? [this.#intxFd(fds[0]!)] : fds;
    const available = this.#ioctl(index, IRQ_SET.DATA_EVENTFD | IRQ_SET.TRIGGER, given);
    if (available > 0)
      throw new VhostPciError(
        'device',
        'ENOSPC',
        `${this.#name}: ${fds.length} interrupt vectors are wanted, the system has ${available}`,
      );
    this.#set.set(index, fds.length);
  }

  [Symbol.dispose](): void {
    for (const index of [...this.#set.keys()]) this.#off(index);
    this.#endIntx();
  }

  #off(index: number): void {
    // linux/vfio.h: DATA_NONE with a count of 0 disables the index.
    if (this.#set.delete(index)) this.#ioctl(index, IRQ_SET.DATA_NONE | IRQ_SET.TRIGGER, []);
    if (index === IRQ.INTX) this.#endIntx();
  }

  /** Forwards each interrupt to `fd`, then lets the next one come. */
  #intxFd(fd: number): number {
    const own = native.eventfd();
    const watcher = native.watch(own, () => {
      if (native.eventfdTake(own) === 0) return;
      native.eventfdSignal(fd);
      // The owner of `fd` quiets the device in the next round of the event loop; unmasked before that, the kernel would
      // signal the same interrupt again. setImmediate runs at the end of a round.
      setImmediate(() => setImmediate(() => this.#unmaskIntx(own)));
    });
    watcher.set({ readable: true });
    watcher.unref();
    this.#intx = { fd: own, watcher };
    return own;
  }

  /** Unless INTx was turned off or set anew in the meantime. */
  #unmaskIntx(own: number): void {
    if (this.#intx?.fd !== own || !this.#set.has(IRQ.INTX)) return;
    try {
      this.#ioctl(IRQ.INTX, IRQ_SET.DATA_NONE | IRQ_SET.UNMASK, [], 1);
    } catch {
      // The function is gone, and its interrupts with it; whoever watches it finds out.
    }
  }

  #endIntx(): void {
    if (!this.#intx) return;
    this.#intx.watcher.stop();
    closeSync(this.#intx.fd);
    this.#intx = undefined;
  }

  /** Above 0, the result is the number of vectors that could be had instead (vfio_pci_intrs.c, vfio_msi_enable). */
  #ioctl(index: number, flags: number, fds: readonly number[], count = fds.length): number {
    const argsz = IrqSet.size + 4 * fds.length;
    const argument = Buffer.alloc(argsz);
    IrqSet.encodeInto(argument, 0, { argsz, flags, index, count });
    for (const [i, fd] of fds.entries()) argument.writeInt32LE(fd, IrqSet.size + 4 * i);
    return ioctl(this.#device, VFIO.DEVICE_SET_IRQS, argument, `${this.#name}: set interrupt ${index}`);
  }
}
