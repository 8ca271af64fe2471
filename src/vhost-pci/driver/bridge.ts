/**
 * Joins the peers of two devices: what one transmits goes into the other's receiveqs by a single copy. Theory of operation:
 *
 * - Pair i of one side goes with pair i of the other, counted among the enabled ones; the side with fewer is shared. A
 *   queue belongs to one worker, so all pairs that meet in one are on the same.
 * - A peer that does not take its packets loses them (policy "drop"): it must not stall the other.
 * - While one side has no peer, what the other transmits is taken, counted as undelivered and gone: a stock guest
 *   whose transmitq stands still would call its device dead.
 * - Whenever a side changes, everything is taken off the workers and joined anew. One change at a time.
 *
 * Knows no device and no command.
 */
import {
  type AppQueue,
  type DirtyLog,
  native,
  type PortQueue,
  type RingSignals,
  type SinkQueue,
  type Worker,
} from '../../sys/native.js';
import { errorText } from '../../util/errors.js';
import { bitNames, hasBit } from '../../util/flags.js';
import { type Log, silentLog } from '../../util/log.js';
import { NET_FEATURE } from '../../virtio-net/features.js';
import { type Peer, receiveqOf, transmitqOf } from './peer.js';
import type { Lane, PeerAttachment, Port, Undelivered } from './ports.js';
import type { WorkerPool } from './workers.js';

export class Bridge {
  /** One for each device's endpoint, which has to be given the same pool. */
  readonly ports: readonly [Port, Port];
  readonly #workers: readonly Worker[];
  readonly #log: Log;
  readonly #sides: readonly [Side, Side] = [new Side(), new Side()];
  #held: { readonly worker: Worker; readonly queue: PortQueue }[] = [];
  #work: Promise<unknown> = Promise.resolve();

  constructor(pool: WorkerPool, log: Log = silentLog) {
    this.#workers = pool.workers;
    this.#log = log;
    const [a, b] = this.#sides;
    this.ports = [this.#port(a), this.#port(b)];
  }

  #port(side: Side): Port {
    return {
      kind: 'peer',
      peerOn: () => {},
      peerOff: () => {},
      lanes: () => [],
      attach: (peer) => this.#attach(side, peer),
      undelivered: () => side.undelivered(),
      announce: (frame) => side.announce(frame),
      [Symbol.asyncDispose]: async () => side.close(),
    };
  }

  #attach(side: Side, peer: Peer): PeerAttachment {
    return {
      queues: peer.pairs,
      connect: (log) =>
        this.#alone(async () => {
          side.peer = peer;
          side.enabled = new Map(peer.pairs.map((p) => [p.index, p.enabled]));
          await this.#logAll(peer, log);
          this.#warnOfOffloads();
          await this.#join();
        }),
      detach: () =>
        this.#alone(async () => {
          if (side.peer !== peer) return;
          side.peer = undefined;
          await this.#part();
          // The peer is let go of by now; that the other is not served is no reason to keep it.
          await this.#join().catch((error) => this.#log.error(`the other peer: ${errorText(error)}`));
        }),
      setDirtyLog: (log) => this.#alone(() => this.#logAll(peer, log)),
      setEnabled: (enabled) => this.#alone(() => this.#enable(side, peer, enabled)),
      rewire: (signals) => this.#alone(() => this.#rewireAll(peer, signals)),
    };
  }

  async #enable(side: Side, peer: Peer, enabled: (ring: number) => boolean): Promise<void> {
    let changed = false;
    for (const { index, queue } of peer.pairs) {
      const receive = enabled(2 * index);
      const transmit = enabled(2 * index + 1);
      await this.#workerOf(queue).setEnabled(queue, transmit, receive);
      changed ||= side.enabled.get(index) !== (receive && transmit);
      side.enabled.set(index, receive && transmit);
    }
    if (changed) await this.#join();
  }

  async #logAll(peer: Peer, log: DirtyLog | undefined): Promise<void> {
    const alone = this.#workers.length === 1;
    for (const { queue } of peer.pairs)
      await this.#workerOf(queue).setDirtyLog(queue, log && { ...log, alone });
  }

  async #rewireAll(peer: Peer, signals: (ring: number) => RingSignals): Promise<void> {
    for (const { index, queue } of peer.pairs)
      await this.#workerOf(queue).rewire(queue, signals(transmitqOf(index)), signals(receiveqOf(index)));
  }

  /** The worker that has the queue; any other may have it when none does. */
  #workerOf(queue: PortQueue): Worker {
    return this.#held.find((h) => h.queue === queue)?.worker ?? (this.#workers[0] as Worker);
  }

  /** Takes every queue of both sides off its worker. */
  async #part(): Promise<void> {
    for (let held = this.#held.pop(); held; held = this.#held.pop()) await held.worker.detach(held.queue);
  }

  /** Joins whatever is there now. */
  async #join(): Promise<void> {
    await this.#part();
    for (const { worker, lane } of joints(this.#sides, this.#workers)) {
      // Before the lane is there: what was begun has to be taken apart, also when this throws.
      for (const queue of [lane.from, lane.to])
        if (!this.#held.some((h) => h.queue === queue)) this.#held.push({ worker, queue });
      await worker.connect(lane.from, lane.to, lane.policy);
    }
  }

  #warnOfOffloads(): void {
    const [a, b] = this.#sides;
    for (const [from, to] of [
      [a.peer, b.peer],
      [b.peer, a.peer],
    ] as const) {
      const lost = from && to ? refusedOffloads(from.features, to.features) : [];
      if (lost.length > 0)
        this.#log.warn(
          `one peer may send unsegmented packets (${lost.join(', ')}) that the other does not take: they are ` +
            'dropped. Give both peers the same offloads, such as host_tso4=off,host_tso6=off for the sender',
        );
    }
  }

  /** Runs `work` after all that was begun before it. */
  #alone<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#work.then(work);
    this.#work = done.catch(() => {});
    return done;
  }
}

/** What one device's peer needs here: kept over its connections. */
class Side {
  peer: Peer | undefined;
  /** Of the peer's pairs, by index. */
  enabled = new Map<number, boolean>();
  /** Takes the peer's announcements, for the other side. */
  readonly announcer: AppQueue = new native.AppQueue({ slots: 8, slotBytes: ANNOUNCER_SLOT, burst: 1 });
  readonly #sinks = new Map<number, SinkQueue>();
  #final: Undelivered | undefined;

  /** Where the pair's packets go while there is nobody on the other side. */
  sink(index: number): SinkQueue {
    const sink = this.#sinks.get(index) ?? new native.SinkQueue();
    this.#sinks.set(index, sink);
    return sink;
  }

  undelivered(): Undelivered {
    if (this.#final) return this.#final;
    const all = [...this.#sinks.values()].map((sink) => sink.stats().send);
    return {
      packets: all.reduce((sum, s) => sum + s.packets, 0),
      bytes: all.reduce((sum, s) => sum + s.bytes, 0),
    };
  }

  announce(frame: Uint8Array): void {
    // Several in a row say the same: one that finds no slot is not missed.
    if (frame.length > ANNOUNCER_SLOT - HEADER_BYTES || this.announcer.reserve(1) === 0) return;
    const [offset = 0] = this.announcer.toSend;
    new Uint8Array(this.announcer.pool).set(frame, offset);
    this.announcer.toSend[1] = frame.length;
    this.announcer.send(1);
  }

  close(): void {
    this.#final = this.undelivered();
    for (const sink of this.#sinks.values()) sink.close();
    this.#sinks.clear();
    this.announcer.close();
  }
}

/** Room for a frame of minimum length behind its virtio_net_hdr. */
const ANNOUNCER_SLOT = 128;
const HEADER_BYTES = 12;

interface Joint {
  readonly worker: Worker;
  readonly lane: Lane;
}

/** The lanes of what is there, each with its worker; no queue is on two workers. */
function joints(sides: readonly [Side, Side], workers: readonly Worker[]): Joint[] {
  const [a, b] = sides.map((side) => (side.peer?.pairs ?? []).filter((p) => side.enabled.get(p.index)));
  const groups = Math.min(a?.length ?? 0, b?.length ?? 0);
  const worker = (position: number): Worker => workers[position % workers.length] as Worker;
  const out: Joint[] = [];
  for (const [side, mine = [], theirs = []] of [
    [sides[0], a, b],
    [sides[1], b, a],
  ] as const) {
    for (const pair of side.peer?.pairs ?? []) {
      const position = mine.indexOf(pair);
      const other = position < 0 ? undefined : theirs[position % theirs.length];
      // A disabled ring is emptied all the same (vhost-user.rst, "Ring states").
      if (!other) out.push({ worker: worker(pair.index), lane: drop(pair.queue, side.sink(pair.index)) });
      else out.push({ worker: worker(position % groups), lane: drop(pair.queue, other.queue) });
    }
    const [first] = theirs;
    if (first && mine.length > 0) out.push({ worker: worker(0), lane: drop(side.announcer, first.queue) });
  }
  return out;
}

function drop(from: PortQueue, to: PortQueue): Lane {
  return { from, to, policy: 'drop' };
}

/** What a sender's driver may leave to the device, and the same in the receiver's words (VIRTIO 1.3, 5.1.3). */
const OFFLOADS = [
  [NET_FEATURE.HOST_TSO4, NET_FEATURE.GUEST_TSO4],
  [NET_FEATURE.HOST_TSO6, NET_FEATURE.GUEST_TSO6],
  [NET_FEATURE.HOST_UFO, NET_FEATURE.GUEST_UFO],
] as const;

/** Names of the offloads that make the engine drop packets on the way; a missing checksum it completes. */
function refusedOffloads(from: bigint, to: bigint): string[] {
  const lost = OFFLOADS.filter(([host, guest]) => hasBit(from, host) && !hasBit(to, guest));
  return lost.flatMap(([host]) => bitNames(1n << BigInt(host), NET_FEATURE));
}
