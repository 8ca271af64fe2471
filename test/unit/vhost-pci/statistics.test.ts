import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DROP_CAUSES, type PortQueueStats, type RingStats } from '../../../src/sys/native.js';
import { dropped, Totals } from '../../../src/vhost-pci/driver/statistics.js';

const count = fc.nat(1_000_000);
const anyRing: fc.Arbitrary<RingStats> = fc.record({
  packets: count,
  bytes: count,
  bursts: fc.array(count, { minLength: 7, maxLength: 7 }),
  drops: fc
    .array(count, { minLength: DROP_CAUSES.length, maxLength: DROP_CAUSES.length })
    .map((n) => Object.fromEntries(DROP_CAUSES.map((c, i) => [c, n[i]])) as RingStats['drops']),
  notificationsSent: count,
  notificationsSuppressed: count,
  fill: fc.nat(256),
  broken: fc.constantFrom(undefined, 'head is outside the ring'),
});
const anyStats: fc.Arbitrary<PortQueueStats> = fc.record({ receive: anyRing, send: anyRing });

const numbers = (r: RingStats): number[] => [
  r.packets,
  r.bytes,
  ...r.bursts,
  ...DROP_CAUSES.map((c) => r.drops[c]),
  r.notificationsSent,
  r.notificationsSuppressed,
];
const plus = (a: number[], b: number[]): number[] => b.map((n, i) => n + (a[i] ?? 0));

describe('totals over connections', () => {
  it('are the sums of all connections of a pair and of the one that lives', () => {
    const anyClosed = fc.array(fc.record({ pair: fc.nat(3), stats: anyStats }), { maxLength: 8 });
    fc.assert(
      fc.property(anyClosed, fc.uniqueArray(fc.nat(5), { maxLength: 4 }), anyStats, (closed, pairs, now) => {
        const totals = new Totals();
        for (const { pair, stats } of closed) totals.close(pair, stats);
        const live = pairs.map((pair) => ({ pair, stats: now }));
        const all = totals.with(live);
        expect(all.map((q) => q.pair)).toEqual([...new Set([...closed.map((c) => c.pair), ...pairs])].sort());
        for (const { pair, receive, send } of all) {
          const parts = [...closed, ...live].filter((c) => c.pair === pair).map((c) => c.stats);
          expect(numbers(receive)).toEqual(parts.map((p) => numbers(p.receive)).reduce(plus, []));
          expect(numbers(send)).toEqual(parts.map((p) => numbers(p.send)).reduce(plus, []));
        }
        // Asking changes nothing.
        expect(totals.with(live)).toEqual(all);
      }),
    );
  });

  it('show the fill and the fault of the connection that lives only', () => {
    fc.assert(
      fc.property(anyStats, anyStats, (old, now) => {
        const totals = new Totals();
        totals.close(0, old);
        expect(totals.with([])[0]).toMatchObject({ receive: { fill: 0, broken: undefined } });
        const [live] = totals.with([{ pair: 0, stats: now }]);
        expect(live).toMatchObject({ receive: { fill: now.receive.fill, broken: now.receive.broken } });
      }),
    );
  });

  it('count as dropped what any cause has dropped', () => {
    fc.assert(
      fc.property(anyRing, (ring) => {
        expect(dropped(ring)).toBe(DROP_CAUSES.reduce((sum, c) => sum + ring.drops[c], 0));
      }),
    );
  });
});
