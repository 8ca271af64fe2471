/** What /proc tells about the threads of a process: time run, time waited for a CPU, sleeps. Linux only, as everything here. */
import { readdirSync, readFileSync } from 'node:fs';

export interface ThreadTimes {
  /** Nanoseconds on a CPU, and ready without one (schedstat). */
  readonly ran: number;
  readonly waited: number;
  /** Times that it went to sleep by itself. */
  readonly sleeps: number;
}

export type ProcessTimes = ReadonlyMap<string, ThreadTimes>;

/** The threads of a process by their id. */
export function threadTimes(pid: number): ProcessTimes {
  const times = new Map<string, ThreadTimes>();
  for (const tid of readdirSync(`/proc/${pid}/task`)) {
    try {
      const [ran, waited] = readFileSync(`/proc/${pid}/task/${tid}/schedstat`, 'utf8').split(' ').map(Number);
      const status = readFileSync(`/proc/${pid}/task/${tid}/status`, 'utf8');
      const sleeps = Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)?.[1]);
      times.set(tid, { ran: ran!, waited: waited!, sleeps });
    } catch {
      // It ended between the two looks.
    }
  }
  return times;
}

/** What the threads did between two looks; threads that were not there before count from their start. */
export function difference(before: ProcessTimes, after: ProcessTimes): ThreadTimes[] {
  return [...after].map(([tid, a]) => {
    const b = before.get(tid) ?? { ran: 0, waited: 0, sleeps: 0 };
    return { ran: a.ran - b.ran, waited: a.waited - b.waited, sleeps: a.sleeps - b.sleeps };
  });
}

/**
 * For each thread, busiest first, the part of its time that it waited for a CPU. A polling thread either runs or waits, so
 * what it did neither of is not lost on it.
 */
export function runDelays(before: ProcessTimes, after: ProcessTimes): number[] {
  return difference(before, after)
    .filter((t) => t.ran + t.waited > 0)
    .sort((a, b) => b.ran + b.waited - a.ran - a.waited)
    .map((t) => t.waited / (t.ran + t.waited));
}
