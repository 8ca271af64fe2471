/**
 * Places in a packed ring (VIRTIO 1.3, 2.8): bits 0-14 an offset, bit 15 the wrap counter there, as in vhost-user's ring
 * base. Serves no ring; native/core/packed_device.cc does.
 */
import { struct } from '../util/struct.js';

/** VIRTIO 1.3, 2.8.13. */
export const PackedDesc = struct('pvirtq_desc', 16, { addr: 'u64', len: 'u32', id: 'u16', flags: 'u16' });

/** VIRTQ_DESC_F_USED */
const USED = 1 << 15;
const WRAP = 1 << 15;

/**
 * Where the next used descriptor goes, by the descriptors alone; undefined when they do not tell. Behind that place
 * every USED bit is that of the lap before. Chains do not disturb this: our device side marks all their descriptors.
 */
export function positionByUsed(ring: Buffer): number | undefined {
  const used = (i: number): boolean =>
    (ring.readUInt16LE(i * PackedDesc.size + PackedDesc.offsets.flags) & USED) !== 0;
  const size = ring.length / PackedDesc.size;
  const lap = used(0);
  let at = 1;
  while (at < size && used(at) === lap) at++;
  if (at === size) return lap ? 0 : WRAP;
  for (let i = at; i < size; i++) if (used(i) === lap) return undefined;
  return at | (lap ? WRAP : 0);
}

/** A ring base of vhost-user in which nothing is in flight: the available and the used half are the same. */
export function packedBase(position: number): number {
  return ((position << 16) | position) >>> 0;
}

/** Where a device goes on that is given `base`: virtio_user leaves the used half 0, and DPDK's vhost does not look at it. */
export function basePosition(base: number): number {
  return base & 0xffff;
}
