import { rmSync, type Stats, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { bind, deviceStatus, problemOf, unbind } from '../../../src/vfio/binding.js';
import { rejectionOf } from '../sys/helpers.js';
import { FakeBus } from './fake-sysfs.js';

const A = '0000:01:00.0';
const B = '0000:02:00.0';
const MEM64 = 0x14220cn;
const UNSET = 0x2000_0000n;

let bus: FakeBus;
beforeEach(() => {
  bus = new FakeBus();
});
afterEach(() => bus[Symbol.dispose]());

const bound = (address: string): string | undefined => bus.facts(address)?.driver;

describe('bind', () => {
  it('gives a function without a driver to vfio-pci, and says that it changed something', async () => {
    bus.add(A, { group: 2 });
    expect(await bind(bus, A)).toBe(true);
    expect(bound(A)).toBe('vfio-pci');
    expect(bus.written).toEqual([`devices/${A}/driver_override=vfio-pci`, `drivers_probe=${A}`]);
  });

  it('leaves a function that vfio-pci has alone', async () => {
    bus.add(A, { group: 2, driver: 'vfio-pci' });
    expect(await bind(bus, A)).toBe(false);
    expect(bus.written).toEqual([]);
  });

  it('takes a function from its driver only when it is told to', async () => {
    bus.add(A, { group: 2, driver: 'e1000e', interfaces: ['eth0'] });
    const error = await rejectionOf(bind(bus, A));
    expect(error).toMatchObject({ scope: 'usage' });
    expect(error.message).toMatch(/e1000e.*eth0 is up.*--force/);
    expect(bus.written).toEqual([]);
    expect(await bind(bus, A, { force: true })).toBe(true);
    expect(bound(A)).toBe('vfio-pci');
  });

  it('says what gives an IOMMU where there is none', async () => {
    bus.add(A);
    const error = await rejectionOf(bind(bus, A));
    expect(error).toMatchObject({ scope: 'usage' });
    expect(error.message).toMatch(/intel-iommu,intremap=on.*intel_iommu=on.*virtio-iommu-pci/);
  });

  it('says which module to load', async () => {
    using empty = new FakeBus([]);
    empty.add(A, { group: 1 });
    const error = await rejectionOf(bind(empty, A));
    expect(error).toMatchObject({ scope: 'usage', message: expect.stringContaining('modprobe vfio-pci') });
  });

  it('says that there is no such function', async () => {
    const error = await rejectionOf(bind(bus, A));
    expect(error).toMatchObject({ scope: 'usage', message: expect.stringContaining(`no PCI device ${A}`) });
  });

  it.each(['EACCES', 'EPERM', 'EROFS'])('says that root is needed on %s', async (code) => {
    bus.add(A, { group: 2 });
    bus.refusal = code;
    const error = await rejectionOf(bind(bus, A));
    expect(error).toMatchObject({ scope: 'usage', message: expect.stringContaining('run as root') });
  });

  it('says so when vfio-pci does not take the function', async () => {
    bus.add(A, { group: 2 });
    bus.refusing.add('vfio-pci');
    expect(await rejectionOf(bind(bus, A))).toMatchObject({ scope: 'device', code: 'EBIND' });
  });

  it('gives a function that vfio-pci does not take back to the driver that had it', async () => {
    bus.add(A, { group: 2, driver: 'e1000e', ownDriver: 'e1000e' });
    bus.refusing.add('vfio-pci');
    const error = await rejectionOf(bind(bus, A, { force: true }));
    expect(error).toMatchObject({
      code: 'EBIND',
      message: expect.stringMatching(/take 0000:01:00.0; the kernel/),
    });
    expect(bus.facts(A)?.driver).toBe('e1000e');
    expect(bus.written.filter((line) => line.includes('driver_override')).at(-1)).toMatch(/=$/);
  });

  it('says when nobody has such a function any more', async () => {
    bus.add(A, { group: 2, driver: 'e1000e' });
    bus.refusing.add('vfio-pci');
    const error = await rejectionOf(bind(bus, A, { force: true }));
    expect(error).toMatchObject({ code: 'EBIND', message: expect.stringContaining('has no driver now') });
  });

  it('keeps the driver_override that such a function had', async () => {
    bus.add(A, { group: 2, driver: 'pci-stub' });
    bus.overrideDriver(A, 'pci-stub');
    bus.refusing.add('vfio-pci');
    expect(await rejectionOf(bind(bus, A, { force: true }))).toMatchObject({ code: 'EBIND' });
    expect(bus.override(A)).toBe('pci-stub');
    expect(bus.facts(A)?.driver).toBe('pci-stub');
  });

  it('leaves a function that had no driver without one when vfio-pci does not take it', async () => {
    bus.add(A, { group: 2, ownDriver: 'e1000e' });
    bus.refusing.add('vfio-pci');
    const error = await rejectionOf(bind(bus, A));
    expect(error).toMatchObject({
      code: 'EBIND',
      message: expect.stringMatching(/take 0000:01:00.0; the kernel/),
    });
    expect(bus.facts(A)?.driver).toBeUndefined();
  });

  it('waits until the BARs of a function have their places', async () => {
    bus.add(A, { group: 2, resource: [[0n, 0xfffn, MEM64]] });
    const done = bind(bus, A, { settleMs: 2000 });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(bus.written).toEqual([]);
    bus.remove(A);
    bus.add(A, { group: 2, resource: [[0x8000_0000n, 0x8000_0fffn, MEM64]] });
    expect(await done).toBe(true);
  });

  it('gives up on BARs for which there is no place, and names them', async () => {
    bus.add(A, {
      group: 2,
      resource: [
        [0x8000_0000n, 0x8000_0fffn, 0x40200n],
        [0n, 0n, 0n],
        [0n, 0xfff_ffffn, MEM64 | UNSET],
      ],
    });
    const error = await rejectionOf(bind(bus, A, { settleMs: 0 }));
    expect(error).toMatchObject({ scope: 'usage' });
    expect(error.message).toMatch(/no place for BAR 2 .*pref64-reserve/);
  });

  it('finds BARs of which the kernel has forgotten that they are there', async () => {
    const none = [0n, 0n, 0n] as const;
    // As Linux 6.12 shows a function behind a root port without room for BAR 2.
    const resource = [
      [0xfe80_0000n, 0xfe80_7fffn, 0x40200n],
      none,
      none,
      none,
      [0xfb00_0000n, 0xfb00_ffffn, MEM64],
      none,
    ] as const;
    bus.add(A, { group: 2, resource, registers: [0xfe80_0000, 0, 0xc, 0, 0xfb00_000c, 0] });
    const error = await rejectionOf(bind(bus, A, { settleMs: 0 }));
    expect(error).toMatchObject({ scope: 'usage' });
    expect(error.message).toMatch(/no place for BAR 2 of/);
    expect(deviceStatus(bus, () => true)[0]?.problem).toBe(error.message);
    // An upper half of an address is no BAR, and a function that does not answer says nothing about its BARs.
    bus.add(B, { group: 3, resource, registers: [0xfe80_0000, 0, 0, 0, 0xfb00_000c, 0x1] });
    expect(bus.facts(B)?.unassignedBars).toEqual([]);
    bus.remove(B);
    bus.add(B, { group: 3, resource, registers: Array(6).fill(0xffff_ffff) });
    expect(bus.facts(B)?.unassignedBars).toEqual([]);
  });
});

describe('bind with an owner', () => {
  // Root may give it to anybody, others to themselves.
  const root = process.getuid!() === 0;
  const user = root ? 12_345 : process.getuid!();
  const users = root ? 12_346 : process.getgid!();
  const group = (): Stats => statSync(join(bus.root, 'dev/vfio/2'));

  it('gives the IOMMU group to a user, and lets a group of users in', async () => {
    bus.add(A, { group: 2 });
    const before = group().mode & 0o777;
    expect(await bind(bus, A, { uid: user })).toBe(true);
    expect([group().uid, group().mode & 0o777]).toEqual([user, before]);
    // Bound already: the owner is what is new.
    expect(await bind(bus, A, { uid: user, gid: users })).toBe(false);
    expect([group().uid, group().gid, group().mode & 0o777]).toEqual([user, users, 0o660]);
  });
});

describe('bind with an owner, where /dev has no such group', () => {
  it('says what is missing', async () => {
    bus.add(A, { group: 2 });
    rmSync(join(bus.root, 'dev/vfio/2'));
    const error = await rejectionOf(bind(bus, A, { uid: process.getuid!() }));
    expect(error).toMatchObject({
      scope: 'usage',
      message: expect.stringMatching(/^\/dev\/vfio\/2 is not there: .*container/),
    });
    expect(bound(A)).toBe('vfio-pci');
  });
});

describe('unbind', () => {
  it('gives a function to the driver that the kernel has for it', async () => {
    bus.add(A, { group: 2, ownDriver: 'e1000e' });
    using other = new FakeBus(['vfio-pci', 'e1000e']);
    other.add(A, { group: 2, ownDriver: 'e1000e' });
    await bind(other, A);
    expect(unbind(other, A)).toBe(true);
    expect(other.facts(A)?.driver).toBe('e1000e');
  });

  it('leaves a function without a driver when the kernel has none', async () => {
    bus.add(A, { group: 2 });
    await bind(bus, A);
    expect(unbind(bus, A)).toBe(true);
    expect(bound(A)).toBeUndefined();
    expect(unbind(bus, A)).toBe(false);
  });

  it('does not take a function from another driver', () => {
    bus.add(A, { group: 2, driver: 'e1000e' });
    expect(() => unbind(bus, A)).toThrow(/used by the driver e1000e/);
    expect(() => unbind(bus, B)).toThrow(/no PCI device/);
  });
});

describe('status', () => {
  const ours = (f: { device: number }): boolean => f.device === 0x10f2;

  it('lists what is wanted and what vfio-pci has, with what is missing', async () => {
    bus.add(B, { group: 3 });
    bus.add(A, { group: 2, device: 0x1000, driver: 'vfio-pci' });
    bus.add('0000:03:00.0', { group: 4, device: 0x1000, driver: 'virtio-pci' });
    expect(deviceStatus(bus, ours)).toMatchObject([
      { address: A, device: 0x1000, driver: 'vfio-pci', group: 2, bound: true, problem: undefined },
      { address: B, device: 0x10f2, driver: undefined, group: 3, bound: false },
    ]);
    expect(deviceStatus(bus, ours)[1]?.problem).toContain(`vhost-pci bind ${B}`);
  });

  it('names the other functions of a group that is not viable', () => {
    bus.add(A, { group: 2, driver: 'vfio-pci' });
    bus.add('0000:00:01.0', { group: 2, driver: 'pcieport' });
    expect(problemOf(bus, bus.facts(A)!)).toBeUndefined();
    bus.add(B, { group: 2, driver: 'ahci' });
    expect(problemOf(bus, bus.facts(A)!)?.message).toMatch(/group 2 is not viable.*0000:02:00.0 \(ahci\)/);
  });
});
