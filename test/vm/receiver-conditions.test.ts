/**
 * Conditions that users have, with the driver in a receiving VM: a stock peer with memory on both sides of the PCI hole, one
 * whose memory is huge pages, one with four queue pairs; workers that sleep at once and workers that spin first.
 */
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { fileHas, hugeFolder, roomFor } from '../support/memory-file.js';
import type { Guest } from '../support/qemu.js';
import { type GuestDriver, type GuestStats, receiverAddress } from '../support/receiver-guest.js';
import { need, Scope, until } from '../support/scope.js';
import { BOOT_MS, RECEIVER_IP, TwoVms } from '../support/two-vms.js';

const GIB = 1024 ** 3;
const LINK_MS = 90_000;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

const drops = (stats: GuestStats | undefined): number[] =>
  (stats?.queues ?? []).map(({ receive }) => receive.drops);

describe('a receiving VM whose peer has 4 GiB', () => {
  it('has packets in memory above 4 GiB, and moves files by TCP each way unaltered', async (context) => {
    need(context, roomFor(5));
    const vms = await TwoVms.create(context, scope, { mib: 4096 });
    const address = receiverAddress();
    // The window is a BAR as large as the file, where the guest has place for it: above 4 GiB.
    const bar2 = (await vms.receiver.ok(`cat /sys/bus/pci/devices/${address}/resource`)).split('\n')[2]!;
    const [start, end] = bar2.split(' ').map(Number) as [number, number];
    expect(end + 1 - start).toBe(4 * GIB);
    expect(start).toBeGreaterThanOrEqual(4 * GIB);

    await vms.bind(address);
    const net = await vms.startNet(address, '--interrupt');
    const peer = await vms.startPeer();
    await net.connection('on', LINK_MS);
    await peer.ready(BOOT_MS);
    await vms.ping(peer);
    await vms.transfer(peer, 10);

    // q35 has 2 GiB of it below the PCI hole and the rest at 4 GiB: "100000000-17fffffff : System RAM".
    expect(await peer.ok('cat /proc/iomem')).toMatch(/^100000000-17fffffff : System RAM$/m);
    await vms.device.line(/"message":"mem-info-bar","regions":2\b/, 1000, 'stderr');
    // In the half of the file that is at 4 GiB: receive buffers as the driver fills them, num_buffers (VIRTIO 1.3, 5.1.6)
    // and then an IPv4 frame from the TAP.
    const mac = (await vms.receiver.ok('cat /sys/class/net/vp0/address')).replaceAll(':', '');
    const frame = Buffer.from(['0100', '525400000002', mac, '0800'].join(''), 'hex');
    expect(fileHas(vms.window.file, frame, 2 * GIB)).toBe(true);
    expect(drops(await net.stats())).toEqual([0]);
    expect(await net.stop()).not.toMatch(/"event":"error"/);
  });
});

describe('a receiving VM whose peer has huge pages and four queue pairs', () => {
  /** A CPU transmits by the queue of its own number: pings from each of them. */
  async function everyPair(peer: Guest, net: GuestDriver): Promise<GuestStats> {
    for (const mask of [1, 2, 4, 8]) await peer.ok(`taskset ${mask} ping -c 3 -i 0.2 -W 5 ${RECEIVER_IP}`);
    return until('packets by each queue', LINK_MS, async () => {
      const stats = await net.stats();
      return stats?.queues.length === 4 && stats.queues.every((q) => q.receive.packets >= 3) && stats;
    });
  }

  it('is served by two workers that sleep at once, then by two that spin first', async (context) => {
    const mib = 256;
    const folder = need(context, await hugeFolder(scope, mib));
    const pairs = { queuePairs: 4 };
    const vms = await TwoVms.create(context, scope, {
      mib,
      folder,
      device: pairs,
      peer: pairs,
      receiver: { cpus: 2 },
    });
    const address = receiverAddress();
    await vms.bind(address);
    let peer: Guest | undefined;
    for (const mode of ['--interrupt', '--adaptive']) {
      const net = await vms.startNet(address, `--workers 2 ${mode}`);
      peer ??= await vms.startPeer();
      await net.connection('on', LINK_MS);
      await peer.ready(BOOT_MS);
      await peer.carrier(true, LINK_MS);
      await vms.ping(peer);
      const { workers } = await everyPair(peer, net);
      expect(workers).toHaveLength(2);
      // Each of them had work, and slept in between.
      for (const worker of workers) {
        expect(worker.busy_rounds).toBeGreaterThan(0);
        expect(worker.wakeups).toBeGreaterThan(0);
      }
      await vms.transfer(peer, 4);
      // A vector for each pair, and one for the control queues.
      expect(await vms.receiver.ok('grep -c vfio-msix /proc/interrupts')).toBe('5');
      for (const { child } of [peer, vms.receiver])
        expect(readFileSync(`/proc/${child.pid}/smaps`, 'utf8')).toMatch(/Shared_Hugetlb: +[1-9]/);
      expect(drops(await net.stats())).toEqual([0, 0, 0, 0]);
      expect(await net.stop()).not.toMatch(/"event":"error"/);
      await peer.carrier(false, LINK_MS);
    }
  });
});
