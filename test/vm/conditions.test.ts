/**
 * Conditions that users have: a stock guest with memory on both sides of the PCI hole, one whose memory is huge pages, and
 * one with four queue pairs on two workers, by every way of waiting. The driver runs on the host.
 */
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { fileHas, hugeFolder, roomFor } from '../support/memory-file.js';
import type { Guest } from '../support/qemu.js';
import type { Driver } from '../support/rig.js';
import { need, Scope } from '../support/scope.js';
import { TAP_IP, VmPeer } from '../support/vm-peer.js';

const GIB = 1024 ** 3;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe('a stock guest of 4 GiB', () => {
  it('has its packets in memory above 4 GiB, and moves 10 MiB by TCP each way unaltered', async (context) => {
    need(context, roomFor(5));
    const vm = await VmPeer.create(context, scope, { mib: 4096 });
    const device = await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    await net.connection('on', 60_000);
    await guest.ready();
    await vm.ping(guest);
    await vm.transfer(guest, 10);

    // q35 has 2 GiB of it below the PCI hole and the rest at 4 GiB: "100000000-17fffffff : System RAM".
    const above = /^100000000-([0-9a-f]+) : System RAM$/m.exec(await guest.ok('cat /proc/iomem'));
    expect(Number.parseInt(above?.[1] ?? '0', 16)).toBe(6 * GIB - 1);
    await device.line(/"message":"mem-info-bar","regions":2\b/, 1000, 'stderr');
    // In the half of the file that is at 4 GiB: receive buffers as the driver fills them, num_buffers (VIRTIO 1.3, 5.1.6)
    // and then an IPv4 frame from the TAP.
    const start = Buffer.from(['0100', '525400000002', '020000000001', '0800'].join(''), 'hex');
    expect(fileHas(vm.memoryFile, start, 2 * GIB)).toBe(true);
    expect((await net.stop()).receive.drops).toBe(0);
  });
});

describe('a stock guest whose memory is huge pages', () => {
  it('pings and is pinged, and moves files by TCP each way', async (context) => {
    const mib = 256;
    const folder = need(context, await hugeFolder(scope, mib));
    const vm = await VmPeer.create(context, scope, { mib, folder });
    await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    await net.connection('on', 60_000);
    await guest.ready();
    await vm.ping(guest);
    await vm.transfer(guest, 4);
    // All three use the file, whose pages are the huge ones.
    expect(readFileSync(`/proc/${guest.child.pid}/smaps`, 'utf8')).toMatch(/Shared_Hugetlb: +[1-9]/);
    expect(readFileSync(`/proc/${net.child.pid}/smaps`, 'utf8')).toMatch(/Shared_Hugetlb: +[1-9]/);
    expect((await net.stop()).receive.drops).toBe(0);
  });
});

describe('a stock guest with four queue pairs', () => {
  /** A CPU transmits by the queue of its own number: pings from each of them. */
  async function everyPair(guest: Guest, net: Driver): Promise<void> {
    for (const mask of [1, 2, 4, 8]) await guest.ok(`taskset ${mask} ping -c 3 -i 0.2 -W 5 ${TAP_IP}`);
    const totals = await net.until('packets by each queue', 60_000, ({ queues }) =>
      queues.every(([received]) => received >= 3),
    );
    expect(totals.queues).toHaveLength(4);
  }

  it('is served by two workers that sleep at once, then by two that spin first', async (context) => {
    const vm = await VmPeer.create(context, scope, { queuePairs: 4 });
    await vm.startDevice();
    let guest: Guest | undefined;
    for (const mode of ['--interrupt', '--adaptive']) {
      const net = vm.startNet(['--workers', '2', mode]);
      guest ??= await vm.startGuest();
      await net.connection('on', 60_000);
      await guest.ready();
      await guest.carrier(true);
      await vm.ping(guest);
      await everyPair(guest, net);
      await vm.transfer(guest, 4);
      const totals = await net.stop();
      expect(totals.receive.drops).toBe(0);
      const last = net.child.events().findLast((e) => e.event === 'stats');
      const workers = last?.workers as { wakeups: number; busy_rounds: number }[];
      expect(workers).toHaveLength(2);
      // Each of them had work, and slept in between.
      for (const worker of workers) {
        expect(worker.busy_rounds).toBeGreaterThan(10);
        expect(worker.wakeups).toBeGreaterThan(0);
      }
      await guest.carrier(false);
    }
  });
});
