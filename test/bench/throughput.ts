/** Packet rates of two back-ends on one stock front-end, DPDK's virtio_user, in turns. */
import type { Program } from '../support/packages.js';
import { Scope, sleep } from '../support/scope.js';
import type { Distance } from './distance.js';
import { type Comparison, compare, type Sample, sample } from './samples.js';
import { DIRECTIONS, type Direction, dpdk, ours, type System } from './systems.js';
import { Testpmd } from './testpmd.js';

export interface Cell {
  readonly direction: Direction;
  readonly frame: number;
  readonly mergeable: boolean;
  readonly packed?: boolean;
}

export interface Effort {
  /** Pairs of samples. */
  readonly pairs: number;
  readonly windowMs: number;
}

/** Until rings and caches have what they need. */
const WARM_UP_MS = 60;

/** One sample of a system, on the port of the front-end that belongs to it. */
async function measure(
  distance: Distance,
  front: Testpmd,
  system: System,
  port: number,
  cell: Cell,
  effort: Effort,
): Promise<Sample> {
  const { count } = DIRECTIONS[cell.direction];
  return sample(distance, async (window) => {
    await system.resume();
    await front.forward(port, cell.direction === 'there and back');
    await sleep(WARM_UP_MS);
    const rate = await window([front.child.pid, ...system.polling], () =>
      front.rate(port, count, effort.windowMs),
    );
    await front.stop();
    await system.pause();
    return rate;
  });
}

/** Two systems made by `make` on a front-end of their own. */
export async function compareSystems(
  testpmd: Program,
  distance: Distance,
  cell: Cell,
  effort: Effort,
  make: readonly [(scope: Scope) => Promise<System>, (scope: Scope) => Promise<System>],
): Promise<Comparison> {
  await using scope = new Scope();
  const systems = [await make[0](scope), await make[1](scope)] as const;
  const ports = systems.map(({ path }) => ({
    path,
    mergeable: cell.mergeable,
    ...(cell.packed && { packed: true }),
  }));
  const front = await Testpmd.front(scope, testpmd, ports, DIRECTIONS[cell.direction].front, cell.frame);
  for (const system of systems) await system.connect();
  const take = (i: 0 | 1) => () => measure(distance, front, systems[i], i, cell, effort);
  return await compare(effort.pairs, take(0), take(1));
}

export function againstDpdk(
  testpmd: Program,
  distance: Distance,
  cell: Cell,
  effort: Effort,
): Promise<Comparison> {
  const { port, back } = DIRECTIONS[cell.direction];
  return compareSystems(testpmd, distance, cell, effort, [
    (scope) => ours(scope, port(cell.frame)),
    (scope) => dpdk(scope, testpmd, back, cell.frame),
  ]);
}
