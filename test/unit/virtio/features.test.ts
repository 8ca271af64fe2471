import { describe, expect, it } from 'vitest';
import { bits } from '../../../src/util/flags.js';
import {
  describeFeatures,
  FEATURE,
  featureWord,
  refusal,
  unmetRequirement,
  withoutUnmet,
} from '../../../src/virtio/features.js';

const NAMES = { A: 0, B: 1, C: 2 };
const REQUIREMENTS = [
  { bit: 1, anyOf: [0] },
  { bit: 2, anyOf: [1, 5] },
];
const V1 = bits(FEATURE.VERSION_1);

describe('features', () => {
  it('are told by the names of the device type and of the transport, and by number', () => {
    expect(describeFeatures(bits(0, 6, 32, 34), NAMES)).toBe('A, bit 6, VERSION_1, PACKED');
    expect(describeFeatures(0n)).toBe('none');
  });

  it('are accepted when they are a subset of the offer with VERSION_1', () => {
    expect(refusal(V1 | 7n, V1)).toBeUndefined();
    expect(refusal(V1 | 7n, V1 | 7n, NAMES, REQUIREMENTS)).toBeUndefined();
  });

  it('are refused when one was not offered', () => {
    expect(refusal(V1 | 1n, V1 | 3n, NAMES)).toBe('not offered: B');
  });

  it('are refused without VERSION_1', () => {
    expect(refusal(V1 | 1n, 1n)).toBe('VERSION_1 is missing');
  });

  it('are refused when one lacks what it requires', () => {
    expect(refusal(V1 | 7n, V1 | 2n, NAMES, REQUIREMENTS)).toBe('B requires A');
    expect(unmetRequirement(4n, NAMES, REQUIREMENTS)).toBe('C requires B or bit 5');
  });

  it('lose those that lack what they require, down the chain', () => {
    expect(withoutUnmet(0b110n, REQUIREMENTS)).toBe(0n);
    expect(withoutUnmet(0b111n, REQUIREMENTS)).toBe(0b111n);
    expect(withoutUnmet(0b100_100n, REQUIREMENTS)).toBe(0b100_100n);
  });

  it('are shown 32 at a time, and nothing above 63', () => {
    const mask = 0x8000_0001_4000_0002n;
    expect([0, 1, 2, 0xffff_ffff].map((n) => featureWord(mask, n))).toEqual([0x4000_0002, 0x8000_0001, 0, 0]);
  });
});
