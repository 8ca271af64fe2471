/** What more peers, and dirty logging, cost. Both ends are in-tree. */
import { run } from '../support/process.js';
import { Scope, sleep } from '../support/scope.js';
import type { Distance } from './distance.js';
import { InTree } from './in-tree.js';
import { type Comparison, compare, limits, type Sample, sample } from './samples.js';
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

/** Packets a second from us to the peer with dirty logging on against off. */
export async function dirtyLogging(distance: Distance, frame: number, effort: Effort): Promise<Comparison> {
  await using scope = new Scope();
  const link = await InTree.start(scope, {
    net: ['--source', String(frame), '--poll', '--cpu', String(BACK_CPU)],
    peer: { task: 'take', mode: 'poll', cpu: FRONT_CPU },
  });
  link.pause();
  const take = (log: 'on' | 'off') => (): Promise<Sample> =>
    sample(distance, async (window) => {
      link.resume();
      await link.command(`log ${log}`);
      await sleep(WARM_UP_MS);
      const rate = await window([link.driver.pid, link.peer.pid], async () => {
        const { ms, received } = await link.window(effort.windowMs);
        return (received / ms) * 1000;
      });
      link.pause();
      return rate;
    });
  return await compare(effort.pairs, take('on'), take('off'));
}
