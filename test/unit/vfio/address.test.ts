import { describe, expect, it } from 'vitest';
import { pciAddress } from '../../../src/vfio/address.js';

describe('a PCI address', () => {
  it.each([
    ['0000:01:00.0', '0000:01:00.0'],
    ['01:00.0', '0000:01:00.0'],
    ['10000:AB:1f.7', '10000:ab:1f.7'],
  ])('%s is understood', (text, full) => {
    expect(pciAddress(text)).toBe(full);
  });

  it.each([
    '',
    '01:00',
    '01:20.0',
    '01:00.8',
    '1:00.0',
    '000:01:00.0',
    '0000:01:00.0 ',
    '../01:00.0',
    'vfio-user:/x',
  ])('"%s" is none', (text) => {
    expect(pciAddress(text)).toBeUndefined();
  });
});
