/**
 * The whole surface of the C++ addon, in types. The binding checks type and range of every argument and throws
 * a `TypeError` or `RangeError`; a failed system call throws an `Error` with `code` (`ENOENT`, …) and `syscall`.
 * Nothing else in the tree loads the addon.
 *
 * Addresses are bigint, offsets and lengths are numbers (safe integers). File descriptors are numbers; a class
 * that takes one duplicates it, so that the caller keeps its own and closes it.
 */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * A shared mapping of a file. Accesses are guarded: when another process has shrunk the file, the mapping becomes
 * `faulted` and the access throws `EFAULT` instead of ending the process (decision D3).
 */
export interface Mapping {
  /** Bytes mapped. */
  readonly size: number;
  /** Virtual address of the first byte, for messages that carry it. */
  readonly address: bigint;
  /** True once an access met a page that the file no longer has; stays true. */
  readonly faulted: boolean;
  /** A copy of `length` bytes at `offset`. */
  read(offset: number, length: number): Buffer;
  write(offset: number, data: Uint8Array): void;
  /** Atomic accesses of an aligned little-endian word: acquire load, release store, exchange, OR. */
  load16(offset: number): number;
  load32(offset: number): number;
  store32(offset: number, value: number): void;
  exchange32(offset: number, value: number): number;
  /**
   * Unmaps as soon as no region table, queue, port or relay made from this mapping remains. Idempotent; later
   * accesses through this object throw `EBADF`.
   */
  close(): void;
}

/** One region of a foreign address space: `size` bytes at `address` are the mapping's bytes at `offset`. */
export interface Region {
  readonly address: bigint;
  readonly size: number;
  readonly mapping: Mapping;
  readonly offset: number;
}

/** An immutable address space; throws `RangeError` for regions that overlap, wrap, are empty or leave their mapping. */
export interface RegionTable {
  readonly regions: number;
  /** A copy of `length` bytes at `address`; throws `EFAULT` when any of them is in no region. */
  read(address: bigint, length: number): Buffer;
  write(address: bigint, data: Uint8Array): void;
  /** Lets go of the mappings now; queues made from the table keep them. Idempotent; later accesses throw `EBADF`. */
  close(): void;
}

/** Where a ring is. Addresses are in the address space of the region table that goes with it. */
export interface RingAddresses {
  /** Entries; a power of two, 1 to 32768. */
  readonly size: number;
  /** Descriptor table. */
  readonly desc: bigint;
  /** Driver area: the available ring. */
  readonly driver: bigint;
  /** Device area: the used ring. */
  readonly device: bigint;
}

export interface ControlChain {
  /** Names the chain when it is pushed back. */
  readonly head: number;
  /** A copy of the chain's device-readable bytes. */
  readonly readable: Buffer;
  /** Bytes that the device may write. */
  readonly writable: number;
}

/**
 * Device side of a split control queue, on the calling thread. A malformed ring throws `EBADRING` with the
 * cause in the message, and the queue refuses further work.
 */
export interface ControlDeviceQueue {
  /** Next available chain, or undefined. Chains of more than `limit` bytes (default 64 KiB) are malformed. */
  pop(): ControlChain | undefined;
  /** Writes `data` to the chain's writable part (`RangeError` when longer) and returns the chain to the driver. */
  push(head: number, data?: Uint8Array): void;
  /** True when the driver wants an interrupt for what was pushed since the last call. */
  needsInterrupt(): boolean;
  /** Lets go of the memory now. Idempotent; later calls throw `EBADF`. */
  close(): void;
  /** Goes on in another address space, in which the rings are at the same addresses; `EBADRING` when they are not. */
  setTable(table: RegionTable): void;
}

/**
 * Driver side of a split control queue, in memory of our own: rings and one fixed buffer per entry, laid out from
 * `offset` of `mapping`, which the device sees at `address`.
 */
export interface ControlDriverQueue {
  readonly addresses: RingAddresses;
  /** Offers a buffer that holds `data`, for the device to read. False when all entries are in use. */
  addReadable(data: Uint8Array): boolean;
  /** Offers an empty buffer for the device to write. False when all entries are in use. */
  addWritable(): boolean;
  /** Next buffer that came back: what the device wrote (a copy, empty for readable ones), or undefined. */
  harvest(): Buffer | undefined;
  /** True when the device wants a notification for what was added since the last call. */
  needsNotify(): boolean;
  /** Lets go of the memory now. Idempotent; later calls throw `EBADF`. */
  close(): void;
}

/** Why a packet or a ring was given up; the index into `PortQueueStats.drops`. */
export const DROP_CAUSES = [
  'no-buffers', // the destination had no room
  'too-short', // fewer bytes than an Ethernet header
  'too-long', // more than the destination takes
  'bad-header', // virtio_net_hdr with impossible fields
  'offload', // needs an offload that the destination did not negotiate
  'bad-chain', // a chain that cannot be a packet, though the ring is sound
  'disabled', // arrived on a ring that is started but not enabled
  'device-error', // the destination's system call failed
] as const;
export type DropCause = (typeof DROP_CAUSES)[number];

/** Packets a burst: 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64 and more. */
export const BURST_CLASSES = 7;

/** One direction of one queue. Counters never go back. */
export interface RingStats {
  packets: number;
  bytes: number;
  bursts: number[];
  drops: Record<DropCause, number>;
  /** Interrupts or kicks sent to the other side, and those that it did not want. */
  notificationsSent: number;
  notificationsSuppressed: number;
  /** Entries that the other side has made available and we have not taken yet, when it was last looked at. */
  fill: number;
  /** Why the ring was given up, or undefined while it works. */
  broken: string | undefined;
}

export interface PortQueueStats {
  /** What came out of this port (for a peer: what the peer transmitted). */
  receive: RingStats;
  /** What went into it. */
  send: RingStats;
}

/** How the other side of a ring is told. At most one of `fd` and `mmio` is the last resort behind `doorbell`. */
export interface NotifyTarget {
  /** An eventfd to signal. It may be the peer's own: whatever the peer does to it, that takes no time (`foreignEventfds`). */
  readonly fd?: number;
  /** A 16-bit store of `value` into a device register. */
  readonly mmio?: { readonly mapping: Mapping; readonly offset: number; readonly value: number };
  /**
   * A shared doorbell word (protocol.md, P6): it is incremented first; `fd` or `mmio` follows only when bit 0 of
   * the word at `sleepOffset` says that the device sleeps.
   */
  readonly doorbell?: { readonly mapping: Mapping; readonly offset: number; readonly sleepOffset: number };
}

/** The signals of a ring, in both directions. */
export interface RingSignals {
  /** Eventfd that the other side signals, or absent when the ring has to be polled. */
  readonly kickFd?: number;
  readonly notify?: NotifyTarget;
}

export interface PeerRing extends RingAddresses, RingSignals {
  /** The available index to go on from. */
  readonly nextAvail: number;
  readonly enabled: boolean;
}

/** One queue of a port: what workers move packets from and to. Ends with `close()`, once no worker has it. */
export interface PortQueue {
  stats(): PortQueueStats;
  /** Throws `EBUSY` while a worker has it. */
  close(): void;
}

export interface PeerQueueOptions {
  readonly table: RegionTable;
  /** Feature bits negotiated with the peer. */
  readonly features: bigint;
  /** The peer's transmitq: what we receive from. */
  readonly transmit?: PeerRing;
  /** The peer's receiveq: what we send to. */
  readonly receive?: PeerRing;
  /** Largest frame accepted, without virtio_net_hdr; default 65550. */
  readonly maxFrame?: number;
}

/** Device side of one queue pair of a virtio-net peer. */
export interface PeerQueue extends PortQueue {
  /** Next available index of each ring, exact once no worker has the queue. */
  nextAvail(): { transmit: number | undefined; receive: number | undefined };
}

export interface DriverQueueOptions {
  /** Own memory that holds rings and packet buffers: `DriverQueue.bytes(options)` bytes from `offset` are used. */
  readonly mapping: Mapping;
  readonly offset: number;
  /** The address that the device side uses for the first of these bytes. */
  readonly address: bigint;
  readonly size: number;
  readonly bufferBytes: number;
  readonly features: bigint;
  readonly receiveCallFd?: number;
  readonly transmitCallFd?: number;
  readonly receiveKickFd?: number;
  readonly transmitKickFd?: number;
}

/** Driver side of one queue pair (virtio-net driver): receive takes from the receiveq, send fills the transmitq. */
export interface DriverQueue extends PortQueue {
  readonly receiveq: RingAddresses;
  readonly transmitq: RingAddresses;
}

export interface SourceOptions {
  /** Frame length without virtio_net_hdr, 14 to 65535. */
  readonly bytes: number;
  /** Destination and source MAC of the frames. */
  readonly destination: Uint8Array;
  readonly source: Uint8Array;
  /** Stop after this many packets; without it, never. */
  readonly count?: number;
  /** Every payload carries a sequence number, stream id and checkable pattern (for `SinkOptions.verify`). */
  readonly stream?: number;
}

export interface SinkOptions {
  /** Check sequence, pattern and length of the packets of this stream. */
  readonly stream?: number;
}

/** What a verifying sink found. All zero but `packets` when nothing was lost or altered. */
export interface VerifyResult {
  packets: number;
  lost: number;
  reordered: number;
  altered: number;
  foreign: number;
}

export interface SinkQueue extends PortQueue {
  verified(): VerifyResult;
}

export interface TapQueueOptions {
  /** An open, attached tun fd with IFF_VNET_HDR and a 12-byte header. */
  readonly fd: number;
  readonly maxFrame?: number;
}

/**
 * Packets to and from JavaScript. The pool is memory of our own; a slot holds one frame after its 12-byte
 * virtio_net_hdr. `slots` below are pairs (byte offset of the frame in the pool, length).
 */
export interface AppQueue extends PortQueue {
  readonly pool: ArrayBuffer;
  /** What `receive` filled: pairs of offset and length. */
  readonly received: Uint32Array;
  /** What `send` takes: pairs of offset and length, filled by the caller. */
  readonly toSend: Uint32Array;
  /** Number of packets now described in `received` (0 to burst). Frees those of the previous call. */
  receive(): number;
  /**
   * Reserves up to `n` free slots for sending: their offsets, each with the slot's capacity, go to `toSend`. Their
   * headers are zero. Offsets must not be changed; the caller fills in the lengths (from 14).
   */
  reserve(n: number): number;
  /** Queues the first `n` slots of `toSend`. Every reserved slot beyond `n` becomes free again. */
  send(n: number): void;
  /**
   * Calls back once, on the main thread, when packets wait, or when slots came free after a `reserve` that fell
   * short. To be asked after `receive` returned 0: packets that are still described keep their slots.
   */
  onReady(callback: () => void): void;
}

export interface AppQueueOptions {
  readonly slots: number;
  /** Bytes a slot; frames that do not fit are dropped as `too-long`. */
  readonly slotBytes: number;
  readonly burst?: number;
}

export type WorkerMode = 'poll' | 'interrupt' | 'adaptive';

export interface WorkerOptions {
  readonly mode: WorkerMode;
  /** CPU to pin the thread to. */
  readonly cpu?: number;
  /** Adaptive: microseconds without a packet before the worker arms and sleeps. Default 50. */
  readonly spinMicroseconds?: number;
  /** Shown by `top -H`, at most 15 characters. */
  readonly name?: string;
}

/** What a lane does with packets that the destination has no room for now. */
export type LanePolicy = 'hold' | 'drop';

export interface WorkerStats {
  /** Times the thread slept and was woken, and rounds over its lanes with and without packets. */
  wakeups: number;
  busyRounds: number;
  idleRounds: number;
  state: 'running' | 'sleeping' | 'stopped';
}

export interface WorkerEvent {
  readonly queue: PortQueue;
  readonly direction: 'receive' | 'send';
  /** `broken`: the ring is given up, with the cause. `end`: a source reached its count. */
  readonly event: 'broken' | 'end';
  readonly cause: string;
}

/** A native thread that moves bursts along lanes, each from one queue to another. */
export interface Worker {
  /** Resolves to the lane's number when the thread has taken it up. */
  connect(from: PortQueue, to: PortQueue, policy: LanePolicy): Promise<number>;
  /** Resolves when no lane of this worker touches the queue's memory, ever again (the detach handshake). */
  detach(queue: PortQueue): Promise<void>;
  /** Switches a peer queue's dirty log at a burst boundary; resolves when every later write is logged. */
  setDirtyLog(queue: PeerQueue, log: DirtyLog | undefined): Promise<void>;
  /** Allows or forbids the rings of a peer queue at a burst boundary (VHOST_USER_SET_VRING_ENABLE). */
  setEnabled(queue: PeerQueue, transmit: boolean, receive: boolean): Promise<void>;
  /** Other signals for the rings of a peer queue, at a burst boundary; each new target is signalled once. */
  rewire(queue: PeerQueue, transmit: RingSignals, receive: RingSignals): Promise<void>;
  onEvent(callback: (event: WorkerEvent) => void): void;
  stats(): WorkerStats;
  /** Detaches everything, ends and joins the thread. Idempotent. */
  stop(): Promise<void>;
}

/** `bytes` bytes of bits from `offset` of a writable mapping, in the order of VHOST_USER_SET_LOG_BASE (`log[n / 8] |= 1 << (n % 8)`). */
export interface Bitmap {
  readonly mapping: Mapping;
  readonly offset: number;
  readonly bytes: number;
}

/** Written pages of 4096 bytes: bit n covers bytes from 4096·n of the address space's single file. */
export interface DirtyLog extends Bitmap {
  /** No other worker sets bits of this bitmap: then it takes neither locked operations nor fences. Default: false. */
  readonly alone?: boolean;
}

/** Pages [first, first + count) of one bitmap; page n is number n + shift in the other. */
export interface PageRange {
  readonly first: number;
  readonly count: number;
  readonly shift: number;
}

export interface LogMoverOptions {
  /** Bits are taken here (atomic exchange with 0) and ORed into `to`; those outside of `to` are dropped. */
  readonly from: Bitmap;
  readonly to: Bitmap;
  readonly ranges: readonly PageRange[];
  /** Moves every `periodMs` milliseconds, until the memory of a bitmap has vanished, which `failed` tells. Else only `move` does. */
  readonly thread?: { readonly periodMs: number; readonly failed: () => void };
}

/** Moves dirty bits from one bitmap to another. */
export interface LogMover {
  /** Bits that have arrived. */
  readonly moved: number;
  /** Every bit that was set before is in the target when it returns. Throws `EFAULT` when a bitmap's memory has vanished. */
  move(): void;
  /** Every page of the ranges counts as written. Throws as `move` does. */
  markAll(): void;
  /** The eventfd of somebody else, to be signalled whenever bits have arrived. */
  signalTo(eventfd: number): void;
  /** Nothing is moved once it returns. Idempotent. */
  close(): void;
}

/** A thread that forwards eventfd signals and doorbell words; sleeps without a wake-up while nothing happens. */
export interface Relay {
  /** Forwards every signal of `from` to `to`. Returns a number for `remove`. Does not own the fds: it duplicates. */
  add(from: number, to: number): number;
  /** Forwards changes of the doorbell word (protocol.md, P6) to `to`, and signals of `from`, which may come with them. */
  addDoorbell(mapping: Mapping, offset: number, to: number, from?: number): number;
  /** Does what a signal of the doorbell's `from` does. */
  ring(id: number): void;
  /** The word whose bit 0 tells the driver that this thread sleeps. */
  setSleepWord(mapping: Mapping, offset: number): void;
  /** No signal is forwarded after this returns. */
  remove(id: number): void;
  stats(): { wakeups: number; forwarded: number; doorbells: number };
  stop(): Promise<void>;
}

/** A watched fd of the event loop. `stop` ends it; it does not close the fd. */
export interface Watcher {
  /** Changes what is waited for. */
  set(events: { readable?: boolean; writable?: boolean }): void;
  /** While referenced (the default) it keeps the process alive. */
  ref(): void;
  unref(): void;
  stop(): void;
}

export interface ReceivedMessage {
  /** Bytes; empty at the end of the stream. */
  readonly data: Buffer;
  readonly fds: number[];
  /** MSG_CTRUNC: fds were lost; those that came are in `fds` and have to be closed. */
  readonly truncated: boolean;
}

export interface NativeAddon {
  // -- descriptors ---------------------------------------------------------------------------------------------
  /** Close-on-exec memfd of `size` bytes; `sealShrink` adds F_SEAL_SHRINK. */
  memfdCreate(name: string, size: number, sealShrink?: boolean): number;
  /** Non-blocking, close-on-exec eventfd. */
  eventfd(): number;
  /** Adds 1. A full counter is not an error. False when the fd is not writable as an eventfd. */
  eventfdSignal(fd: number): boolean;
  /** The counter, reset to 0; 0 when it was not signalled. */
  eventfdTake(fd: number): number;
  /** Whether this system can signal and read eventfds of others without ever waiting for them. */
  foreignEventfds(): boolean;
  dup(fd: number): number;
  watch(fd: number, callback: (readable: boolean, writable: boolean) => void): Watcher;

  // -- Unix sockets --------------------------------------------------------------------------------------------
  /** Non-blocking stream sockets. `unixListen` fails with EADDRINUSE when the path exists. */
  unixListen(path: string, backlog: number): number;
  /** An accepted connection, or undefined when none waits. */
  unixAccept(fd: number): number | undefined;
  unixConnect(path: string): number;
  unixPair(): [number, number];
  /** Bytes sent, or -1 when the socket is full. `fds` go with the first byte. */
  sendMessage(fd: number, data: Uint8Array, fds: readonly number[]): number;
  /** At most `length` bytes and 16 fds (close-on-exec); undefined when nothing waits. */
  receiveMessage(fd: number, length: number): ReceivedMessage | undefined;
  /** Whether the other side of a connected socket has ended. */
  hungUp(fd: number): boolean;

  // -- memory and queues ---------------------------------------------------------------------------------------
  readonly Mapping: new (
    fd: number,
    offset: number,
    size: number,
    writable: boolean,
  ) => Mapping;
  readonly RegionTable: new (regions: readonly Region[]) => RegionTable;
  readonly ControlDeviceQueue: new (
    table: RegionTable,
    ring: RingAddresses,
    limit?: number,
  ) => ControlDeviceQueue;
  readonly ControlDriverQueue: {
    new (
      mapping: Mapping,
      offset: number,
      address: bigint,
      size: number,
      bufferBytes: number,
    ): ControlDriverQueue;
    /** Bytes that such a queue takes. */
    bytes(size: number, bufferBytes: number): number;
  };
  readonly LogMover: new (options: LogMoverOptions) => LogMover;

  // -- engine --------------------------------------------------------------------------------------------------
  readonly PeerQueue: new (
    options: PeerQueueOptions,
  ) => PeerQueue;
  readonly DriverQueue: {
    new (options: DriverQueueOptions): DriverQueue;
    bytes(size: number, bufferBytes: number): number;
  };
  readonly SourceQueue: new (options: SourceOptions) => PortQueue;
  readonly SinkQueue: new (options?: SinkOptions) => SinkQueue;
  readonly TapQueue: new (options: TapQueueOptions) => PortQueue;
  readonly AppQueue: new (options: AppQueueOptions) => AppQueue;
  readonly Worker: new (options: WorkerOptions) => Worker;
  readonly Relay: new () => Relay;

  /** Mappings that exist now in this process, for leak tests. */
  mappingCount(): number;
}

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'native');

const load = createRequire(import.meta.url)('node-gyp-build') as (folder: string) => NativeAddon;

export const native: NativeAddon = load(root);
