import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ipv4Bytes, ipv4Mask, ipv6Bytes, Tap } from '../../../src/sys/tap.js';
import { errorOf, openFds } from './helpers.js';

describe('addresses as the kernel takes them', () => {
  it.each([
    ['10.1.2.3', '0a010203'],
    ['255.255.255.255', 'ffffffff'],
  ])('IPv4 %s', (text, hex) => {
    expect(ipv4Bytes(text).toString('hex')).toBe(hex);
  });

  it.each([
    [0, '00000000'],
    [1, '80000000'],
    [24, 'ffffff00'],
    [32, 'ffffffff'],
  ])('IPv4 prefix %i', (prefix, hex) => {
    expect(ipv4Mask(prefix).toString('hex')).toBe(hex);
  });

  it.each([
    ['::', '00000000000000000000000000000000'],
    ['::1', '00000000000000000000000000000001'],
    ['fd00::', 'fd000000000000000000000000000000'],
    ['2001:db8::A:1', '20010db80000000000000000000a0001'],
    ['1:2:3:4:5:6:7:8', '00010002000300040005000600070008'],
    ['::ffff:10.0.0.1', '00000000000000000000ffff0a000001'],
  ])('IPv6 %s', (text, hex) => {
    expect(ipv6Bytes(text).toString('hex')).toBe(hex);
  });

  it('IPv6 in any notation that leaves the groups alone', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(0xffff), { minLength: 8, maxLength: 8 }), (groups) => {
        const hex = groups.map((g) => g.toString(16).padStart(4, '0')).join('');
        expect(ipv6Bytes(groups.map((g) => g.toString(16)).join(':')).toString('hex')).toBe(hex);
      }),
    );
  });
});

const mayUseTap = existsSync('/dev/net/tun') && process.getuid?.() === 0;

describe.skipIf(!mayUseTap)('a TAP interface', () => {
  const name = `vpa${process.pid % 100_000}`;
  const addresses = (): string[] =>
    (networkInterfaces()[name] ?? []).map((a) => a.cidr ?? '').filter((a) => !a.startsWith('fe80'));
  const hasIpv6 =
    existsSync('/proc/sys/net/ipv6/conf/default/disable_ipv6') &&
    readFileSync('/proc/sys/net/ipv6/conf/default/disable_ipv6', 'utf8').trim() === '0';

  it('gets the address that it is given, once more without harm, and another one instead', () => {
    const before = openFds();
    {
      using tap = new Tap(name);
      tap.setUp();
      tap.setCarrier(true);
      tap.setAddress({ family: 4, address: '10.214.7.1', prefix: 20 });
      expect(addresses()).toEqual(['10.214.7.1/20']);
      tap.setAddress({ family: 4, address: '10.214.7.1', prefix: 20 });
      tap.setAddress({ family: 4, address: '10.214.9.1', prefix: 24 });
      expect(addresses()).toEqual(['10.214.9.1/24']);
    }
    expect(openFds()).toBe(before);
  });

  it.skipIf(!hasIpv6)('gets an IPv6 address beside it', () => {
    using tap = new Tap(name);
    tap.setUp();
    tap.setCarrier(true);
    const address = { family: 6, address: 'fd00:214::7', prefix: 64 } as const;
    tap.setAddress(address);
    tap.setAddress(address);
    const text = execFileSync('cat', ['/proc/net/if_inet6'], { encoding: 'utf8' });
    expect(text.split('\n').filter((l) => l.endsWith(name) && l.startsWith('fd00021400000000'))).toHaveLength(
      1,
    );
  });

  it('does not take an address that the kernel refuses', () => {
    using tap = new Tap(name);
    const refused = (address: string, family: 4 | 6, prefix: number): void =>
      expect(errorOf(() => tap.setAddress({ family, address, prefix }))).toMatchObject({
        scope: 'usage',
        message: expect.stringMatching(
          new RegExp(`${address}/${prefix} dev ${name}": give the address of a host`),
        ),
      });
    refused('224.0.0.1', 4, 24);
    refused('0.0.0.0', 4, 0);
    if (!hasIpv6) return;
    refused('::', 6, 64);
    tap.setMtu(1000);
    refused('fd00:214::8', 6, 64);
  });
});
