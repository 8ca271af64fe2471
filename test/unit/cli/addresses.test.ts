import { describe, expect, it } from 'vitest';
import { cidr, pciId } from '../../../src/cli/options.js';

const USAGE = { scope: 'usage' };

describe('an address with a prefix', () => {
  it.each([
    ['10.0.0.1/24', { family: 4, address: '10.0.0.1', prefix: 24 }],
    ['0.0.0.0/0', { family: 4, address: '0.0.0.0', prefix: 0 }],
    ['fd00::1/64', { family: 6, address: 'fd00::1', prefix: 64 }],
    ['::1/128', { family: 6, address: '::1', prefix: 128 }],
  ])('%s is taken apart', (text, expected) => {
    expect(cidr({ address: text }, 'address')).toEqual(expected);
  });

  it('may be left out', () => {
    expect(cidr({}, 'address')).toBeUndefined();
  });

  it.each([
    '10.0.0.1',
    '10.0.0.1/',
    '10.0.0.1/33',
    '10.0.0/8',
    '10.0.0.1/-1',
    '10.0.0.1/2.5',
    '10.0.0.1/24/7',
    '10.0.0.1/24/',
    'fd00::1/129',
    'fe80::1%eth0/64',
    'host/24',
    '/24',
  ])('%s is refused with an example', (text) => {
    const call = (): unknown => cidr({ address: text }, 'address');
    expect(call).toThrow(/such as 10\.0\.0\.1\/24/);
    expect(call).toThrow(expect.objectContaining(USAGE));
  });
});

describe('a PCI id', () => {
  it('is two numbers in hexadecimal', () => {
    expect(pciId({ 'pci-id': '1AF4:10f2' })).toEqual({ vendor: 0x1af4, device: 0x10f2 });
    expect(pciId({})).toBeUndefined();
    for (const text of ['1af4', '1af4:10f', '1af4:10f2:0', '0x1af4:0x10f2', 'x:y'])
      expect(() => pciId({ 'pci-id': text })).toThrow(expect.objectContaining(USAGE));
  });
});
