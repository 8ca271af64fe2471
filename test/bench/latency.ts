/**
 * One packet that bounces between the in-tree peer and the driver: its rate gives the time of a turn without any clock on the
 * way. When both ends sleep, a turn is one wake-up of each; when both poll, it is four moves of cache lines.
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

async function bouncing(scope: Scope, mode: 'poll' | 'interrupt', signals: Signals): Promise<InTree> {
  const cpu = String(BACK_CPU);
  const link = await InTree.start(scope, {
    net:
      signals === 'direct'
        ? ['--echo', `--${mode}`, '--cpu', cpu]
        : { program: 'relay-program', args: [cpu] },
    peer: { task: 'bounce', mode, cpu: FRONT_CPU },
  });
  link.pause();
  return link;
}

/** Microseconds of half a turn: from one end's send to the other's answer. */
function halfTurn(distance: Distance, link: InTree, effort: Effort): () => Promise<Sample> {
  return () =>
    sample(distance, async (window) => {
      link.resume();
      await sleep(WARM_UP_MS);
      // A sleeping worker has no CPU to wait for; what it waits for is what is measured.
      const value = await window([], async () => {
        const { ms, received } = await link.window(effort.windowMs);
        if (received === 0) throw new Error(`the packet that bounced is gone${link.driver.tail()}`);
        return (ms * 1000) / received / 2;
      });
      link.pause();
      return value;
    });
}

/** Kick to packet against a bare eventfd between two processes, in microseconds. */
export async function wakeUp(distance: Distance, effort: Effort, signals: Signals): Promise<Comparison> {
  await using scope = new Scope();
  const link = await bouncing(scope, 'interrupt', signals);
  const bare = (): Promise<Sample> => sample(distance, (window) => window([], () => distance.wake()));
  return await compare(effort.pairs, halfTurn(distance, link, effort), bare);
}

/** A turn while both ends poll against a cache line's way there and back, in microseconds. */
export async function pollTurn(distance: Distance, effort: Effort): Promise<Comparison> {
  await using scope = new Scope();
  const link = await bouncing(scope, 'poll', 'direct');
  const half = halfTurn(distance, link, effort);
  const turn = async (): Promise<Sample> => {
    const taken = await half();
    return { ...taken, value: taken.value * 2 };
  };
  const line = (): Promise<Sample> =>
    sample(distance, (window) => window([], async () => (await distance.line()) / 1000));
  return await compare(effort.pairs, turn, line);
}
