/**
 * Opens a function again and again: waits until it is plugged in and ready. A function that is plugged in while it is waited
 * for has no driver, and is given to vfio-pci; one that somebody took from vfio-pci is left alone.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { errorText } from '../util/errors.js';
import { bind } from './binding.js';
import { VfioDevice } from './device.js';
import { PciSysfs } from './sysfs.js';

const RETRY_MS = 200;
/** A device process that is stopped keeps each access waiting, and the whole machine with it: most of the time it is left alone. */
const STALLED_PAUSE = 10;

export class VfioOpener {
  readonly #address: string;
  readonly #sysfs: PciSysfs;
  /** The function as it was opened last. */
  #node: number | undefined;
  /** It was seen to be missing. */
  #missed = false;

  constructor(address: string, sysfs = new PciSysfs()) {
    this.#address = address;
    this.#sysfs = sysfs;
  }

  /**
   * Resolves to the open device. `onWaiting` is told why it is not there yet, once for each reason. Throws usage errors
   * for what the user has to mend; after the first success, these are waited out like the rest.
   */
  async open(signal: AbortSignal, onWaiting: (why: string) => void): Promise<VfioDevice> {
    let told: string | undefined;
    for (;;) {
      signal.throwIfAborted();
      const begin = performance.now();
      const why = await this.#try();
      const took = performance.now() - begin;
      if (typeof why !== 'string') return why;
      if (why !== told) onWaiting(why);
      told = why;
      await sleep(Math.max(RETRY_MS, took * STALLED_PAUSE), undefined, { signal });
    }
  }

  async #try(): Promise<VfioDevice | string> {
    const facts = this.#sysfs.facts(this.#address);
    if (!facts) {
      this.#missed = true;
      return `there is no PCI device ${this.#address}`;
    }
    const plugged = this.#missed || (this.#node !== undefined && this.#node !== facts.node);
    try {
      if (plugged && facts.driver === undefined) await bind(this.#sysfs, this.#address);
      const device = VfioDevice.open(this.#address, this.#sysfs);
      this.#node = facts.node;
      this.#missed = false;
      return device;
    } catch (error) {
      const known = this.#node !== undefined || this.#missed;
      if ((error as { scope?: string }).scope === 'usage' && !known) throw error;
      return errorText(error);
    }
  }
}
