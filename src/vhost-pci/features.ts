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
export const DRIVER_FEATURES = PACKET_FEATURES | bits(LOG_ALL, FEATURE.VERSION_1, FEATURE.ACCESS_PLATFORM);

/** What this package's driver accepts unless it is told otherwise, and what it cannot do without. */
export const DRIVER_REQUIRED = bits(FEATURE.VERSION_1);

/** Offered to the peer, when the driver has accepted `accepted` (undefined: no driver yet). */
export function peerFeatures(accepted: bigint | undefined): bigint {
  return RING_FEATURES | (accepted === undefined ? PACKET_FEATURES : PACKET_FEATURES & accepted);
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
