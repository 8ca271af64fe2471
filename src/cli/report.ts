/** What `vhost-pci net` tells its user: JSON, one object a line, or plain lines. All of it goes to stdout. */
import type { RingStats } from '../sys/native.js';
import type { EndpointEvent, EndpointStats } from '../vhost-pci/driver/endpoint.js';
import { dropped } from '../vhost-pci/driver/statistics.js';

interface Direction {
  readonly packets: number;
  readonly bytes: number;
  /** Packets and bits a second since the previous report. */
  readonly pps: number;
  readonly bps: number;
  readonly drops: number;
  readonly drop_causes: Record<string, number>;
  readonly notifications_sent: number;
  readonly notifications_suppressed: number;
  readonly ring_fill: number;
  readonly bursts: readonly number[];
  readonly broken?: string;
}

interface Previous {
  readonly packets: number;
  readonly bytes: number;
}

export class Reporter {
  readonly #json: boolean;
  /** Names the device in front of each line, and in each object; for commands that drive several. */
  readonly #device: string | undefined;
  #before = performance.now();
  #previous = new Map<string, Previous>();

  constructor(json: boolean, device?: string) {
    this.#json = json;
    this.#device = device;
  }

  event(event: EndpointEvent): void {
    if (this.#json) this.#object({ ...event });
    else if (event.event === 'error') this.#line(`error: ${event.message}`);
    else if (event.state === 'on')
      this.#line(`peer connected: ${event.pairs} queue pair(s), features ${event.features}`);
    else this.#line(`peer disconnected: ${event.reason}`);
  }

  /** Reports totals, and rates since the last call. */
  stats(stats: EndpointStats): void {
    const now = performance.now();
    const seconds = Math.max(now - this.#before, 1) / 1000;
    this.#before = now;
    const queues = stats.queues.map(({ pair, receive, send }) => ({
      queue: pair,
      receive: this.#direction(`${pair} receive`, receive, seconds),
      send: this.#direction(`${pair} send`, send, seconds),
    }));
    // As in `queues`, "receive" is what comes from the peer, which is what goes into the port.
    const port = stats.port?.map(({ receive, send }, queue) => ({
      queue,
      receive: counts(send),
      send: counts(receive),
    }));
    if (this.#json) {
      const workers = stats.workers.map(({ wakeups, busyRounds, idleRounds, state }) => ({
        wakeups,
        busy_rounds: busyRounds,
        idle_rounds: idleRounds,
        state,
      }));
      const { connected, undelivered } = stats;
      this.#object({
        event: 'stats',
        connected,
        queues,
        workers,
        ...(undelivered && { undelivered }),
        ...(port && { port }),
      });
      return;
    }
    for (const { queue, receive, send } of queues)
      this.#line(`queue ${queue}: receive ${plain(receive)}; send ${plain(send)}`);
    if (queues.length === 0) this.#line('no peer has been connected');
    for (const { queue, receive, send } of port ?? [])
      for (const [what, { drops, drop_causes }] of Object.entries({ 'for it': receive, 'of it': send }))
        if (drops > 0)
          this.#line(
            `port queue ${queue}: ${drops} packets ${what} dropped (${Object.keys(drop_causes).join(', ')})`,
          );
    if (stats.undelivered?.packets)
      this.#line(`${stats.undelivered.packets} packets came while the other device had no peer`);
  }

  #direction(key: string, ring: RingStats, seconds: number): Direction {
    const before = this.#previous.get(key) ?? { packets: 0, bytes: 0 };
    this.#previous.set(key, { packets: ring.packets, bytes: ring.bytes });
    return {
      packets: ring.packets,
      bytes: ring.bytes,
      pps: Math.round((ring.packets - before.packets) / seconds),
      bps: Math.round(((ring.bytes - before.bytes) * 8) / seconds),
      ...dropCounts(ring),
      notifications_sent: ring.notificationsSent,
      notifications_suppressed: ring.notificationsSuppressed,
      ring_fill: ring.fill,
      bursts: ring.bursts,
      ...(ring.broken !== undefined && { broken: ring.broken }),
    };
  }

  #object(object: { readonly event: string; readonly [key: string]: unknown }): void {
    const { event, ...rest } = object;
    const device = this.#device === undefined ? {} : { device: this.#device };
    process.stdout.write(`${JSON.stringify({ event, ...device, ...rest })}\n`);
  }

  #line(text: string): void {
    process.stdout.write(`${this.#device === undefined ? '' : `${this.#device}: `}${text}\n`);
  }
}

function dropCounts(ring: RingStats): Pick<Direction, 'drops' | 'drop_causes'> {
  return {
    drops: dropped(ring),
    drop_causes: Object.fromEntries(Object.entries(ring.drops).filter(([, n]) => n > 0)),
  };
}

function counts(ring: RingStats): Pick<Direction, 'packets' | 'bytes' | 'drops' | 'drop_causes'> {
  return { packets: ring.packets, bytes: ring.bytes, ...dropCounts(ring) };
}

function plain(d: Direction): string {
  const drops = d.drops ? `, ${d.drops} dropped (${Object.keys(d.drop_causes).join(', ')})` : '';
  return `${d.packets} packets, ${(d.pps / 1e6).toFixed(3)} Mpps, ${(d.bps / 1e9).toFixed(3)} Gbit/s${drops}${d.broken ? `, BROKEN: ${d.broken}` : ''}`;
}
