/** Rates of each queue, from the lines that `vhost-pci net --json --stats 1` prints. */

export interface QueueRate {
  readonly queue: number;
  /** `receive`: what the peer sent. */
  readonly direction: 'receive' | 'send';
  readonly packets: number;
  readonly bytes: number;
  readonly drops: number;
  /** Of the best second. */
  readonly peak_packets_per_s: number;
  readonly peak_mbit_per_s: number;
}

interface Direction {
  readonly packets: number;
  readonly bytes: number;
  readonly pps: number;
  readonly bps: number;
  readonly drops: number;
}

interface StatsEvent {
  readonly queues: readonly ({ readonly queue: number } & Record<'receive' | 'send', Direction>)[];
}

export function queueRates(events: readonly Record<string, unknown>[]): QueueRate[] {
  const stats = events.filter((e) => e.event === 'stats') as unknown as StatsEvent[];
  return (stats.at(-1)?.queues ?? []).flatMap(({ queue, ...last }) =>
    (['receive', 'send'] as const).map((direction) => {
      const all = stats
        .flatMap(({ queues }) => queues.filter((q) => q.queue === queue))
        .map((q) => q[direction]);
      const { packets, bytes, drops } = last[direction];
      return {
        queue,
        direction,
        packets,
        bytes,
        drops,
        peak_packets_per_s: Math.max(...all.map((d) => d.pps)),
        peak_mbit_per_s: Math.round(Math.max(...all.map((d) => d.bps)) / 1e4) / 100,
      };
    }),
  );
}
