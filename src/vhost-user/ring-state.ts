/**
 * What a front-end has said about one ring, and where that puts the ring in the peer's memory. Reads no ring.
 *
 * Started and enabled are independent: started by SET_VRING_KICK, stopped by GET_VRING_BASE; enabled by
 * SET_VRING_ENABLE. A ring that is started may still be held back (no memory, no log) or broken.
 */
import type { PeerMemory } from '../memory/peer-memory.js';
import { VhostPciError } from '../util/errors.js';
import { hasBit } from '../util/flags.js';
import { FEATURE } from '../virtio/features.js';
import type { OwnedFd } from './descriptors.js';

/** VIRTIO 1.3, 2.7: "The maximum Queue Size value is 32768." */
export const MAX_RING_SIZE = 32768;

/** The three areas of a ring, in one of the peer's address spaces. */
export interface RingAreas {
  readonly desc: bigint;
  /** Driver area: available ring, or the driver's event suppression structure. */
  readonly driver: bigint;
  /** Device area: used ring, or the device's event suppression structure. */
  readonly device: bigint;
}

/** One ring, as the device sees it. */
export interface PeerRingState {
  readonly index: number;
  /** Entries; 0 until SET_VRING_NUM. */
  readonly size: number;
  /** SET_VRING_BASE: where to start, or the last answer to GET_VRING_BASE. */
  readonly base: number;
  /** Guest-physical addresses, while the ring is started and the peer's memory has them. */
  readonly areas: RingAreas | undefined;
  /** Writes to the used ring are to be logged. */
  readonly logged: boolean;
  /** Another object after every SET_VRING_KICK, _CALL, _ERR: compare objects, not fd numbers. */
  readonly kick: OwnedFd | undefined;
  readonly call: OwnedFd | undefined;
  readonly err: OwnedFd | undefined;
  readonly started: boolean;
  readonly enabled: boolean;
  /** Why the ring was given up; it stays so until it is stopped. */
  readonly broken: string | undefined;
}

export class RingState implements PeerRingState, Disposable {
  readonly index: number;
  size = 0;
  base = 0;
  /** As sent: in the front-end's address space. */
  userAreas: RingAreas | undefined;
  areas: RingAreas | undefined;
  logged = false;
  /** Guest address that the front-end gave for logging the used ring. */
  logAddress = 0n;
  kick: OwnedFd | undefined;
  call: OwnedFd | undefined;
  err: OwnedFd | undefined;
  started = false;
  enabled = false;
  broken: string | undefined;

  constructor(index: number) {
    this.index = index;
  }

  setFd(which: 'kick' | 'call' | 'err', fd: OwnedFd | undefined): OwnedFd | undefined {
    const old = this[which];
    this[which] = fd;
    return old;
  }

  /** After GET_VRING_BASE: sizes, addresses, call and err stay for a restart. */
  stopped(base: number): void {
    this.base = base;
    this.started = false;
    this.areas = undefined;
    this.broken = undefined;
    this.setFd('kick', undefined)?.[Symbol.dispose]();
  }

  /**
   * After RESET_DEVICE. Call and err stay: QEMU sends the error eventfd once a connection only.
   */
  reset(): void {
    this.stopped(0);
    this.size = 0;
    this.userAreas = undefined;
    this.logged = false;
    this.logAddress = 0n;
    this.enabled = false;
  }

  [Symbol.dispose](): void {
    for (const which of ['kick', 'call', 'err'] as const) this.setFd(which, undefined)?.[Symbol.dispose]();
  }
}

/** An error that concerns one ring only: it breaks that ring, and the connection goes on. */
export class RingError extends VhostPciError {
  readonly index: number;

  constructor(index: number, code: string, message: string) {
    super('queue', code, `ring ${index}: ${message}`);
    this.index = index;
  }
}

/** Throws (scope `queue`) unless `size` can be a ring's. */
export function checkRingSize(index: number, size: number, features: bigint): void {
  // Packed rings need no power of two (VIRTIO 1.3, 2.8.10.1).
  const packed = hasBit(features, FEATURE.PACKED);
  if (size < 1 || size > MAX_RING_SIZE || (!packed && (size & (size - 1)) !== 0))
    throw new RingError(
      index,
      'ERINGSIZE',
      `a size of ${size} is not ${packed ? 'a number' : 'a power of two'} from 1 to ${MAX_RING_SIZE}`,
    );
}

/** Throws (scope `queue`) unless the ring can start from its base. */
export function checkRingBase(ring: RingState, features: bigint): void {
  if (!hasBit(features, FEATURE.PACKED)) {
    if (ring.base > 0xffff)
      throw new RingError(ring.index, 'ERINGBASE', `a base of ${ring.base} is no available index`);
    return;
  }
  // Bits 0-14 available index, 15 its wrap counter; 16-30 used index, 31 its wrap counter.
  const available = ring.base & 0x7fff;
  const used = (ring.base >>> 16) & 0x7fff;
  if (available >= ring.size || used >= ring.size)
    throw new RingError(ring.index, 'ERINGBASE', `base 0x${ring.base.toString(16)} is outside the ring`);
}

interface Area {
  readonly name: string;
  readonly at: bigint;
  readonly bytes: number;
  readonly alignment: bigint;
}

/** Lengths and alignments of the three areas. */
function areasOf(user: RingAreas, size: number, features: bigint): [Area, Area, Area] {
  if (hasBit(features, FEATURE.PACKED))
    // VIRTIO 1.3, 2.8: descriptor ring of 16-byte entries, two event suppression structures of 4 bytes.
    return [
      { name: 'descriptor ring', at: user.desc, bytes: 16 * size, alignment: 16n },
      { name: 'driver event area', at: user.driver, bytes: 4, alignment: 4n },
      { name: 'device event area', at: user.device, bytes: 4, alignment: 4n },
    ];
  // VIRTIO 1.3, 2.7: the sizes count used_event and avail_event, with EVENT_IDX or without.
  return [
    { name: 'descriptor table', at: user.desc, bytes: 16 * size, alignment: 16n },
    { name: 'available ring', at: user.driver, bytes: 6 + 2 * size, alignment: 2n },
    { name: 'used ring', at: user.device, bytes: 6 + 8 * size, alignment: 4n },
  ];
}

/**
 * The guest-physical addresses of a ring's areas; undefined when the memory has not all of them. Throws (scope
 * `queue`) when no memory table could make the areas good: misaligned or overlapping.
 */
export function placeRing(ring: RingState, memory: PeerMemory, features: bigint): RingAreas | undefined {
  if (!ring.userAreas) return undefined;
  const areas = areasOf(ring.userAreas, ring.size, features);
  for (const area of areas)
    if (area.at % area.alignment !== 0n)
      throw new RingError(ring.index, 'EALIGN', `the ${area.name} is not aligned to ${area.alignment} bytes`);
  const placed = areas.map((area) => memory.userToGuest(area.at, area.bytes));
  const [desc, driver, device] = placed;
  if (desc === undefined || driver === undefined || device === undefined) return undefined;
  areas.forEach((area, i) => {
    for (let j = 0; j < i; j++) {
      const a = placed[i]!;
      const b = placed[j]!;
      if (a < b + BigInt(areas[j]!.bytes) && b < a + BigInt(area.bytes))
        throw new RingError(ring.index, 'EOVERLAP', `${areas[j]!.name} and ${area.name} overlap`);
    }
  });
  if (ring.logged && ring.logAddress !== device)
    throw new RingError(ring.index, 'ELOGADDR', 'the log address is not that of the used ring');
  return { desc, driver, device };
}
