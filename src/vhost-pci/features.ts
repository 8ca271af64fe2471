/** Which feature bits travel where: between peer and device, and between device and driver (docs/protocol.md, P4). */
import { bits, hasBit } from '../util/flags.js';
import { FEATURE } from '../virtio/features.js';
import { NET_FEATURE, OFFLOAD_REQUIREMENTS } from '../virtio-net/features.js';

/** VHOST_F_LOG_ALL, the seed's bit 26. */
export const LOG_ALL = 26;

/** Properties of the peer's packets that the receiving driver has to agree with: it may accept a subset. */
export const PACKET_FEATURES = bits(
  NET_FEATURE.CSUM,
  NET_FEATURE.GUEST_CSUM,
  NET_FEATURE.MTU,
  NET_FEATURE.GUEST_TSO4,
  NET_FEATURE.GUEST_TSO6,
  NET_FEATURE.GUEST_ECN,
  NET_FEATURE.GUEST_UFO,
  NET_FEATURE.HOST_TSO4,
  NET_FEATURE.HOST_TSO6,
  NET_FEATURE.HOST_ECN,
  NET_FEATURE.HOST_UFO,
  NET_FEATURE.MRG_RXBUF,
  NET_FEATURE.MQ,
);

/**
 * A bit of our own device type (P4): the driver serves packed rings of a peer. RING_PACKED (34) itself would be about the
 * driver's control queues, which are split.
 */
export const PEER_PACKED = 50;

/** What a driver has a say in: packets and the format of the rings. */
const DRIVER_CHOICE = PACKET_FEATURES | bits(FEATURE.PACKED);

/**
 * What a peer is offered whatever the driver is: properties of its rings, which the engine serves. IN_ORDER (VIRTIO 1.3,
 * 2.7.9) spares the peer a list of free descriptors; a driver gives buffers back in the order it got them (P4).
 */
const RING_FEATURES = bits(
  FEATURE.INDIRECT_DESC,
  FEATURE.EVENT_IDX,
  FEATURE.VERSION_1,
  FEATURE.IN_ORDER,
  NET_FEATURE.GUEST_ANNOUNCE,
);

/** Offered to the receiving driver. ACCESS_PLATFORM: the control queues' addresses are DMA addresses. */
export const DRIVER_FEATURES =
  PACKET_FEATURES | bits(LOG_ALL, PEER_PACKED, FEATURE.VERSION_1, FEATURE.ACCESS_PLATFORM);

/** What this package's driver accepts unless it is told otherwise, and what it cannot do without. */
export const DRIVER_REQUIRED = bits(FEATURE.VERSION_1);

/** The features of a peer that a driver agrees to which has negotiated `features`, of those that it has a say in. */
export function agreedFeatures(features: bigint): bigint {
  return (PACKET_FEATURES & features) | (hasBit(features, PEER_PACKED) ? bits(FEATURE.PACKED) : 0n);
}

/** What a peer has negotiated against the choice of a driver. */
export function excessFeatures(peer: bigint, agreed: bigint): bigint {
  return peer & DRIVER_CHOICE & ~agreed;
}

/** Offered to the peer, when the driver agrees to `agreed` (undefined: no driver yet). */
export function peerFeatures(agreed: bigint | undefined): bigint {
  return RING_FEATURES | (agreed === undefined ? DRIVER_CHOICE : DRIVER_CHOICE & agreed);
}

/** What a driver that was told to accept `accept` can ask for: without offloads whose own requirements are missing. */
export function driverFeatures(accept: bigint): bigint {
  let wanted = DRIVER_FEATURES & (accept | DRIVER_REQUIRED);
  const unmet = (): bigint =>
    OFFLOAD_REQUIREMENTS.reduce(
      (mask, { bit, anyOf }) => (anyOf.some((needed) => hasBit(wanted, needed)) ? mask : mask | bits(bit)),
      0n,
    ) & wanted;
  for (let gone = unmet(); gone !== 0n; gone = unmet()) wanted &= ~gone;
  return wanted;
}
