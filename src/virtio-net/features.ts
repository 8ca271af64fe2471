/** Feature bits of the network device (VIRTIO 1.3, 5.1.3) and the seed's additions, with the requirements among them. */
import type { FeatureRequirements } from '../virtio/features.js';

export const NET_FEATURE = {
  CSUM: 0,
  GUEST_CSUM: 1,
  CTRL_GUEST_OFFLOADS: 2,
  MTU: 3,
  MAC: 5,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  GUEST_ECN: 9,
  GUEST_UFO: 10,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  HOST_ECN: 13,
  HOST_UFO: 14,
  MRG_RXBUF: 15,
  STATUS: 16,
  CTRL_VQ: 17,
  CTRL_RX: 18,
  CTRL_VLAN: 19,
  CTRL_RX_EXTRA: 20,
  GUEST_ANNOUNCE: 21,
  MQ: 22,
  CTRL_MAC_ADDR: 23,
  /** The seed's: an unused bit of VIRTIO 1.3 that legacy devices knew as NOTIFY_ON_EMPTY. */
  PEER_CONNECTION: 24,
  /** vhost's: dirty page logging. */
  LOG_ALL: 26,
  VQ_NOTF_COAL: 52,
  NOTF_COAL: 53,
  GUEST_USO4: 54,
  GUEST_USO6: 55,
  HOST_USO: 56,
  HASH_REPORT: 57,
  GUEST_HDRLEN: 59,
  RSS: 60,
  RSC_EXT: 61,
  STANDBY: 62,
  SPEED_DUPLEX: 63,
} as const;

const F = NET_FEATURE;

/** Requirements among the offloads: those that concern the packets themselves (VIRTIO 1.3, 5.1.3.1). */
export const OFFLOAD_REQUIREMENTS: FeatureRequirements = [
  { bit: F.GUEST_TSO4, anyOf: [F.GUEST_CSUM] },
  { bit: F.GUEST_TSO6, anyOf: [F.GUEST_CSUM] },
  { bit: F.GUEST_ECN, anyOf: [F.GUEST_TSO4, F.GUEST_TSO6] },
  { bit: F.GUEST_UFO, anyOf: [F.GUEST_CSUM] },
  { bit: F.GUEST_USO4, anyOf: [F.GUEST_CSUM] },
  { bit: F.GUEST_USO6, anyOf: [F.GUEST_CSUM] },
  { bit: F.HOST_TSO4, anyOf: [F.CSUM] },
  { bit: F.HOST_TSO6, anyOf: [F.CSUM] },
  { bit: F.HOST_ECN, anyOf: [F.HOST_TSO4, F.HOST_TSO6] },
  { bit: F.HOST_UFO, anyOf: [F.CSUM] },
  { bit: F.HOST_USO, anyOf: [F.CSUM] },
  { bit: F.RSC_EXT, anyOf: [F.HOST_TSO4, F.HOST_TSO6] },
];

/** All requirements of a network device. The vhost-pci device has its own control queues and needs only the offloads'. */
export const NET_REQUIREMENTS: FeatureRequirements = [
  ...OFFLOAD_REQUIREMENTS,
  ...[
    F.CTRL_RX,
    F.CTRL_VLAN,
    F.GUEST_ANNOUNCE,
    F.MQ,
    F.CTRL_MAC_ADDR,
    F.VQ_NOTF_COAL,
    F.NOTF_COAL,
    F.RSS,
    F.PEER_CONNECTION,
  ].map((bit) => ({ bit, anyOf: [F.CTRL_VQ] })),
  { bit: F.PEER_CONNECTION, anyOf: [F.STATUS] },
];
