/**
 * Tells why peers were refused without filling the log: a front-end that is refused comes again, QEMU every
 * `reconnect-ms`. A reason is told in full at its first, 10th, 100th, … time. Decides nothing, and holds no connection.
 */
import type { Log } from '../../util/log.js';

/** A reason that was not met for so long is new again. */
const FORGET_MS = 60_000;
/** Reasons that are remembered: a front-end that makes new ones up is not kept count of. */
const KINDS = 32;

export class Refusals {
  readonly #log: Log;
  readonly #kinds = new Map<string, { readonly count: number; readonly last: number }>();

  constructor(log: Log) {
    this.#log = log;
  }

  /** A refusal was met twice, a moment ago: who comes now is likely to be the same again. */
  get repeating(): boolean {
    const since = performance.now() - FORGET_MS;
    return [...this.#kinds.values()].some((kind) => kind.count > 1 && kind.last > since);
  }

  /** `what` happened, for `reason`. */
  tell(what: string, reason: Error): void {
    const { code } = reason as { code?: string };
    // Addresses, sizes and rings do not make another reason of it.
    const kind = `${what} ${code} ${reason.message.replace(/0x[0-9a-f]+|\d+/gi, '#')}`;
    const now = performance.now();
    const before = this.#kinds.get(kind);
    const count = before && now - before.last < FORGET_MS ? before.count + 1 : 1;
    this.#kinds.delete(kind);
    this.#kinds.set(kind, { count, last: now });
    for (const oldest of this.#kinds.keys()) {
      if (this.#kinds.size <= KINDS) break;
      this.#kinds.delete(oldest);
    }
    const text = `${what}: ${reason.message}`;
    if (count === 1) this.#log.warn({ code }, text);
    else if (Number.isInteger(Math.log10(count)))
      this.#log.warn({ code, times: count }, `${text} (${count} times now)`);
    else this.#log.debug({ code, times: count }, text);
  }

  /** A peer is served: whatever is refused after this is news. */
  forget(): void {
    this.#kinds.clear();
  }
}
