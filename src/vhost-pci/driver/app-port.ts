/**
 * The packet API: a port whose other end is the program. Packets arrive in bursts, as places in a pool of our own with
 * views that are kept and used again, so that a callback can see tens of millions of packets a second. Copies each packet
 * once, from the peer's memory into the pool; nothing here reads the peer's memory.
 */
import { type AppQueue, native, type PeerQueue, type PortQueueStats } from '../../sys/native.js';
import { VhostPciError } from '../../util/errors.js';
import { VirtioNetHeader } from '../../virtio-net/header.js';
import type { Lane, PeerFacts, Port } from './ports.js';

/** Packets of one queue. Valid until the callback that got it returns: the pool's slots are used again afterwards. */
export interface Burst {
  /** Queue pair, from 0. */
  readonly queue: number;
  /** Number of packets. */
  readonly length: number;
  /** The frame of packet `i` (0 to length - 1), from the destination MAC on, without FCS. A view, not a copy. */
  frame(i: number): Uint8Array;
  /** Bytes of packet `i`'s frame. */
  size(i: number): number;
  /** The packet's virtio_net_hdr (VIRTIO 1.3, 5.1.6): checksum and segmentation that the peer left to us. Not to be written. */
  header(i: number): Uint8Array;
  /** Pairs of offset and length in `pool`, for code that wants no views at all: packet i is at 2i and 2i + 1. */
  readonly places: Uint32Array;
  readonly pool: Uint8Array;
}

export interface AppPortOptions {
  /** Packets that fit into a queue's pool, half of them in each direction. Default 4096. */
  readonly slots?: number;
  /** Largest frame, without FCS. Default 2036; 65550 takes unsegmented TCP. */
  readonly maxFrame?: number;
  /** Most packets in a burst. Default 256. */
  readonly burst?: number;
}

/** Bursts that are handed over before the event loop gets its turn. */
const BURSTS_A_TURN = 64;
const DEFAULT_MAX_FRAME = 2048 - VirtioNetHeader.size;

class QueueBurst implements Burst {
  readonly queue: number;
  readonly pool: Uint8Array;
  readonly places: Uint32Array;
  length = 0;
  /** One for each slot; most packets of a slot have the length of the one before. */
  readonly #views: Uint8Array[];
  readonly #slotsPerByte: number;

  constructor(queue: number, app: AppQueue, slots: number) {
    this.queue = queue;
    this.pool = new Uint8Array(app.pool);
    this.#views = new Array(slots).fill(this.pool.subarray(0, 0));
    this.#slotsPerByte = slots / this.pool.length;
    this.places = app.received;
  }

  frame(i: number): Uint8Array {
    const offset = this.places[2 * i] as number;
    const size = this.places[2 * i + 1] as number;
    // A product is rounded down faster than a quotient; no frame is at the very beginning of its slot.
    const slot = (offset * this.#slotsPerByte) | 0;
    const kept = this.#views[slot] as Uint8Array;
    if (kept.length === size) return kept;
    const view = this.pool.subarray(offset, offset + size);
    this.#views[slot] = view;
    return view;
  }

  size(i: number): number {
    return this.places[2 * i + 1] as number;
  }

  header(i: number): Uint8Array {
    const offset = this.places[2 * i] as number;
    return this.pool.subarray(offset - VirtioNetHeader.size, offset);
  }
}

/** One queue pair of the packet API. */
export class AppPortQueue {
  readonly native: AppQueue;
  readonly #burst: QueueBurst;
  readonly #maxFrame: number;
  #callback: ((burst: Burst) => void) | undefined;
  #waiting: (() => void)[] = [];
  #armed = false;
  #closed = false;

  constructor(index: number, options: Required<AppPortOptions>) {
    this.#maxFrame = options.maxFrame;
    this.native = new native.AppQueue({
      slots: options.slots,
      slotBytes: options.maxFrame + VirtioNetHeader.size,
      burst: options.burst,
    });
    this.#burst = new QueueBurst(index, this.native, options.slots);
  }

  /** Calls back with every burst from now on. A throw of the callback is the program's and is not caught. */
  onBurst(callback: (burst: Burst) => void): void {
    this.#callback = callback;
    this.#arm();
  }

  /**
   * Queues frames for the peer, each of 14 bytes to `maxFrame`. Returns how many were taken: fewer than given when the peer
   * does not keep up; see `writable`. Throws a RangeError for a frame of impossible size, before any is sent.
   */
  send(frames: readonly Uint8Array[]): number {
    for (const frame of frames)
      if (frame.length < 14 || frame.length > this.#maxFrame)
        throw new RangeError(`a frame of ${frame.length} bytes: 14 to ${this.#maxFrame} are possible`);
    return this.fill(frames.length, (slot, i) => {
      const frame = frames[i] as Uint8Array;
      slot.set(frame);
      return frame.length;
    });
  }

  /**
   * Writes up to `count` frames in place: `write` gets the slot and the packet's number, and returns the frame's length.
   * Returns how many slots there were.
   */
  fill(count: number, write: (slot: Uint8Array, i: number) => number): number {
    const { native: app } = this;
    const { pool } = this.#burst;
    const most = app.toSend.length / 2;
    let sent = 0;
    while (sent < count) {
      const got = app.reserve(Math.min(count - sent, most));
      if (got === 0) break;
      for (let i = 0; i < got; i++) {
        const offset = app.toSend[2 * i] as number;
        app.toSend[2 * i + 1] = write(pool.subarray(offset, offset + this.#maxFrame), sent + i);
      }
      app.send(got);
      sent += got;
    }
    return sent;
  }

  /** Resolves when slots may have come free after `send` took fewer than given. */
  writable(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      // Asked for anew, also when packets are waited for already: since then a send may have fallen short.
      this.#armed = false;
      this.#arm();
    });
  }

  close(): void {
    this.#closed = true;
    for (const resolve of this.#waiting.splice(0)) resolve();
    this.native.close();
  }

  #arm(): void {
    if (this.#armed || this.#closed) return;
    this.#armed = true;
    this.native.onReady(() => {
      this.#armed = false;
      this.#ready();
    });
  }

  #ready(): void {
    if (this.#closed) return;
    for (const resolve of this.#waiting.splice(0)) resolve();
    const callback = this.#callback;
    if (!callback) return;
    const burst = this.#burst;
    for (let n = 0; n < BURSTS_A_TURN; n++) {
      burst.length = this.native.receive();
      if (burst.length === 0) break;
      callback(burst);
      if (this.#closed) return;
    }
    // The slots of the last burst come free with the next receive: asked for again at once when more packets wait.
    this.#arm();
  }
}

export class AppPort implements Port {
  readonly kind = 'app';
  readonly #options: Required<AppPortOptions>;
  readonly #queues: AppPortQueue[] = [];
  #onBurst: ((burst: Burst) => void) | undefined;
  #facts: PeerFacts | undefined;
  #final: readonly PortQueueStats[] | undefined;

  /** Throws a RangeError for sizes that no pool can have. */
  constructor(options: AppPortOptions = {}) {
    this.#options = { slots: 4096, maxFrame: DEFAULT_MAX_FRAME, burst: 256, ...options };
    this.queue(0);
  }

  /** What is known of the peer while it is connected. */
  get peer(): PeerFacts | undefined {
    return this.#facts;
  }

  /** Queue pair `index`; made when first asked for, or when a peer has it. */
  queue(index: number): AppPortQueue {
    for (let i = this.#queues.length; i <= index; i++) {
      const queue = new AppPortQueue(i, this.#options);
      if (this.#onBurst) queue.onBurst(this.#onBurst);
      this.#queues.push(queue);
    }
    return this.#queues[index] as AppPortQueue;
  }

  /** Calls back with every burst of every queue pair. */
  onBurst(callback: (burst: Burst) => void): void {
    if (this.#onBurst) throw new VhostPciError('bug', 'EBUSY', 'this port has a burst callback already');
    this.#onBurst = callback;
    for (const queue of this.#queues) queue.onBurst(callback);
  }

  peerOn(facts: PeerFacts): void {
    this.#facts = facts;
  }

  peerOff(): void {
    this.#facts = undefined;
  }

  lanes(peer: PeerQueue, index: number): Lane[] {
    const app = this.queue(index).native;
    return [
      { from: peer, to: app, policy: 'hold' },
      { from: app, to: peer, policy: 'hold' },
    ];
  }

  stats(): readonly PortQueueStats[] {
    return this.#final ?? this.#queues.map((queue) => queue.native.stats());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#final = this.stats();
    for (const queue of this.#queues) queue.close();
  }
}
