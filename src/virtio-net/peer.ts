/**
 * A virtio-net peer without a VM: the driver side of the rings in memory of its own, and a vhost-user front-end that shares
 * them with a back-end as QEMU would. It is the demo's peer, and the tests'.
 */
import { closeSync, openSync } from 'node:fs';
import { type DriverQueue, type Mapping, native } from '../sys/native.js';
import { usageError } from '../util/errors.js';
import { bits, hasBit } from '../util/flags.js';
import { FrontEnd, type SharedRing } from '../vhost-user/front-end.js';
import { PROTOCOL_FEATURE, VHOST_FEATURE } from '../vhost-user/protocol.js';
import { FEATURE } from '../virtio/features.js';
import { NET_FEATURE } from './features.js';

export interface NetPeerOptions {
  /** The back-end's socket. */
  readonly socketPath: string;
  /** The memory file of a window, which exists; without it, a memfd of `memoryBytes`. */
  readonly memoryFile?: string;
  readonly memoryBytes: number;
  readonly queuePairs?: number;
  readonly ringSize?: number;
  /** Bytes of a packet buffer, header included. */
  readonly bufferBytes?: number;
  /** Virtio features to ask for; the back-end may offer less. */
  readonly features?: bigint;
}

const DEFAULT_FEATURES = bits(
  FEATURE.VERSION_1,
  FEATURE.EVENT_IDX,
  FEATURE.INDIRECT_DESC,
  NET_FEATURE.MRG_RXBUF,
  NET_FEATURE.MQ,
  NET_FEATURE.CSUM,
  NET_FEATURE.GUEST_CSUM,
);
const PROTOCOL = bits(
  PROTOCOL_FEATURE.MQ,
  PROTOCOL_FEATURE.LOG_SHMFD,
  PROTOCOL_FEATURE.RARP,
  PROTOCOL_FEATURE.REPLY_ACK,
  PROTOCOL_FEATURE.MTU,
  PROTOCOL_FEATURE.STATUS,
);

/** Where the shared memory is in the peer: any address does, 0 would hide mistakes in translation. */
const GUEST_ADDRESS = 0x4000_0000n;
const USER_ADDRESS = 0x7f00_0000_0000n;
const ALIGNMENT = 4096;

interface PairFds {
  readonly receiveCall: number;
  readonly transmitCall: number;
  readonly receiveKick: number;
  readonly transmitKick: number;
}

export class NetPeer implements AsyncDisposable {
  /** One a queue pair: to be joined to ports on workers. */
  readonly queues: readonly DriverQueue[];
  /** Resolves when the back-end has closed the connection. */
  readonly disconnected: Promise<Error | undefined>;
  readonly features: bigint;
  readonly #frontEnd: FrontEnd;
  readonly #memoryFd: number;
  readonly #memory: Mapping;
  readonly #memoryBytes: number;
  readonly #fds: readonly PairFds[];
  /** Where the rings were stopped, by ring. */
  #bases = new Map<number, number>();
  #disposed = false;

  private constructor(
    frontEnd: FrontEnd,
    features: bigint,
    memory: { fd: number; mapping: Mapping; bytes: number },
    fds: readonly PairFds[],
    queues: readonly DriverQueue[],
  ) {
    this.#frontEnd = frontEnd;
    this.disconnected = frontEnd.closed;
    this.features = features;
    this.#memoryFd = memory.fd;
    this.#memory = memory.mapping;
    this.#memoryBytes = memory.bytes;
    this.#fds = fds;
    this.queues = queues;
  }

  /**
   * Connects and negotiates; `start` makes the link. Throws when nobody listens, and (scope `usage`) when the memory is too
   * small for the queues.
   */
  static async connect(options: NetPeerOptions): Promise<NetPeer> {
    const frontEnd = FrontEnd.connect(options.socketPath);
    const undo: (() => void)[] = [() => frontEnd.close()];
    try {
      const wanted = (options.features ?? DEFAULT_FEATURES) | bits(VHOST_FEATURE.PROTOCOL_FEATURES);
      const agreed = await frontEnd.negotiate(wanted, PROTOCOL);
      const wantedPairs = options.queuePairs ?? 1;
      const pairs = hasBit(agreed.features, NET_FEATURE.MQ) ? Math.min(wantedPairs, agreed.queuePairs) : 1;

      const fd = options.memoryFile
        ? openSync(options.memoryFile, 'r+')
        : native.memfdCreate('virtio-net-peer', options.memoryBytes);
      undo.push(() => closeSync(fd));
      const mapping = new native.Mapping(fd, 0, options.memoryBytes, true);
      undo.push(() => mapping.close());

      const size = options.ringSize ?? 256;
      const bufferBytes = options.bufferBytes ?? 2048;
      const each = Math.ceil(native.DriverQueue.bytes(size, bufferBytes) / ALIGNMENT) * ALIGNMENT;
      if (pairs * each > options.memoryBytes)
        throw usageError(
          `memory of ${options.memoryBytes} bytes for a peer with ${pairs} queue pair(s): ${pairs * each} are needed`,
        );
      const fds: PairFds[] = [];
      const queues: DriverQueue[] = [];
      for (let pair = 0; pair < pairs; pair++) {
        const pairFds = {
          receiveCall: native.eventfd(),
          transmitCall: native.eventfd(),
          receiveKick: native.eventfd(),
          transmitKick: native.eventfd(),
        };
        undo.push(() => closePair(pairFds));
        fds.push(pairFds);
        const queue = new native.DriverQueue({
          mapping,
          offset: pair * each,
          address: GUEST_ADDRESS + BigInt(pair * each),
          size,
          bufferBytes,
          features: agreed.features,
          receiveCallFd: pairFds.receiveCall,
          transmitCallFd: pairFds.transmitCall,
          receiveKickFd: pairFds.receiveKick,
          transmitKickFd: pairFds.transmitKick,
        });
        undo.push(() => queue.close());
        queues.push(queue);
      }
      const memory = { fd, mapping, bytes: options.memoryBytes };
      return new NetPeer(frontEnd, agreed.features, memory, fds, queues);
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
  }

  /** Shares memory and rings, which go on where `stop` left them: the link is up when this resolves. */
  async start(): Promise<void> {
    const region = {
      gpa: GUEST_ADDRESS,
      userAddress: USER_ADDRESS,
      size: this.#memoryBytes,
      fileOffset: 0,
      fd: this.#memoryFd,
    };
    const base = (ring: number): number => this.#bases.get(ring) ?? 0;
    const rings: SharedRing[] = this.queues.flatMap((queue, pair) => {
      const fds = this.#fds[pair] as PairFds;
      return [
        { ...queue.receiveq, base: base(2 * pair), kickFd: fds.receiveKick, callFd: fds.receiveCall },
        { ...queue.transmitq, base: base(2 * pair + 1), kickFd: fds.transmitKick, callFd: fds.transmitCall },
      ];
    });
    await this.#frontEnd.start([region], rings);
  }

  /** Stops the rings, as at a guest's shutdown. Resolves to their indices, by ring. */
  async stop(): Promise<Map<number, number>> {
    this.#bases = await this.#frontEnd.stop();
    return this.#bases;
  }

  /** The front-end, for requests beyond the link: MTU, RARP, logging. */
  get frontEnd(): FrontEnd {
    return this.#frontEnd;
  }

  /** Closes connection and memory. The queues must have been detached from their workers. Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#frontEnd.close();
    await this.#frontEnd.closed;
    for (const queue of this.queues) queue.close();
    this.#memory.close();
    closeSync(this.#memoryFd);
    for (const fds of this.#fds) closePair(fds);
  }
}

function closePair(fds: PairFds): void {
  for (const fd of Object.values(fds)) closeSync(fd);
}
