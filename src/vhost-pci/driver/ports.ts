/**
 * What a peer is joined to: sink, source, echo, TAP or the packet API. A port says which lanes each of the peer's
 * queue pairs gets; workers and peers are none of its business.
 */
import {
  type DirtyLog,
  type LanePolicy,
  native,
  type PeerQueue,
  type PortQueue,
  type PortQueueStats,
  type RingSignals,
  type SinkQueue,
} from '../../sys/native.js';
import type { Peer } from './peer.js';

export interface Lane {
  readonly from: PortQueue;
  readonly to: PortQueue;
  readonly policy: LanePolicy;
}

/** Facts of a connected peer that a port adapts to. */
export interface PeerFacts {
  readonly features: bigint;
  readonly mtu: number;
  readonly pairs: number;
}

/** A peer that is joined to a port: its queue pairs are on workers until it is detached. */
export interface PeerAttachment {
  readonly queues: readonly { readonly index: number; readonly queue: PeerQueue }[];
  /** Packets move from here on. A log is there before the first lane is. To be detached also when this throws. */
  connect(log: DirtyLog | undefined): Promise<void>;
  /** When this resolves, no thread can touch the peer's memory. */
  detach(): Promise<void>;
  /** Resolves when every later write of every pair is logged (or, without a log, when none is any more). */
  setDirtyLog(log: DirtyLog | undefined): Promise<void>;
  /** `enabled(ring)` is asked for each ring by the peer's virtqueue index. */
  setEnabled(enabled: (ring: number) => boolean): Promise<void>;
  /** Other signals for each ring, by the peer's virtqueue index. */
  rewire(signals: (ring: number) => RingSignals): Promise<void>;
}

/** Packets that had nowhere to go, and their bytes. */
export interface Undelivered {
  readonly packets: number;
  readonly bytes: number;
}

export interface Port extends AsyncDisposable {
  readonly kind: 'sink' | 'source' | 'echo' | 'tap' | 'app' | 'peer';
  /** All pairs have to be run by the same worker. */
  readonly oneWorker?: boolean;
  /** The driver's local MAC address, before everything else. */
  setMac?(mac: Uint8Array): void;
  /** A peer is there; called before its lanes are asked for. */
  peerOn(facts: PeerFacts): void;
  peerOff(): void;
  /** Throws (scope `device`) when the port is of no use any more, such as a TAP interface that was deleted. */
  check?(): void;
  /** Lanes of the peer's pair `index`, all to be run by one worker. */
  lanes(peer: PeerQueue, index: number): Lane[];
  /** For a port that joins the peer in a way of its own: instead of `lanes`. */
  attach?(peer: Peer): PeerAttachment;
  /**
   * Counts of the port's own queues, from its point of view: `send` is what went into it. In the end, those that they
   * had. Ports without queues of their own leave it out.
   */
  stats?(): readonly PortQueueStats[];
  /** What came while nobody was at the other end. */
  undelivered?(): Undelivered;
  /** Sends a frame of our own out of the receiving side (RARP after a migration). */
  announce?(frame: Uint8Array): void;
  /** The peer's front-end has set an MTU. */
  setMtu?(mtu: number): void;
}

/** Queues of a port by pair, made when first asked for and kept over reconnections of the peer. */
export class QueueList<Q extends PortQueue> {
  readonly #make: (index: number) => Q;
  readonly queues: Q[] = [];
  #final: readonly PortQueueStats[] | undefined;

  constructor(make: (index: number) => Q) {
    this.#make = make;
  }

  at(index: number): Q {
    for (let i = this.queues.length; i <= index; i++) this.queues.push(this.#make(i));
    return this.queues[index] as Q;
  }

  stats(): readonly PortQueueStats[] {
    return this.#final ?? this.queues.map((queue) => queue.stats());
  }

  close(): void {
    this.#final = this.stats();
    for (const queue of this.queues.splice(0)) queue.close();
  }
}

/** Takes every packet of the peer, copies it once and counts it. */
export class SinkPort implements Port {
  readonly kind = 'sink';
  readonly sinks: QueueList<SinkQueue>;

  /** With `stream`, every packet is checked against that generator's stream. */
  constructor(stream?: number) {
    this.sinks = new QueueList(() => new native.SinkQueue(stream === undefined ? {} : { stream }));
  }

  peerOn(): void {}
  peerOff(): void {}

  lanes(peer: PeerQueue, index: number): Lane[] {
    return [{ from: peer, to: this.sinks.at(index), policy: 'hold' }];
  }

  stats(): readonly PortQueueStats[] {
    return this.sinks.stats();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.sinks.close();
  }
}

export interface SourcePortOptions {
  /** Frame length in bytes, without FCS. */
  readonly bytes: number;
  /** Source MAC; default the driver's. */
  readonly source?: Uint8Array;
  readonly destination?: Uint8Array;
  readonly stream?: number;
}

const BROADCAST = Buffer.alloc(6, 0xff);

/** Sends frames to the peer as fast as it takes them, and takes what it sends. */
export class SourcePort implements Port {
  readonly kind = 'source';
  readonly #sources: QueueList<PortQueue>;
  #mac: Uint8Array = Buffer.alloc(6);
  readonly #sinks: QueueList<SinkQueue>;

  constructor(options: SourcePortOptions) {
    this.#sources = new QueueList(
      () => new native.SourceQueue({ destination: BROADCAST, source: this.#mac, ...options }),
    );
    this.#sinks = new QueueList(() => new native.SinkQueue());
  }

  setMac(mac: Uint8Array): void {
    this.#mac = mac;
  }

  peerOn(): void {}
  peerOff(): void {}

  lanes(peer: PeerQueue, index: number): Lane[] {
    return [
      { from: this.#sources.at(index), to: peer, policy: 'hold' },
      { from: peer, to: this.#sinks.at(index), policy: 'hold' },
    ];
  }

  stats(): readonly PortQueueStats[] {
    const made = this.#sources.stats();
    return this.#sinks.stats().map(({ send }, i) => ({ receive: (made[i] as PortQueueStats).receive, send }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#sources.close();
    this.#sinks.close();
  }
}

/** Sends every packet of the peer back to it on the same pair. */
export class EchoPort implements Port {
  readonly kind = 'echo';

  peerOn(): void {}
  peerOff(): void {}

  lanes(peer: PeerQueue): Lane[] {
    return [{ from: peer, to: peer, policy: 'hold' }];
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
