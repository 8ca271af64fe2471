import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bits, hasBit } from '../../../src/util/flags.js';
import {
  agreedFeatures,
  DRIVER_FEATURES,
  DRIVER_REQUIRED,
  driverFeatures,
  excessFeatures,
  PACKET_FEATURES,
  PEER_PACKED,
  peerFeatures,
} from '../../../src/vhost-pci/features.js';
import { FEATURE, unmetRequirement } from '../../../src/virtio/features.js';
import { NET_FEATURE, OFFLOAD_REQUIREMENTS } from '../../../src/virtio-net/features.js';

const anyMask = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

describe('features', () => {
  it('that a driver asks for are within its choice, and no device refuses them', () => {
    fc.assert(
      fc.property(anyMask, (accept) => {
        const wanted = driverFeatures(accept);
        expect(wanted & ~(accept | DRIVER_REQUIRED)).toBe(0n);
        expect(wanted & ~DRIVER_FEATURES).toBe(0n);
        expect(wanted & DRIVER_REQUIRED).toBe(DRIVER_REQUIRED);
        expect(unmetRequirement(wanted, NET_FEATURE, OFFLOAD_REQUIREMENTS)).toBeUndefined();
      }),
    );
    expect(driverFeatures(DRIVER_FEATURES)).toBe(DRIVER_FEATURES);
  });

  it('that a peer is offered are bounded by the driver’s, and the rings’ own are always there', () => {
    fc.assert(
      fc.property(fc.option(anyMask, { nil: undefined }), (accepted) => {
        const offered = peerFeatures(accepted);
        if (accepted !== undefined) expect(offered & PACKET_FEATURES & ~accepted).toBe(0n);
        else expect(offered & PACKET_FEATURES).toBe(PACKET_FEATURES);
        for (const bit of [FEATURE.VERSION_1, FEATURE.EVENT_IDX, FEATURE.INDIRECT_DESC, FEATURE.IN_ORDER])
          expect(hasBit(offered, bit)).toBe(true);
      }),
    );
  });

  it('have packed rings for the peer of a driver that serves them, and leave the control queues split', () => {
    expect(hasBit(DRIVER_FEATURES, PEER_PACKED)).toBe(true);
    expect(hasBit(DRIVER_FEATURES, FEATURE.PACKED)).toBe(false);
    expect(hasBit(peerFeatures(undefined), FEATURE.PACKED)).toBe(true);
    expect(hasBit(peerFeatures(agreedFeatures(DRIVER_FEATURES)), FEATURE.PACKED)).toBe(true);
    const without = agreedFeatures(DRIVER_FEATURES & ~bits(PEER_PACKED));
    expect(hasBit(peerFeatures(without), FEATURE.PACKED)).toBe(false);
    expect(excessFeatures(bits(FEATURE.PACKED, FEATURE.EVENT_IDX), without)).toBe(bits(FEATURE.PACKED));
    expect(excessFeatures(bits(FEATURE.PACKED), agreedFeatures(DRIVER_FEATURES))).toBe(0n);
  });

  it('have the numbers of the seed', () => {
    for (const bit of [7, 8, 9, 10, 11, 12, 13, 14, 15, 26]) expect(hasBit(DRIVER_FEATURES, bit)).toBe(true);
  });
});
