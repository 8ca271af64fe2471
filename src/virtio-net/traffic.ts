/**
 * Checked traffic from and to an in-tree peer: numbered frames with a known pattern go out on every queue pair, and every
 * byte of what comes back is compared. For the demo, benchmarks and tests.
 */
import { native, type PortQueue, type SinkQueue, type VerifyResult, type Worker } from '../sys/native.js';
import type { NetPeer } from './peer.js';

export interface TrafficOptions {
  /** Frame length without FCS, 64 or more. */
  readonly bytes: number;
  readonly mode?: 'poll' | 'interrupt' | 'adaptive';
  /** Frames for each queue pair; without it, until `stop`. */
  readonly count?: number;
  readonly cpu?: number;
}

export interface TrafficTotals extends VerifyResult {
  /** Frames that the peer put into its transmitqs. */
  sent: number;
}

const BROADCAST = Buffer.alloc(6, 0xff);
const SOURCE_MAC = Buffer.from([0x02, 0, 0, 0, 0, 0x01]);
/** How long frames may be on their way after the last one was sent. */
const DRAIN_MS = 2000;

export class Traffic implements AsyncDisposable {
  readonly #peer: NetPeer;
  readonly #worker: Worker;
  readonly #sources: PortQueue[];
  readonly #sinks: SinkQueue[];
  readonly #sentBefore: number;

  private constructor(peer: NetPeer, options: TrafficOptions) {
    const { bytes, mode = 'adaptive', count, cpu } = options;
    this.#peer = peer;
    this.#worker = new native.Worker({ mode, name: 'peer', ...(cpu !== undefined && { cpu }) });
    this.#sources = peer.queues.map(
      (_, stream) =>
        new native.SourceQueue({
          bytes,
          destination: BROADCAST,
          source: SOURCE_MAC,
          stream,
          ...(count !== undefined && { count }),
        }),
    );
    this.#sinks = peer.queues.map((_, stream) => new native.SinkQueue({ stream }));
    this.#sentBefore = this.#sent();
  }

  static async start(peer: NetPeer, options: TrafficOptions): Promise<Traffic> {
    const traffic = new Traffic(peer, options);
    for (const [i, queue] of peer.queues.entries()) {
      await traffic.#worker.connect(queue, traffic.#sinks[i] as SinkQueue, 'hold');
      await traffic.#worker.connect(traffic.#sources[i] as PortQueue, queue, 'hold');
    }
    return traffic;
  }

  /** What was sent and what has come back so far. */
  totals(): TrafficTotals {
    const sum = {
      sent: this.#sent() - this.#sentBefore,
      packets: 0,
      lost: 0,
      reordered: 0,
      altered: 0,
      foreign: 0,
    };
    for (const sink of this.#sinks) {
      const found = sink.verified();
      for (const key of Object.keys(found) as (keyof VerifyResult)[]) sum[key] += found[key];
    }
    return sum;
  }

  /** Sends no more; resolves when everything sent has come back, or has not within two seconds. */
  async stopSending(): Promise<TrafficTotals> {
    for (const source of this.#sources) await this.#worker.detach(source);
    let totals = this.totals();
    for (let waited = 0; totals.packets < totals.sent && waited < DRAIN_MS; waited += 5) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      totals = this.totals();
    }
    // What was sent and has not come back is lost, also when nothing followed it.
    totals.lost = Math.max(totals.lost, totals.sent - totals.packets);
    return totals;
  }

  /** Ends the worker; the peer's queues are free for others afterwards. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.stop();
    for (const queue of [...this.#sources, ...this.#sinks]) queue.close();
  }

  #sent(): number {
    return this.#peer.queues.reduce((sum, queue) => sum + queue.stats().send.packets, 0);
  }
}
