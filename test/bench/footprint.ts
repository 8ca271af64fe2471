/** CPU time, wake-ups and resident memory of the two processes, while a connected peer is silent and while it sends. */
import { residentKiB } from '../support/process.js';
import { Scope, sleep } from '../support/scope.js';
import { InTree } from './in-tree.js';
import { BACK_CPU, FRONT_CPU } from './testpmd.js';
import { difference, threadTimes } from './threads.js';

export interface Footprint {
  readonly process: 'device' | 'driver';
  readonly state: string;
  /** Of one CPU. */
  readonly cpu: number;
  readonly wakeups: number;
  readonly rssMiB: number;
  /** Growth of the resident memory over the time. */
  readonly growthMiB: number;
}

const SETTLE_MS = 1500;
const MIB = 1024;

async function look(state: string, link: InTree, seconds: number): Promise<Footprint[]> {
  await sleep(SETTLE_MS);
  const processes = [
    ['device', link.device.pid],
    ['driver', link.driver.pid],
  ] as const;
  const before = processes.map(([, pid]) => ({ times: threadTimes(pid), rss: residentKiB(pid) }));
  await sleep(seconds * 1000);
  return processes.map(([process, pid], i) => {
    const did = difference(before[i]!.times, threadTimes(pid));
    const sum = (of: (t: (typeof did)[number]) => number): number => did.reduce((all, t) => all + of(t), 0);
    const rss = residentKiB(pid);
    return {
      process,
      state,
      cpu: sum((t) => t.ran) / 1e9 / seconds,
      wakeups: sum((t) => t.sleeps) / seconds,
      rssMiB: rss / MIB,
      growthMiB: (rss - before[i]!.rss) / MIB,
    };
  });
}

export async function footprint(seconds: number): Promise<Footprint[]> {
  const found: Footprint[] = [];
  for (const mode of ['interrupt', 'adaptive', 'poll'] as const) {
    for (const task of ['idle', 'send'] as const) {
      if (mode === 'poll' && task === 'idle') continue; // polls, by definition
      await using scope = new Scope();
      const link = await InTree.start(scope, {
        net: [task === 'send' ? '--echo' : '--sink', `--${mode}`, '--cpu', String(BACK_CPU)],
        peer: { task, mode, cpu: FRONT_CPU },
      });
      found.push(...(await look(`${task === 'idle' ? 'idle' : 'loaded'}, ${mode}`, link, seconds)));
    }
  }
  return found;
}
