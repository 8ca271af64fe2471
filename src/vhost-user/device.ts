/** What a vhost-user back-end needs of the device that it serves. Events carry meaning, not messages. */
import type { PeerMemory } from '../memory/peer-memory.js';
import type { PeerLog } from './peer-state.js';

/**
 * Every call refers to the state that `BackEnd.state` shows at that moment. Calls never overlap, except that `closed`
 * may come while a promise is pending; the device then settles that promise soon.
 *
 * Throwing a VhostPciError of scope `message` refuses the request; a RingError breaks its ring; anything else drops the
 * connection.
 */
export interface BackEndDevice {
  /** Virtio feature bits for the peer. The back-end adds LOG_ALL (26) and PROTOCOL_FEATURES (30). */
  readonly offeredFeatures: bigint;
  /** Queue pairs, 1 to 128. */
  readonly queuePairs: number;

  /** SET_FEATURES changed the negotiated virtio bits: a subset of `offeredFeatures`. May throw to refuse. */
  featuresSet(features: bigint): void;
  /**
   * The memory table changed. Resolves once nothing uses the old one any more; only then it is disposed of and the
   * front-end is answered. The rings' addresses in the state are those of the new table already.
   */
  memoryChanged(memory: PeerMemory | undefined): Promise<void>;
  /**
   * Started, enabled, broken, held back or a descriptor of a ring changed: look at the state. Not called for a ring that
   * `stopRing` has stopped; its kick descriptor is closed right afterwards.
   */
  ringsChanged(): void;
  /**
   * Stops a started ring, whether it was held back or not. Resolves with its exact next index (in the form of
   * SET_VRING_BASE) after the data path has let go; nothing writes to the ring's memory afterwards.
   */
  stopRing(index: number): Promise<number>;
  /**
   * Dirty logging begins, goes on in another log, or ends. Resolves when every later write will be logged there and
   * everything that belongs into the old log is in it. With `BackEnd.state.logging` and no log, the rings are held back
   * until one comes: nothing is written when it resolves.
   */
  logChanged(log: PeerLog | undefined): Promise<void>;
  /** SET_LOG_FD brought an eventfd, to be signalled whenever something was written to the log. */
  logSignalChanged(): void;
  /** SEND_RARP: the peer with this MAC (6 bytes) has moved here. */
  announce(mac: Buffer): void;
  /** NET_SET_MTU: 68 to 65535. */
  mtu(mtu: number): void;
  /** RESET_DEVICE: every ring is stopped and disabled; memory stays. */
  reset(): void;
  /** SET_STATUS: the virtio device status as the front-end tells it. Throws (scope `connection`) to refuse. */
  statusChanged(status: number): void;
  /**
   * The connection is over; with an error unless the front-end closed it in an orderly way or `close` was called.
   * Once. The data path has let go when it returns or resolves; then all descriptors are closed.
   */
  closed(error?: Error): void | Promise<void>;
}
