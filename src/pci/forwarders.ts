/**
 * Registers that worker threads cannot reach: an eventfd each, whose signals the event loop turns into writes. Owns the
 * eventfds; knows no device.
 */
import { closeSync } from 'node:fs';
import { native, type Watcher } from '../sys/native.js';

type Write = (region: number, offset: number, data: Uint8Array) => Promise<void>;

export class Forwarders implements Disposable {
  readonly #write: Write;
  readonly #kept = new Map<string, { readonly fd: number; readonly watcher: Watcher }>();

  /** A `write` that rejects means that the device is gone, which its handle finds out by itself. */
  constructor(write: Write) {
    this.#write = write;
  }

  /** The eventfd that writes the 16-bit `value` at `offset`; the same one each time. */
  fd(region: number, offset: number, value: number): number {
    const key = `${region}:${offset}:${value}`;
    const known = this.#kept.get(key);
    if (known) return known.fd;
    const fd = native.eventfd();
    const data = Buffer.alloc(2);
    data.writeUInt16LE(value);
    const watcher = native.watch(fd, () => {
      if (native.eventfdTake(fd) > 0) this.#write(region, offset, data).catch(() => {});
    });
    watcher.set({ readable: true });
    watcher.unref();
    this.#kept.set(key, { fd, watcher });
    return fd;
  }

  [Symbol.dispose](): void {
    for (const { fd, watcher } of this.#kept.values()) {
      watcher.stop();
      closeSync(fd);
    }
    this.#kept.clear();
  }
}
