/**
 * A peer that can be migrated from one back-end to another, as QEMU does it: the driver side of one queue pair under
 * load, a front-end that reads and clears the dirty log with atomic exchange, copies pages in passes while everything
 * runs, stops, takes the last bits, and goes on in the copy. Everything is in this process; the back-ends are real.
 */
import { closeSync } from 'node:fs';
import {
  type DriverQueue,
  type Mapping,
  native,
  type PortQueue,
  type RingAddresses,
  type SinkQueue,
} from '../../src/sys/native.js';
import { bits } from '../../src/util/flags.js';
import { FrontEnd } from '../../src/vhost-user/front-end.js';
import { PROTOCOL_FEATURE, VHOST_FEATURE } from '../../src/vhost-user/protocol.js';
import { FEATURE } from '../../src/virtio/features.js';
import { NET_FEATURE } from '../../src/virtio-net/features.js';

export const PAGE = 4096;
/** Low memory and memory above 4 GiB of one file; neither is a multiple of what a byte of the bitmap covers. */
const LOW = { gpa: 0x4000_0000n, pages: 21 };
const HIGH = { gpa: 0x1_4000_0000n, pages: 300 };
export const MEMORY_BYTES = (LOW.pages + HIGH.pages) * PAGE;
const LOG_BYTES = Math.ceil((Number(HIGH.gpa) / PAGE + HIGH.pages) / 8);
const USER = 0x7f00_0000_0000n;
const RING = 64;
const BUFFER = 2048;
const FRAME = 700;
const MAC = Buffer.from([2, 0, 0, 0, 0, 0xfe]);

const FEATURES = bits(
  VHOST_FEATURE.PROTOCOL_FEATURES,
  FEATURE.VERSION_1,
  FEATURE.EVENT_IDX,
  FEATURE.INDIRECT_DESC,
  NET_FEATURE.MRG_RXBUF,
);
const PROTOCOL = bits(PROTOCOL_FEATURE.LOG_SHMFD, PROTOCOL_FEATURE.REPLY_ACK, PROTOCOL_FEATURE.STATUS);

/** A log in a file of its own. */
class Bitmap {
  readonly fd = native.memfdCreate('log', LOG_BYTES);
  readonly mapping = new native.Mapping(this.fd, 0, LOG_BYTES, true);
  readonly offset = 0;
  readonly bytes = LOG_BYTES;

  close(): void {
    this.mapping.close();
    closeSync(this.fd);
  }
}

interface Span {
  readonly at: number;
  readonly length: number;
}

export class MigratingPeer implements AsyncDisposable {
  readonly memoryFd: number;
  readonly #memory: Mapping;
  readonly #queue: DriverQueue;
  readonly #worker = new native.Worker({ mode: 'interrupt' });
  readonly #source: PortQueue;
  readonly #sink: SinkQueue;
  readonly #fds = Array.from({ length: 4 }, () => native.eventfd());
  /** Bits that were taken from a log. */
  readonly #taken = new Bitmap();
  #log = new Bitmap();
  #frontEnd: FrontEnd | undefined;
  #bases = [0, 0];
  #running = false;
  /** Pages copied again because the log said so. */
  copied = 0;

  /** All of the memory is in `fd`, which stays the caller's. */
  constructor(fd: number) {
    this.memoryFd = fd;
    this.#memory = new native.Mapping(fd, 0, MEMORY_BYTES, true);
    const [receiveCall, transmitCall, receiveKick, transmitKick] = this.#fds as [
      number,
      number,
      number,
      number,
    ];
    // The queue is in high memory: low memory has nothing but to be there.
    this.#queue = new native.DriverQueue({
      mapping: this.#memory,
      offset: LOW.pages * PAGE,
      address: HIGH.gpa,
      size: RING,
      bufferBytes: BUFFER,
      features: FEATURES,
      receiveCallFd: receiveCall,
      transmitCallFd: transmitCall,
      receiveKickFd: receiveKick,
      transmitKickFd: transmitKick,
    });
    this.#source = new native.SourceQueue({ bytes: FRAME, destination: MAC, source: MAC, stream: 1 });
    this.#sink = new native.SinkQueue({ stream: 1 });
  }

  get frontEnd(): FrontEnd {
    if (!this.#frontEnd) throw new Error('not connected');
    return this.#frontEnd;
  }

  /** Frames that came back from the receiving side so far. */
  get received(): number {
    return this.#sink.verified().packets;
  }

  // -- the guest ---------------------------------------------------------------------------------------------------

  /** Runs the guest: frames go out, and what comes back is checked. */
  async run(): Promise<void> {
    await this.#worker.connect(this.#queue, this.#sink, 'hold');
    await this.#worker.connect(this.#source, this.#queue, 'hold');
    this.#running = true;
  }

  /** The vCPUs stop: nothing of the guest is written any more. */
  async pause(): Promise<void> {
    if (!this.#running) return;
    this.#running = false;
    await this.#worker.detach(this.#queue);
    await this.#worker.detach(this.#source);
  }

  /**
   * Sends no more and waits for what is on its way. What the rings took has to be there, once and unaltered; frames that
   * the guest gave up itself when it was stopped are not lost, but never sent.
   */
  async settle(): Promise<{
    sent: number;
    received: number;
    lost: number;
    altered: number;
    notSent: number;
  }> {
    await this.#worker.detach(this.#source);
    const stats = this.#queue.stats().send;
    for (let waited = 0; waited < 5000 && this.received < stats.packets; waited += 5)
      await new Promise((resolve) => setTimeout(resolve, 5));
    const { packets, lost, altered, reordered, foreign } = this.#sink.verified();
    return {
      sent: stats.packets,
      received: packets,
      // A number that never entered the ring is missing in the stream as well.
      lost: stats.packets - packets,
      altered: altered + reordered + foreign + Math.max(0, lost - stats.drops['no-buffers']),
      notSent: stats.drops['no-buffers'],
    };
  }

  // -- the front-end -----------------------------------------------------------------------------------------------

  /** Starts the rings, where they are, on the back-end that listens on `path`. */
  async connect(path: string): Promise<void> {
    await this.#open(path);
    await this.start();
  }

  /**
   * As QEMU does when the connection went in the middle of a migration: everything again, with LOG_ALL on, and the rings
   * from where the used rings say.
   */
  async reconnect(path: string): Promise<void> {
    await this.#open(path);
    const { receiveq, transmitq } = this.#queue;
    this.#bases = [receiveq, transmitq].map((r) => this.#memory.load16(this.#offset(r.device + 2n)));
    this.frontEnd.resumeLogging({ fd: this.#log.fd, size: LOG_BYTES, offset: 0 });
    await this.start();
  }

  /**
   * A QEMU that a guest is migrated to enables the rings before it starts them. Otherwise what waits in the transmitq is
   * discarded, as vhost-user wants it of a ring that is started and not enabled.
   */
  async #open(path: string): Promise<void> {
    this.#frontEnd = FrontEnd.connect(path);
    await this.frontEnd.negotiate(FEATURES, PROTOCOL);
    for (const ring of [0, 1]) await this.frontEnd.setEnabled(ring, true);
  }

  /** Starts the rings again. */
  async start(): Promise<void> {
    const [receiveCall, transmitCall, receiveKick, transmitKick] = this.#fds;
    const regions = [
      { ...LOW, userAddress: USER, fileOffset: 0 },
      { ...HIGH, userAddress: USER + BigInt(LOW.pages * PAGE), fileOffset: LOW.pages * PAGE },
    ].map(({ gpa, pages, userAddress, fileOffset }) => ({
      gpa,
      userAddress,
      size: pages * PAGE,
      fileOffset,
      fd: this.memoryFd,
    }));
    await this.frontEnd.start(regions, [
      { ...this.#queue.receiveq, base: this.#bases[0]!, kickFd: receiveKick!, callFd: receiveCall! },
      { ...this.#queue.transmitq, base: this.#bases[1]!, kickFd: transmitKick!, callFd: transmitCall! },
    ]);
  }

  /** Stops the rings and keeps their places. */
  async stop(): Promise<void> {
    for (const index of [1, 0]) this.#bases[index] = await this.frontEnd.stopRing(index);
  }

  async disconnect(): Promise<void> {
    const frontEnd = this.frontEnd;
    this.#frontEnd = undefined;
    frontEnd.close();
    await frontEnd.closed;
  }

  startLogging(): Promise<void> {
    return this.frontEnd.startLogging({ fd: this.#log.fd, size: LOG_BYTES, offset: 0 });
  }

  /** Another log in the middle of a migration, as when memory is plugged in. Its predecessor is read and freed. */
  async replaceLog(copy: Buffer): Promise<void> {
    const old = this.#log;
    this.#log = new Bitmap();
    await this.startLogging();
    this.pass(copy, old);
    old.close();
  }

  /** A copy of the memory as a migration begins it: everything is to be sent. */
  beginCopy(): Buffer {
    return this.#memory.read(0, MEMORY_BYTES);
  }

  /** One pass: the pages that the log has go into `copy`. Returns their number. */
  pass(copy: Buffer, log = this.#log): number {
    const pages = this.#take(log);
    for (const page of pages) this.#memory.read(page * PAGE, PAGE).copy(copy, page * PAGE);
    this.copied += pages.length;
    return pages.length;
  }

  /** Reads and clears the log: pages of the file. */
  #take(log: Bitmap): number[] {
    const ranges = [{ first: 0, count: 8 * LOG_BYTES, shift: 0 }];
    const mover = new native.LogMover({ from: log, to: this.#taken, ranges });
    mover.move();
    mover.close();
    const pages: number[] = [];
    for (const [{ gpa, pages: count }, base] of [
      [LOW, 0],
      [HIGH, LOW.pages],
    ] as const) {
      const first = Number(gpa) / PAGE;
      const from = first >> 3;
      const bytes = this.#taken.mapping.read(from, Math.ceil((first + count) / 8) - from);
      for (let i = 0; i < count; i++)
        if (bytes[((first + i) >> 3) - from]! & (1 << ((first + i) & 7))) pages.push(base + i);
      this.#taken.mapping.write(from, Buffer.alloc(bytes.length));
    }
    return pages;
  }

  /**
   * What the guest itself wrote goes into `copy`: QEMU knows of that without a log. By bytes, so that a used ring in the same page
   * comes by the log or not at all.
   */
  copyGuestWrites(copy: Buffer): void {
    for (const { at, length } of this.#guestWrites()) this.#memory.read(at, length).copy(copy, at);
  }

  /** Pages in which the memory and the copy differ. */
  differing(copy: Buffer): number[] {
    const now = this.#memory.read(0, MEMORY_BYTES);
    const pages = Array.from({ length: MEMORY_BYTES / PAGE }, (_, i) => i);
    return pages.filter((p) => now.compare(copy, p * PAGE, (p + 1) * PAGE, p * PAGE, (p + 1) * PAGE) !== 0);
  }

  /** From here on the memory is the copy. */
  become(copy: Buffer): void {
    this.#memory.write(0, Buffer.alloc(MEMORY_BYTES, 0xdb));
    this.#memory.write(0, copy);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#frontEnd) await this.disconnect();
    await this.#worker.stop();
    for (const queue of [this.#queue, this.#source, this.#sink]) queue.close();
    for (const one of [this.#memory, this.#log, this.#taken]) one.close();
    for (const fd of this.#fds) closeSync(fd);
  }

  #offset(address: bigint): number {
    return Number(address - HIGH.gpa) + LOW.pages * PAGE;
  }

  /** Descriptor tables, available rings, and the buffers of the transmitq. */
  #guestWrites(): Span[] {
    const at = (address: bigint): number => this.#offset(address);
    const ring = (r: RingAddresses): Span[] => [
      { at: at(r.desc), length: 16 * r.size },
      { at: at(r.driver), length: 6 + 2 * r.size },
    ];
    const { receiveq, transmitq } = this.#queue;
    const first = this.#memory.read(at(receiveq.desc), 32);
    const buffers = first.readBigUInt64LE(0);
    const stride = Number(first.readBigUInt64LE(16) - buffers);
    return [
      ...ring(receiveq),
      ...ring(transmitq),
      { at: at(buffers) + RING * stride, length: RING * stride },
    ];
  }
}
