/**
 * The driver in a receiving VM, on kernel VFIO, against a stock guest in another VM: nothing of either QEMU and neither
 * kernel is ours. The receiving VM is 10.0.0.1, the peer 10.0.0.2.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { guestVhostPci, receiverAddress } from '../support/receiver-guest.js';
import { Scope, until } from '../support/scope.js';
import { BOOT_MS, TwoVms } from '../support/two-vms.js';

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe('a receiving VM with intel-iommu and MSI-X', () => {
  it('serves a stock peer that comes, is killed and comes back, and ends in order', async (context) => {
    const vms = await TwoVms.create(context, scope);
    const address = receiverAddress();

    // What is wrong is told in words, before anything is opened.
    const early = await guestVhostPci(vms.receiver, `net ${address} --sink`);
    expect(early.status).toBe(2);
    expect(early.output).toContain(`run "vhost-pci bind ${address}"`);
    await vms.bind(address);
    const status = await guestVhostPci(vms.receiver, 'status --json');
    expect(JSON.parse(status.output)).toEqual([
      {
        address,
        id: '1af4:10f2',
        driver: 'vfio-pci',
        iommu_group: expect.any(Number),
        bound: true,
        problem: null,
      },
    ]);

    const net = await vms.startNet(address, '--mtu 1400');
    const first = await vms.startPeer();
    await net.connection('on', 60_000);
    await first.ready(BOOT_MS);
    await vms.ping(first);
    await vms.transfer(first, 4);
    // TCP segments longer than the MTU went through in one piece (GSO).
    await until('packets longer than the MTU, both ways', 60_000, async () => {
      const queue = (await net.stats())?.queues[0];
      return (
        queue &&
        [queue.receive, queue.send].every(({ bytes, packets }) => bytes > 4 << 20 && bytes / packets > 1500)
      );
    });
    expect(await vms.receiver.ok('cat /sys/class/net/vp0/mtu /sys/class/net/vp0/carrier')).toBe('1400\n1');
    expect(await vms.receiver.ok('grep -c vfio-msix /proc/interrupts')).toBe('2');
    const busy = await guestVhostPci(vms.receiver, `net ${address} --sink`);
    expect(busy).toMatchObject({ status: 2, output: expect.stringContaining('in use by another process') });

    await first.child.kill();
    await net.connection('off', 60_000);
    expect(await vms.receiver.ok('cat /sys/class/net/vp0/carrier')).toBe('0');
    const second = await vms.startPeer();
    await net.connection('on', 60_000, 2);
    await second.ready(BOOT_MS);
    await vms.ping(second);

    const said = await net.stop();
    expect(said).toMatch(/"connection","state":"off"/);
    expect(said).not.toMatch(/"event":"error"/);
    await second.carrier(false);
    const unbound = await guestVhostPci(vms.receiver, `unbind ${address}`);
    expect(unbound.output).toBe(`${address} has no driver now`);
  });
});

describe('a receiving VM with virtio-iommu and MSI', () => {
  const ALLOW = 'echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts';

  it('serves a stock peer in interrupt mode with a single vector, and survives its own end', async (context) => {
    const receiver = { iommu: 'virtio' } as const;
    const vms = await TwoVms.create(context, scope, { device: { interrupts: 'msi' }, receiver });
    const address = receiverAddress();
    await vms.bind(address);

    const refused = await guestVhostPci(vms.receiver, `net ${address} --sink`);
    expect(refused.status).toBe(2);
    expect(refused.output).toContain('allow_unsafe_interrupts');
    await vms.receiver.ok(ALLOW);

    const net = await vms.startNet(address, '--interrupt');
    const peer = await vms.startPeer();
    await net.connection('on', 60_000);
    await peer.ready(BOOT_MS);
    await vms.ping(peer);
    await vms.transfer(peer, 2);
    expect(await vms.receiver.ok('grep -c vfio-msi /proc/interrupts')).toBe('1');

    // The driver is killed: the device is reset, and another driver takes it.
    await net.stop('KILL');
    await peer.carrier(false);
    const second = await vms.startNet(address, '--interrupt');
    await second.connection('on', 60_000);
    await peer.carrier(true);
    await vms.ping(peer);

    // The whole receiving VM is killed: the peer goes on, and another receiving VM takes its place.
    await vms.receiver.child.kill();
    await peer.carrier(false);
    await vms.startReceiver();
    await vms.receiver.ok(ALLOW);
    await vms.bind(address);
    const third = await vms.startNet(address, '--poll');
    await third.connection('on', 60_000);
    await peer.carrier(true);
    await vms.ping(peer);
    expect(await third.stop()).not.toMatch(/"event":"error"/);
  });
});

describe('a receiving VM without an IOMMU', () => {
  it('is told what gives it one', async (context) => {
    const vms = await TwoVms.create(context, scope, { receiver: { iommu: 'none' } });
    const bound = await guestVhostPci(vms.receiver, `bind ${receiverAddress()}`);
    expect(bound.status).toBe(2);
    expect(bound.output).toMatch(/intel-iommu.*intel_iommu=on.*virtio-iommu-pci/);
    const status = await guestVhostPci(vms.receiver, 'status');
    expect(status.output).toMatch(/^0000:00:10.0 +1af4:10f2 +- +- +no$/m);
  });
});

describe('a receiving VM whose device is hot-plugged', () => {
  it('takes the device up when it comes, lets go of it when it is unplugged or dead', async (context) => {
    const device = { interrupts: 'msi' } as const;
    const vms = await TwoVms.create(context, scope, {
      device,
      receiver: {
        vfioUser: [],
        extra: [
          '-device',
          'pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1,pref64-reserve=1G',
          '-device',
          'pcie-root-port,id=tight,bus=pcie.0,chassis=2,slot=2',
          '-cpu',
          'max,vendor=GenuineIntel',
        ],
      },
    });
    const { receiver } = vms;
    const net = await vms.startNet('01:00.0');
    const peer = await vms.startPeer();
    await peer.ready(BOOT_MS);
    await net.says(/waiting for 0000:01:00.0: there is no PCI device/, 60_000);

    const plug = (bus = 'port0'): Promise<unknown> =>
      receiver.qmp.run('device_add', {
        driver: 'vfio-user-pci',
        id: 'vhost-pci',
        bus,
        socket: { type: 'unix', path: vms.rig.vfioUser },
      });
    const unplug = async (ms = 60_000): Promise<void> => {
      const seen = receiver.qmp.events.length;
      await receiver.qmp.run('device_del', { id: 'vhost-pci' });
      await receiver.qmp.event('DEVICE_DELETED', ms, seen);
    };

    // Behind a port without room the kernel gives up on the BAR that holds the peer's memory.
    await plug('tight');
    await until('status tells of the BAR', 60_000, async () => {
      const { output } = await guestVhostPci(receiver, 'status');
      return /no place for BAR 2 of 0000:02:00.0: .*pref64-reserve/.test(output);
    });
    await unplug();

    for (let round = 1; round <= 2; round++) {
      await plug();
      await net.connection('on', 60_000, round);
      await vms.ping(peer);
      await unplug();
      await net.connection('off', 60_000, round);
      expect(await net.running()).toBe(true);
      expect(await receiver.ok('ls /sys/bus/pci/devices')).not.toContain('0000:01:00.0');
    }

    await plug();
    await net.connection('on', 60_000, 3);
    await vms.device.kill();
    await net.connection('off', 60_000, 3);
    await vms.startDevice();
    // Linux waits a minute for a dead function before it lets go of it (pci_dev_wait).
    await unplug(150_000);
    await plug();
    await net.connection('on', 60_000, 4);
    await vms.ping(peer);
    await net.stop();
  }, 360_000);
});
