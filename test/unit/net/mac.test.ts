import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BROADCAST, formatMac, isUnicast, parseMac, randomMac } from '../../../src/net/mac.js';

describe('MAC address', () => {
  it('is the same after being written and read', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 6, maxLength: 6 }), (mac) => {
        expect([...parseMac(formatMac(mac))]).toEqual([...mac]);
      }),
    );
  });

  it('is read in either case', () => {
    expect(parseMac('02:AB:cd:00:00:01')).toEqual(Buffer.from([2, 0xab, 0xcd, 0, 0, 1]));
  });

  it.each([
    '',
    '02:00:00:00:00',
    '02:00:00:00:00:01:02',
    '2:0:0:0:0:1',
    '02-00-00-00-00-01',
    '0g:00:00:00:00:01',
  ])('is not %o', (text) => {
    expect(() => parseMac(text)).toThrow(expect.objectContaining({ scope: 'usage' }));
  });

  it('is unicast without the group bit, and not zero', () => {
    expect(isUnicast(BROADCAST)).toBe(false);
    expect(isUnicast(Buffer.alloc(6))).toBe(false);
    expect(isUnicast(parseMac('01:00:5e:00:00:01'))).toBe(false);
    expect(isUnicast(parseMac('02:00:00:00:00:01'))).toBe(true);
    expect(isUnicast(Buffer.from([2]))).toBe(false);
  });

  it('is random, local and unicast when made up', () => {
    const made = Array.from({ length: 64 }, randomMac);
    for (const mac of made) {
      expect(mac).toHaveLength(6);
      expect((mac[0] ?? 0) & 3).toBe(2);
    }
    expect(new Set(made.map(formatMac)).size).toBe(64);
  });
});
