import { describe, expect, it } from 'vitest';
import { bits } from '../../../src/util/flags.js';
import { describeFeatures, FEATURE, refusal, withoutUnmet } from '../../../src/virtio/features.js';
import { NET_FEATURE, NET_REQUIREMENTS, OFFLOAD_REQUIREMENTS } from '../../../src/virtio-net/features.js';

const F = NET_FEATURE;

describe('network features', () => {
  it('name the set that a stock Linux guest accepts', () => {
    expect(describeFeatures(0x1_3060_9983n & ~bits(30), NET_FEATURE)).toBe(
      'CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF, GUEST_ANNOUNCE, MQ, INDIRECT_DESC, EVENT_IDX, VERSION_1',
    );
  });

  it('have numbers of their own, none of the transport', () => {
    const numbers = [...Object.values(NET_FEATURE), ...Object.values(FEATURE)];
    expect(new Set(numbers).size).toBe(numbers.length);
  });

  it.each([
    ['TSO without checksums', bits(F.HOST_TSO4), 'HOST_TSO4 requires CSUM'],
    ['ECN without TSO', bits(F.GUEST_CSUM, F.GUEST_ECN), 'GUEST_ECN requires GUEST_TSO4 or GUEST_TSO6'],
    ['MQ without a control queue', bits(F.MQ), 'MQ requires CTRL_VQ'],
    ['PEER_CONNECTION without status', bits(F.PEER_CONNECTION, F.CTRL_VQ), 'PEER_CONNECTION requires STATUS'],
  ])('are refused as %s', (_what, mask, message) => {
    const accepted = mask | bits(FEATURE.VERSION_1);
    expect(refusal(accepted, accepted, NET_FEATURE, NET_REQUIREMENTS)).toBe(message);
  });

  it('lose the offloads that hang on a missing checksum', () => {
    const offloads = bits(F.HOST_TSO4, F.HOST_ECN, F.GUEST_CSUM, F.GUEST_TSO6, F.GUEST_ECN);
    expect(withoutUnmet(offloads, OFFLOAD_REQUIREMENTS)).toBe(bits(F.GUEST_CSUM, F.GUEST_TSO6, F.GUEST_ECN));
  });

  it('leave multiqueue alone on a device whose control queues are its own', () => {
    expect(withoutUnmet(bits(F.MQ, F.PEER_CONNECTION), OFFLOAD_REQUIREMENTS)).toBe(
      bits(F.MQ, F.PEER_CONNECTION),
    );
  });
});
