/**
 * A connected peer as the driver sees it between ON and OFF: its memory through the BAR and its queue pairs. It exists
 * only while the peer's memory may be touched.
 */
import { REGION, type RegionArea } from '../../pci/handle.js';
import {
  type Mapping,
  native,
  type PeerQueue,
  type PeerRing,
  type RegionTable,
  type RingSignals,
} from '../../sys/native.js';
import { VhostPciError } from '../../util/errors.js';
import { hasBit } from '../../util/flags.js';
import { type MemInfoBar, VIRTQ_FLAG, type Virtq } from '../messages.js';

export interface PeerPair {
  readonly index: number;
  readonly queue: PeerQueue;
  /** Both rings are enabled, as the peer came. */
  readonly enabled: boolean;
}

/** Virtqueue index of each ring of a pair: VIRTIO 1.3, 5.1.2. */
export const receiveqOf = (pair: number): number => 2 * pair;
export const transmitqOf = (pair: number): number => 2 * pair + 1;

/**
 * The peer's address space on top of the mapped BAR. Throws (scope `device`) when a region lies outside of what could
 * be mapped: memory info that does not fit the BAR.
 */
export function peerTable(info: MemInfoBar, area: RegionArea, mapping: Mapping): RegionTable {
  if (info.bar !== REGION.BAR2)
    throw new VhostPciError('device', 'EBADMSG', `peer memory in BAR ${info.bar}: this driver maps BAR 2`);
  const regions = info.regions.map((r) => {
    const offset = Number(r.bar_offset) - area.offset;
    if (offset < 0 || r.bar_offset + r.size > BigInt(area.offset + area.size))
      throw new VhostPciError(
        'device',
        'EBADMSG',
        `peer memory region at guest address 0x${r.gpa.toString(16)} does not fit BAR 2`,
      );
    return { address: r.gpa, size: Number(r.size), mapping, offset };
  });
  try {
    return new native.RegionTable(regions);
  } catch (cause) {
    throw new VhostPciError('device', 'EBADMSG', `peer memory info: ${(cause as Error).message}`, { cause });
  }
}

/** A started ring that the engine does not take, and why. */
export interface RefusedRing {
  readonly ring: number;
  readonly cause: string;
}

export class Peer {
  readonly features: bigint;
  readonly mtu: number;
  readonly pairs: readonly PeerPair[];
  /** Their pairs are not served; the others are. */
  readonly refused: readonly RefusedRing[];

  /** Takes up the pairs of which both rings are started. */
  constructor(
    info: MemInfoBar,
    table: RegionTable,
    virtqs: readonly Virtq[],
    signals: (ring: number) => RingSignals,
  ) {
    this.features = info.features;
    this.mtu = info.mtu;
    const pairs: PeerPair[] = [];
    const refused: RefusedRing[] = [];
    this.pairs = pairs;
    this.refused = refused;
    for (let index = 0; index < virtqs.length / 2; index++) {
      const receive = virtqs[receiveqOf(index)] as Virtq;
      const transmit = virtqs[transmitqOf(index)] as Virtq;
      if (!isStarted(receive) || !isStarted(transmit)) continue;
      try {
        const queue = new native.PeerQueue({
          table,
          features: info.features,
          receive: peerRing(receive, signals(receiveqOf(index))),
          transmit: peerRing(transmit, signals(transmitqOf(index))),
        });
        pairs.push({ index, queue, enabled: receive.enable !== 0 && transmit.enable !== 0 });
      } catch (error) {
        // The engine names the side: "receiveq: ring areas overlap".
        const cause = (error as Error).message;
        refused.push({ ring: cause.startsWith('transmitq') ? transmitqOf(index) : receiveqOf(index), cause });
      }
    }
  }

  hasFeature(bit: number): boolean {
    return hasBit(this.features, bit);
  }

  /** The rings' indices for the device's answer to GET_VRING_BASE; exact once no worker has the pairs. */
  stoppedVirtqs(last: readonly Virtq[]): Virtq[] {
    const virtqs = last.map((q) => ({ ...q }));
    for (const { index, queue } of this.pairs) {
      const next = queue.nextAvail();
      const receive = virtqs[receiveqOf(index)];
      const transmit = virtqs[transmitqOf(index)];
      if (receive) receive.next_avail = next.receive ?? 0;
      if (transmit) transmit.next_avail = next.transmit ?? 0;
    }
    return virtqs;
  }

  /** After every pair was detached from its worker. */
  close(): void {
    for (const { queue } of this.pairs) queue.close();
  }
}

export function isStarted(q: Virtq): boolean {
  return (q.flags & VIRTQ_FLAG.STARTED) !== 0;
}

/** A ring without a kick eventfd is polled, whatever there is to wait on. */
export function ringSignals(q: Virtq, { kickFd, notify }: RingSignals): RingSignals {
  const polled = (q.flags & VIRTQ_FLAG.POLL) !== 0 || kickFd === undefined;
  return { ...(notify && { notify }), ...(!polled && { kickFd }) };
}

function peerRing(q: Virtq, signals: RingSignals): PeerRing {
  return {
    size: q.num,
    desc: q.desc,
    driver: q.avail,
    device: q.used,
    nextAvail: q.next_avail,
    enabled: q.enable !== 0,
    ...ringSignals(q, signals),
  };
}
