/**
 * Samples of two systems taken in turns (A B A B), which of them count, and what they come to: medians, and the ratio
 * pair by pair, so that what changes slowly on the machine changes both sides of a ratio. Knows nothing of what is measured.
 */
import { CLASS_NAMES, type Distance, distanceClass } from './distance.js';
import { type ProcessTimes, runDelays, threadTimes } from './threads.js';

/**
 * `delay`: a polling thread that waited for its CPU for a larger part of the sample spoils it (`--delay`). `tries`: the most
 * for one good pair. `pairs`: with fewer that count a figure meets no target.
 */
export const limits = { delay: 0.05, tries: 3, pairs: 5 };

export interface Sample {
  readonly value: number;
  /** Class of the distance around it. */
  readonly distance: number;
  readonly dropped?: 'distance' | 'run-delay';
}

/** Runs `measure`, and looks at the polling threads of some processes around it. */
type Window = <T>(pids: readonly number[], measure: () => Promise<T>) => Promise<T>;

/** Looks at the distance of the CPUs around `run`. The values are made of what it returns. */
async function bracket<T>(
  distance: Distance,
  run: (window: Window) => Promise<T>,
): Promise<{ result: T } & Omit<Sample, 'value'>> {
  const before = distanceClass(await distance.line());
  let delay = 0;
  const result = await run(async (pids, measure) => {
    const start: ProcessTimes[] = pids.map((pid) => threadTimes(pid));
    const measured = await measure();
    const delays = pids.map((pid, i) => runDelays(start[i]!, threadTimes(pid))[0] ?? 1);
    delay = Math.max(0, ...delays);
    return measured;
  });
  const after = distanceClass(await distance.line());
  if (after !== before) return { result, distance: after, dropped: 'distance' };
  if (delay > limits.delay) return { result, distance: after, dropped: 'run-delay' };
  return { result, distance: after };
}

export async function sample(distance: Distance, run: (window: Window) => Promise<number>): Promise<Sample> {
  const { result: value, ...rest } = await bracket(distance, run);
  return { value, ...rest };
}

export interface Pair {
  readonly a: Sample;
  readonly b: Sample;
}

/** Both sides of a pair between the same two looks: for what can change sides within milliseconds. */
export async function pairSample(
  distance: Distance,
  run: (window: Window) => Promise<{ readonly a: number; readonly b: number }>,
): Promise<Pair> {
  const { result, ...rest } = await bracket(distance, run);
  return { a: { value: result.a, ...rest }, b: { value: result.b, ...rest } };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export interface Comparison {
  readonly a: number;
  readonly b: number;
  /** Median of a/b, pair by pair. */
  readonly ratio: number;
  readonly pairs: number;
  /** Smallest and largest ratio of a pair. */
  readonly range: readonly [number, number];
  readonly distance: string;
  readonly dropped: { readonly distance: number; readonly runDelay: number };
}

export function compare(
  wanted: number,
  a: () => Promise<Sample>,
  b: () => Promise<Sample>,
): Promise<Comparison> {
  return comparePairs(wanted, async () => ({ a: await a(), b: await b() }));
}

/**
 * Takes pairs until `wanted` of them count: both samples good and at the same distance. Gives up after
 * `limits.tries` times as many and says what there is.
 */
export async function comparePairs(wanted: number, take: () => Promise<Pair>): Promise<Comparison> {
  const pairs: Pair[] = [];
  const dropped = { distance: 0, runDelay: 0 };
  for (let tries = 0; tries < wanted * limits.tries && mostly(pairs).length < wanted; tries++) {
    const pair = await take();
    const causes = [pair.a.dropped, pair.b.dropped].filter((cause) => cause !== undefined);
    for (const cause of causes) dropped[cause === 'distance' ? 'distance' : 'runDelay']++;
    if (causes.length > 0) continue;
    if (pair.a.distance === pair.b.distance) pairs.push(pair);
    else dropped.distance += 2;
  }
  const good = mostly(pairs);
  dropped.distance += 2 * (pairs.length - good.length);
  const ratios = good.map((pair) => pair.a.value / pair.b.value);
  return {
    a: median(good.map((pair) => pair.a.value)),
    b: median(good.map((pair) => pair.b.value)),
    ratio: median(ratios),
    pairs: good.length,
    range: [Math.min(...ratios), Math.max(...ratios)],
    distance: good[0] ? CLASS_NAMES[good[0].a.distance]! : 'none',
    dropped,
  };
}

/** The pairs at the distance that most of them have: one median must not mix distances. */
function mostly(pairs: readonly Pair[]): Pair[] {
  const groups = new Map<number, Pair[]>();
  for (const pair of pairs) groups.set(pair.a.distance, [...(groups.get(pair.a.distance) ?? []), pair]);
  return [...groups.values()].sort((x, y) => y.length - x.length)[0] ?? [];
}
