/**
 * A stock Linux guest on stock QEMU as the peer: traffic, checksums, reboot, kill -9 of each party, both ways to
 * share its memory, and two queue pairs. Without a receiving VM: the driver runs on the host.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { fdCount, mappings } from '../support/process.js';
import { Scope } from '../support/scope.js';
import { VmPeer } from '../support/vm-peer.js';

const TRANSFER_MIB = 10;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe('a stock guest whose memory is a window file', () => {
  it('pings and is pinged, and moves 10 MiB by TCP each way unaltered', async (context) => {
    const vm = await VmPeer.create(context, scope);
    await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    await net.connection('on', 60_000);
    await guest.ready();
    await guest.carrier(true);
    await vm.ping(guest);
    await vm.transfer(guest, TRANSFER_MIB);
    await vm.ping(guest);
    const totals = await net.stop();
    expect(totals.receive.bytes).toBeGreaterThan(TRANSFER_MIB << 20);
    expect(totals.send.bytes).toBeGreaterThan(TRANSFER_MIB << 20);
    expect(totals.receive.drops).toBe(0);
    // The driver told the device that it stopped, and the peer sees its link go.
    await guest.carrier(false);
  });

  it('reboots, again and again, and finds its network each time', async (context) => {
    const vm = await VmPeer.create(context, scope);
    const device = await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    await net.connection('on', 60_000);
    await guest.ready();
    await vm.ping(guest);
    const before = { device: fdCount(device.pid), maps: mappings(device.pid, /peer/).length };
    for (let round = 0; round < 2; round++) {
      const mark = net.mark();
      await guest.reset();
      await net.connection('off', 60_000, mark);
      await net.connection('on', 60_000, mark);
      await vm.ping(guest);
    }
    expect({ device: fdCount(device.pid), maps: mappings(device.pid, /peer/).length }).toEqual(before);
  });

  it('may have its QEMU killed and started again on the same file', async (context) => {
    const vm = await VmPeer.create(context, scope);
    const device = await vm.startDevice();
    const net = vm.startNet();
    const first = await vm.startGuest();
    await net.connection('on', 60_000);
    await first.ready();
    await vm.ping(first);
    const descriptors = fdCount(device.pid);
    const mark = net.mark();
    await first.child.kill();
    await net.connection('off', 60_000, mark);
    const second = await vm.startGuest();
    await net.connection('on', 60_000, mark);
    await second.ready();
    await vm.ping(second);
    expect(fdCount(device.pid)).toBe(descriptors);
  });

  it('keeps running and finds its network again when driver and device process are killed', async (context) => {
    const vm = await VmPeer.create(context, scope);
    const device = await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    await net.connection('on', 60_000);
    await guest.ready();
    await vm.ping(guest);
    await vm.outlives(guest, net, device);
  });

  it('spreads its traffic over two queue pairs', async (context) => {
    const vm = await VmPeer.create(context, scope, { queuePairs: 2, net: ['--workers', '2'] });
    await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    await net.connection('on', 60_000);
    await guest.ready();
    await vm.ping(guest);
    // A CPU transmits by the queue of its own number.
    for (const mask of [1, 2]) await guest.ok(`taskset ${mask} ping -c 4 -i 0.2 -W 3 10.0.0.1`);
    await vm.transfer(guest, TRANSFER_MIB);
    const totals = await net.stop();
    expect(totals.queues).toHaveLength(2);
    for (const [received] of totals.queues) expect(received).toBeGreaterThanOrEqual(4);
  });
});

describe("a stock guest whose memory is QEMU's own", () => {
  it('is adopted when its driver starts, and pings and moves 10 MiB each way', async (context) => {
    const vm = await VmPeer.create(context, scope, { mode: 'adopt' });
    const device = await vm.startDevice();
    const guest = await vm.startGuest();
    await vm.rig.served(device, 60_000);
    const net = vm.startNet();
    await net.connection('on', 60_000);
    await guest.ready();
    await vm.ping(guest);
    await vm.transfer(guest, TRANSFER_MIB);
  });
});

describe('a stock guest with packed rings', () => {
  /** VIRTIO_F_RING_PACKED */
  const PACKED = 1n << 34n;

  it('pings and is pinged, moves 10 MiB each way, reboots, and outlives driver and device process', async (context) => {
    const vm = await VmPeer.create(context, scope, { guest: { packed: true } });
    const device = await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    const { features } = await net.connection('on', 60_000);
    expect(BigInt(String(features)) & PACKED).toBe(PACKED);
    await guest.ready();
    await guest.carrier(true);
    await vm.ping(guest);
    await vm.transfer(guest, TRANSFER_MIB);

    const mark = net.mark();
    await guest.reset();
    await net.connection('off', 60_000, mark);
    await net.connection('on', 60_000, mark);
    await vm.ping(guest);

    // QEMU learns no position from an end like these: it gives the one that the rings started from.
    expect((await net.stop()).receive.drops).toBe(0);
    await guest.carrier(false);
    await vm.outlives(guest, await vm.nextNet(guest), device);
    await vm.transfer(guest, 1);
  });
});
