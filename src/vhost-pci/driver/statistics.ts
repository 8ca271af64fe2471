/**
 * Totals of each queue over all connections of the peer: the engine counts per connection, users want to see what an
 * endpoint did since it started.
 */
import { DROP_CAUSES, type DropCause, type PortQueueStats, type RingStats } from '../../sys/native.js';

export interface QueueTotals extends PortQueueStats {
  /** Queue pair, from 0. */
  readonly pair: number;
}

function noDrops(): Record<DropCause, number> {
  return Object.fromEntries(DROP_CAUSES.map((cause) => [cause, 0])) as Record<DropCause, number>;
}

function addRing(a: RingStats | undefined, b: RingStats): RingStats {
  if (!a) return b;
  const drops = noDrops();
  for (const cause of DROP_CAUSES) drops[cause] = a.drops[cause] + b.drops[cause];
  return {
    packets: a.packets + b.packets,
    bytes: a.bytes + b.bytes,
    bursts: a.bursts.map((n, i) => n + (b.bursts[i] ?? 0)),
    drops,
    notificationsSent: a.notificationsSent + b.notificationsSent,
    notificationsSuppressed: a.notificationsSuppressed + b.notificationsSuppressed,
    fill: b.fill,
    broken: b.broken,
  };
}

export class Totals {
  #closed = new Map<number, PortQueueStats>();

  /** The pair's connection ended with these counts. */
  close(pair: number, stats: PortQueueStats): void {
    const sum = this.#sum(pair, stats);
    this.#closed.set(pair, {
      receive: { ...sum.receive, fill: 0, broken: undefined },
      send: { ...sum.send, fill: 0, broken: undefined },
    });
  }

  /** Totals with what the live pairs have counted so far. */
  with(live: readonly { readonly pair: number; readonly stats: PortQueueStats }[]): QueueTotals[] {
    const all = new Map(this.#closed);
    for (const { pair, stats } of live) all.set(pair, this.#sum(pair, stats));
    return [...all].sort(([a], [b]) => a - b).map(([pair, stats]) => ({ pair, ...stats }));
  }

  #sum(pair: number, stats: PortQueueStats): PortQueueStats {
    const before = this.#closed.get(pair);
    return {
      receive: addRing(before?.receive, stats.receive),
      send: addRing(before?.send, stats.send),
    };
  }
}

/** All packets that were given up in one direction. */
export function dropped(ring: RingStats): number {
  return Object.values(ring.drops).reduce((sum, n) => sum + n, 0);
}
