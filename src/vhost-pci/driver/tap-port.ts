/**
 * A TAP interface as a port. Carrier, MTU and offloads follow the peer: the interface looks like an ordinary network
 * device whose cable is the peer.
 */
import { writevSync } from 'node:fs';
import { native, type PeerQueue, type PortQueueStats } from '../../sys/native.js';
import { type InterfaceAddress, Tap, TUN_F } from '../../sys/tap.js';
import { VhostPciError } from '../../util/errors.js';
import { hasBit } from '../../util/flags.js';
import { NET_FEATURE } from '../../virtio-net/features.js';
import { type Lane, type PeerFacts, type Port, QueueList } from './ports.js';

/** The frames that the peer takes, as TUN_F bits: VIRTIO 1.3, 5.1.3.1 has the requirements among them. */
export function tapOffloads(features: bigint): number {
  const has = (bit: number): boolean => hasBit(features, bit);
  if (!has(NET_FEATURE.GUEST_CSUM)) return 0;
  return (
    TUN_F.CSUM |
    (has(NET_FEATURE.GUEST_TSO4) ? TUN_F.TSO4 : 0) |
    (has(NET_FEATURE.GUEST_TSO6) ? TUN_F.TSO6 : 0) |
    (has(NET_FEATURE.GUEST_ECN) ? TUN_F.TSO_ECN : 0) |
    (has(NET_FEATURE.GUEST_UFO) ? TUN_F.UFO : 0)
  );
}

/** What the kernel lets a TAP have (tun_net_init); a front-end may say 65535. */
const MAX_MTU = 65_521;

export interface TapPortOptions {
  /** The interface's own address. */
  readonly address?: InterfaceAddress;
  /** Largest MTU; the peer's may be lower. */
  readonly mtu?: number;
}

export class TapPort implements Port {
  readonly kind = 'tap';
  readonly #tap: Tap;
  readonly #mtu: number | undefined;
  /** What the interface had before a peer changed it. */
  #ownMtu: number | undefined;
  readonly #queues = new QueueList((i) => new native.TapQueue({ fd: this.#tap.queueFd(i) }));

  /** Creates or attaches the interface and brings it up, without carrier until a peer is there. */
  constructor(name: string, options: TapPortOptions = {}) {
    this.#mtu = options.mtu;
    this.#tap = new Tap(name);
    try {
      if (options.mtu !== undefined) this.#tap.setMtu(options.mtu);
      this.#tap.setUp();
      if (options.address) this.#tap.setAddress(options.address);
      this.#tap.setCarrier(false);
    } catch (error) {
      this.#tap[Symbol.dispose]();
      throw error;
    }
  }

  /** A single-queue interface is served by one worker. */
  get oneWorker(): boolean {
    return !this.#tap.multiQueue;
  }

  setMac(mac: Uint8Array): void {
    if (this.#tap.created) this.#tap.setMac(mac);
  }

  peerOn(facts: PeerFacts): void {
    for (let i = 0; i < (this.oneWorker ? 1 : facts.pairs); i++) this.#queues.at(i);
    this.#tap.setOffloads(tapOffloads(facts.features));
    if (facts.mtu !== 0) this.setMtu(facts.mtu);
    else this.#restoreMtu();
    this.#tap.setCarrier(true);
  }

  peerOff(): void {
    this.#tap.setCarrier(false);
  }

  setMtu(mtu: number): void {
    this.#ownMtu ??= this.#tap.mtu;
    this.#tap.setMtu(Math.min(mtu, this.#mtu ?? MAX_MTU));
  }

  /** This peer names none: that of the peer before it is not for it. */
  #restoreMtu(): void {
    if (this.#ownMtu === undefined) return;
    this.#tap.setMtu(this.#ownMtu);
    this.#ownMtu = undefined;
  }

  /** A deleted interface does not come back: the fds are of the one that went (tun_chr_close). */
  check(): void {
    try {
      this.#tap.check();
    } catch (cause) {
      throw new VhostPciError(
        'device',
        'EPORT',
        `the TAP interface ${this.#tap.name} was deleted: start the driver again, which makes it anew`,
        { cause },
      );
    }
  }

  lanes(peer: PeerQueue, index: number): Lane[] {
    const tap = this.#queues.at(this.oneWorker ? 0 : index);
    const out: Lane = { from: peer, to: tap, policy: 'hold' };
    return this.oneWorker && index > 0 ? [out] : [out, { from: tap, to: peer, policy: 'hold' }];
  }

  announce(frame: Uint8Array): void {
    writevSync(this.#tap.queueFd(0), [Buffer.alloc(12), frame]);
  }

  stats(): readonly PortQueueStats[] {
    return this.#queues.stats();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#queues.close();
    this.#tap[Symbol.dispose]();
  }
}
