/**
 * How long a packet takes that has nothing to wait for. Asleep: from the peer's kick to the driver's return of the packet
 * (ping-program.ts). Polling: one packet that bounces between the in-tree peer and the driver, whose rate gives the time of a
 * turn, four moves of cache lines.
 */
import { Scope, sleep } from '../support/scope.js';
import type { Distance } from './distance.js';
import { InTree } from './in-tree.js';
import { type Comparison, compare, type Sample, sample } from './samples.js';
import { BACK_CPU, FRONT_CPU } from './testpmd.js';
import type { Effort } from './throughput.js';

const WARM_UP_MS = 30;

/** The driver's signals go straight to the peer and back, or through the device process. */
export type Signals = 'direct' | 'relay';

/** Samples of what `link` does, which stands still between them. */
function samples(distance: Distance, link: InTree, measure: () => Promise<number>): () => Promise<Sample> {
  link.pause();
  return () =>
    sample(distance, async (window) => {
      link.resume();
      await sleep(WARM_UP_MS);
      // A sleeping worker has no CPU to wait for; what it waits for is what is measured.
      const value = await window([], measure);
      link.pause();
      return value;
    });
}

/** Kick to packet against a bare eventfd between two processes, in microseconds. */
export async function wakeUp(distance: Distance, effort: Effort, signals: Signals): Promise<Comparison> {
  await using scope = new Scope();
  const cpu = String(BACK_CPU);
  const link = await InTree.start(scope, {
    net:
      signals === 'direct'
        ? ['--sink', '--interrupt', '--cpu', cpu]
        : { program: 'relay-program', args: [cpu] },
    peer: { task: 'ping', cpu: FRONT_CPU },
  });
  const ping = async (): Promise<number> => {
    const { microseconds } = (await link.command('ping')) as { microseconds: number };
    return microseconds;
  };
  const bare = (): Promise<Sample> => sample(distance, (window) => window([], () => distance.wake()));
  return await compare(effort.pairs, samples(distance, link, ping), bare);
}

/** A turn while both ends poll against a cache line's way there and back, in microseconds. */
export async function pollTurn(distance: Distance, effort: Effort): Promise<Comparison> {
  await using scope = new Scope();
  const link = await InTree.start(scope, {
    net: ['--echo', '--poll', '--cpu', String(BACK_CPU)],
    peer: { task: 'bounce', mode: 'poll', cpu: FRONT_CPU },
  });
  const turn = async (): Promise<number> => {
    const { ms, received } = await link.window(effort.windowMs);
    if (received === 0) throw new Error(`the packet that bounced is gone${link.driver.tail()}`);
    return (ms * 1000) / received;
  };
  const line = (): Promise<Sample> =>
    sample(distance, (window) => window([], async () => (await distance.line()) / 1000));
  return await compare(effort.pairs, samples(distance, link, turn), line);
}
