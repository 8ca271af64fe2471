/**
 * Signals between the peer and the driver: the peer's kicks become the driver's interrupts, the driver's doorbells become
 * the peer's interrupts (the seed's "Interrupt support"). A native thread forwards them; nothing here runs a signal.
 */
import { closeSync } from 'node:fs';
import type { RingEventfds } from '../../pci/handle.js';
import { type Mapping, native, type Relay } from '../../sys/native.js';
import { doorbellOffset, SLEEP_OFFSET } from '../shared-pages.js';

/** An eventfd of the peer's. Another object is another eventfd, even with the same number. */
export interface PeerEventfd {
  readonly fd: number;
}

interface RingSignals {
  readonly kick: PeerEventfd | undefined;
  readonly call: PeerEventfd | undefined;
}

export class Notifications implements AsyncDisposable {
  readonly #relay: Relay;
  readonly #pages: Mapping;
  /** One eventfd a ring, for drivers in a host process (docs/protocol.md, P7). */
  readonly #doorbellFds: readonly number[];
  readonly #rings: RingSignals[];
  /** The fd of each pair's interrupt vector. */
  readonly #vectors: (number | undefined)[] = [];
  /** Rings whose eventfds the driver uses itself: two that wait on one kick would take it from each other. */
  readonly #taken = new Set<number>();
  readonly #kickRoutes = new Map<number, number>();
  readonly #callRoutes = new Map<number, number>();

  constructor(pages: Mapping, queuePairs: number) {
    this.#relay = new native.Relay();
    const fds: number[] = [];
    try {
      this.#relay.setSleepWord(pages, SLEEP_OFFSET);
      while (fds.length < 2 * queuePairs) fds.push(native.eventfd());
    } catch (error) {
      for (const fd of fds) closeSync(fd);
      void this.#relay.stop();
      throw error;
    }
    this.#pages = pages;
    this.#doorbellFds = fds;
    this.#rings = this.#doorbellFds.map(() => ({ kick: undefined, call: undefined }));
  }

  /** The doorbell eventfd of each of the peer's rings. They stay this object's. */
  get doorbellFds(): readonly number[] {
    return this.#doorbellFds;
  }

  /**
   * The peer's eventfds of a ring, as far as it has them. They stay the caller's. True when the driver has others for this
   * ring: until it takes these, they are forwarded.
   */
  setRing(ring: number, kick: PeerEventfd | undefined, call: PeerEventfd | undefined): boolean {
    const before = this.#rings[ring];
    if (!before || (before.kick === kick && before.call === call)) return false;
    this.#rings[ring] = { kick, call };
    const stale = this.#taken.delete(ring);
    if (stale) this.#routeKick(ring);
    if (before.kick !== kick) this.#routeKick(ring);
    if (before.call !== call) this.#routeCall(ring);
    return stale;
  }

  /** Hands out the eventfds of at most `count` rings from `first` on (docs/protocol.md, P7). They stay the peer's. */
  take(first: number, count: number): RingEventfds[] {
    return this.#rings.slice(first, first + count).map(({ kick, call }, i) => {
      this.#taken.add(first + i);
      this.#routeKick(first + i);
      return { ...(kick && { kick: kick.fd }), ...(call && { call: call.fd }) };
    });
  }

  /** The driver uses them no more. What was signalled in between is in the eventfds, and forwarded at once. */
  takeBack(): void {
    const rings = [...this.#taken];
    this.#taken.clear();
    for (const ring of rings) this.#routeKick(ring);
  }

  /** The eventfd of the interrupt vector that the driver chose for a pair; undefined while there is none. */
  setVector(pair: number, fd: number | undefined): void {
    this.#vectors[pair] = fd;
    this.#routeKick(2 * pair);
    this.#routeKick(2 * pair + 1);
  }

  /** The driver wrote the trapped register of a ring. */
  notifyPeer(ring: number): void {
    const route = this.#callRoutes.get(ring);
    if (route !== undefined) this.#relay.ring(route);
  }

  stats(): { wakeups: number; forwarded: number; doorbells: number } {
    return this.#relay.stats();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#relay.stop();
    for (const fd of this.#doorbellFds) closeSync(fd);
  }

  #routeKick(ring: number): void {
    const old = this.#kickRoutes.get(ring);
    if (old !== undefined) this.#relay.remove(old);
    this.#kickRoutes.delete(ring);
    const from = this.#rings[ring]?.kick?.fd;
    const to = this.#vectors[ring >> 1];
    if (this.#taken.has(ring)) return;
    // Without a vector the kick stays in its eventfd, and is forwarded as soon as there is one.
    if (from !== undefined && to !== undefined) this.#kickRoutes.set(ring, this.#relay.add(from, to));
  }

  #routeCall(ring: number): void {
    const old = this.#callRoutes.get(ring);
    if (old !== undefined) this.#relay.remove(old);
    this.#callRoutes.delete(ring);
    const to = this.#rings[ring]?.call?.fd;
    if (to === undefined) return;
    const route = this.#relay.addDoorbell(this.#pages, doorbellOffset(ring), to, this.#doorbellFds[ring]);
    this.#callRoutes.set(ring, route);
  }
}
