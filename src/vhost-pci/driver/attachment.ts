/**
 * Joins a connected peer's queue pairs to a port's queues on the workers, and takes them apart again. When `detach`
 * resolves, no thread can touch the peer's memory.
 */
import type { DirtyLog, PeerQueue, PortQueue, RingSignals, Worker } from '../../sys/native.js';
import { type Peer, receiveqOf, transmitqOf } from './peer.js';
import type { Lane, PeerAttachment, Port } from './ports.js';

interface AttachedPair {
  readonly index: number;
  readonly queue: PeerQueue;
  readonly worker: Worker;
  readonly lanes: readonly Lane[];
}

export class Attachment implements PeerAttachment {
  readonly #pairs: readonly AttachedPair[];

  private constructor(pairs: readonly AttachedPair[]) {
    this.#pairs = pairs;
  }

  /** Pair i goes to worker i modulo their number, with both of its directions: receive follows transmit. */
  static of(peer: Peer, port: Port, workers: readonly Worker[]): Attachment {
    return new Attachment(
      peer.pairs.map(({ index, queue }, i) => ({
        index,
        queue,
        worker: workers[port.oneWorker ? 0 : i % workers.length] as Worker,
        lanes: port.lanes(queue, index),
      })),
    );
  }

  /** Packets move from here on. A log is there before the first lane is. To be detached also when this throws. */
  async connect(log: DirtyLog | undefined): Promise<void> {
    if (log) await this.setDirtyLog(log);
    for (const { worker, lanes } of this.#pairs)
      for (const lane of lanes) await worker.connect(lane.from, lane.to, lane.policy);
  }

  get queues(): readonly { readonly index: number; readonly queue: PeerQueue }[] {
    return this.#pairs;
  }

  async detach(): Promise<void> {
    await Promise.all(
      this.#pairs.map(async ({ worker, queue, lanes }) => {
        // The peer first: from then on the lanes are gone, and the port's queues are merely released.
        await worker.detach(queue);
        const others = new Set<PortQueue>(lanes.flatMap((l) => [l.from, l.to]).filter((q) => q !== queue));
        for (const other of others) await worker.detach(other);
      }),
    );
  }

  /** Resolves when every later write of every pair is logged (or, without a log, when none is any more). */
  async setDirtyLog(log: DirtyLog | undefined): Promise<void> {
    const alone = new Set(this.#pairs.map(({ worker }) => worker)).size === 1;
    await Promise.all(
      this.#pairs.map(({ worker, queue }) => worker.setDirtyLog(queue, log && { ...log, alone })),
    );
  }

  /** `enabled(ring)` is asked for each ring by the peer's virtqueue index. */
  async setEnabled(enabled: (ring: number) => boolean): Promise<void> {
    await Promise.all(
      this.#pairs.map(({ worker, queue, index }) =>
        worker.setEnabled(queue, enabled(2 * index + 1), enabled(2 * index)),
      ),
    );
  }

  async rewire(signals: (ring: number) => RingSignals): Promise<void> {
    await Promise.all(
      this.#pairs.map(({ worker, queue, index }) =>
        worker.rewire(queue, signals(transmitqOf(index)), signals(receiveqOf(index))),
      ),
    );
  }
}
