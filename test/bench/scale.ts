/** What more peers, and dirty logging, cost. Both ends are in-tree. */
import { run } from '../support/process.js';
import { Scope, sleep } from '../support/scope.js';
import type { Distance } from './distance.js';
import { InTree } from './in-tree.js';
import {
  type Comparison,
  compare,
  comparePairs,
  limits,
  pairSample,
  type Sample,
  sample,
} from './samples.js';
import { program } from './systems.js';
import { BACK_CPU, FRONT_CPU } from './testpmd.js';
import type { Effort } from './throughput.js';

const WARM_UP_MS = 30;

/** Packets a second of `peers` peers on one worker against one peer. */
export function manyPeers(
  distance: Distance,
  peers: number,
  frame: number,
  effort: Effort,
): Promise<Comparison> {
  const take = (n: number) => async (): Promise<Sample> => {
    let delay = 0;
    const taken = await sample(distance, (window) =>
      window([], async () => {
        const args = [program('peers-program'), String(n), String(frame), String(effort.windowMs)];
        const result = JSON.parse(await run(process.execPath, args)) as { rate: number; delay: number };
        delay = result.delay;
        return result.rate;
      }),
    );
    return delay > limits.delay ? { ...taken, dropped: 'run-delay' } : taken;
  };
  return compare(effort.pairs, take(peers), take(1));
}

/** Turns of one kind in a pair, and the length of one: what changes on the machine takes longer than that. */
const TURNS = 9;
const TURN_MS = 60;
/** Of each kind, side by side, that must be good. */
const ENOUGH_TURNS = 3;

/** Packets a second from us to the peer with dirty logging on against off, on one link that switches to and fro. */
export async function dirtyLogging(distance: Distance, frame: number, effort: Effort): Promise<Comparison> {
  await using scope = new Scope();
  const link = await InTree.start(scope, {
    net: ['--source', String(frame), '--poll', '--cpu', String(BACK_CPU)],
    peer: { task: 'take', mode: 'poll', cpu: FRONT_CPU },
  });
  link.pause();
  return await comparePairs(effort.pairs, async () => {
    let kept = 0;
    const pair = await pairSample(distance, async () => {
      link.resume();
      await sleep(WARM_UP_MS);
      const { on, off, turns } = await link.logInTurns(TURNS, TURN_MS, limits.delay);
      kept = turns;
      link.pause();
      return { a: on, b: off };
    });
    if (kept >= ENOUGH_TURNS) return pair;
    return { a: { ...pair.a, dropped: 'run-delay' }, b: pair.b };
  });
}
