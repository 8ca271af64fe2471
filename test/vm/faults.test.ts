/**
 * What goes wrong around a stock guest: memory that cannot be shared, processes that start late, are stopped, are killed
 * or are reset under load. Each ends in words, and in a link that comes back. The driver runs on the host.
 */
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { flowing, Load } from '../support/load.js';
import { type Child, fdCount, residentKiB } from '../support/process.js';
import type { Guest, GuestMemory } from '../support/qemu.js';
import type { Driver } from '../support/rig.js';
import { Scope, sleep, until } from '../support/scope.js';
import { VmPeer } from '../support/vm-peer.js';

const BOOT_MS = 60_000;
/** How long a process is stopped. */
const STOP_MS = 1000 * Number(process.env.VHOST_PCI_STOP_SECONDS ?? 10);

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

const ended = (net: Driver, from: number): boolean =>
  net.child
    .events()
    .slice(from)
    .some((e) => e.event === 'connection' && e.state === 'off');

async function transfers(vm: VmPeer, guest: Guest): Promise<void> {
  await vm.ping(guest);
  await vm.transfer(guest, 4);
}

describe('memory that cannot be shared', () => {
  const mib = 256;
  const file = (path: string, size: number, id: string, share: boolean): string[] => [
    '-object',
    `memory-backend-file,id=${id},size=${size}M,mem-path=${path}${share ? ',share=on' : ''}`,
  ];
  const node = (id: string): string[] => ['-numa', `node,memdev=${id}`];

  it('is refused in words and carries nothing, and a right peer works afterwards', async (context) => {
    const vm = await VmPeer.create(context, scope, { mib });
    const device = await vm.startDevice();
    const net = vm.startNet();
    await device.line(/client connected/, 60_000, 'stderr');
    const other = join(scope.folder('/dev/shm'), 'other');
    const half = mib / 2;
    const gaveUp = /vhost_set_mem_table failed|unable to start vhost net/;
    const cases: { memory: GuestMemory; said: RegExp; qemu?: RegExp }[] = [
      {
        memory: { kind: 'window', file: other, mib },
        said: /the peer's memory is not .*: start its QEMU with .*mem-path=.*,share=on/,
        qemu: gaveUp,
      },
      {
        memory: { kind: 'args', mib, args: [...file(vm.memoryFile, mib, 'm', false), ...node('m')] },
        said: /the peer has started without memory: .*share=on/,
      },
      {
        memory: {
          kind: 'args',
          mib,
          args: [
            ...file(vm.memoryFile, half, 'a', true),
            ...node('a'),
            ...file(other, half, 'b', true),
            ...node('b'),
          ],
        },
        said: /the peer has its memory in several files: give it a single memory backend with share=on/,
        qemu: gaveUp,
      },
    ];
    let descriptors: number | undefined;
    for (const { memory, said, qemu } of cases) {
      const from = device.stderr.length;
      const guest = await vm.startGuest(memory);
      await device.line(said, BOOT_MS, 'stderr', from);
      if (qemu) await guest.child.line(qemu, 60_000, 'stderr');
      await guest.ready();
      expect((await guest.run('ping -c 2 -W 1 10.0.0.1')).output).toMatch(/ 100% packet loss/);
      expect(guest.child.exit).toBeUndefined();
      await guest.child.kill();
      await device.line(/peer disconnected/, 60_000, 'stderr', from);
      // The device process has no more of the second and the third than of the first.
      descriptors ??= fdCount(device.pid);
      await until('descriptors are closed', 5000, () => fdCount(device.pid) === descriptors);
    }
    expect(net.child.events().filter((e) => e.event === 'connection')).toEqual([]);
    expect(device.exit).toBeUndefined();

    const guest = await vm.startGuest();
    await net.connection('on', BOOT_MS);
    await guest.ready();
    await transfers(vm, guest);
  });
});

describe('a device process that starts late', () => {
  it('is waited for by QEMU and by the driver', async (context) => {
    let qemu: Child | undefined;
    const onStart = (child: Child): void => {
      qemu = child;
    };
    const vm = await VmPeer.create(context, scope, { guest: { onStart } });
    const net = vm.startNet();
    await net.child.line(/waiting for a device process/, 60_000, 'stderr');
    const starting = vm.startGuest();
    starting.catch(() => {}); // awaited below
    await qemu?.line(/Unable to connect character device/, 60_000, 'stderr');
    const early = await vm.startDevice();
    const guest = await starting;
    await net.connection('on', BOOT_MS);
    await guest.ready();
    await vm.ping(guest);

    // A running peer waits: its link is down until there is a device process again.
    const mark = net.mark();
    await early.stop();
    await net.connection('off', 60_000, mark);
    await guest.carrier(false);
    await sleep(2000);
    expect(guest.child.exit ?? net.child.exit).toBeUndefined();
    await vm.startDevice();
    await net.connection('on', 60_000, mark);
    await guest.carrier(true);
    await transfers(vm, guest);
  });
});

describe('under load', () => {
  it('QEMU, the device process and the driver may each be stopped for a while', {
    timeout: 900_000 + 3 * STOP_MS,
  }, async (context) => {
    const vm = await VmPeer.create(context, scope);
    const device = await vm.startDevice();
    const net = vm.startNet();
    const guest = await vm.startGuest();
    await net.connection('on', BOOT_MS);
    await guest.ready();
    const load = new Load(vm);
    await load.start(guest);
    await flowing(net);
    const mark = net.mark();
    const held = (): [number, number] => [fdCount(device.pid), fdCount(net.child.pid)];
    const before = { fds: held(), device: residentKiB(device.pid), driver: residentKiB(net.child.pid) };
    for (const victim of [guest.child, device, net.child]) {
      victim.signal('SIGSTOP');
      await sleep(STOP_MS);
      for (const child of [guest.child, device, net.child]) expect(child.exit).toBeUndefined();
      victim.signal('SIGCONT');
      await flowing(net);
    }
    // Nobody took it for an end, and nothing was piled up.
    expect(ended(net, mark)).toBe(false);
    expect(held()).toEqual(before.fds);
    expect(residentKiB(device.pid) - before.device).toBeLessThan(48 << 10);
    expect(residentKiB(net.child.pid) - before.driver).toBeLessThan(48 << 10);
    await load.stop(guest);
    await transfers(vm, guest);
  });

  it('the guest may be reset, and the driver, the device process and QEMU may be killed', async (context) => {
    const vm = await VmPeer.create(context, scope);
    let device: Child = await vm.startDevice();
    let net = vm.startNet();
    let guest = await vm.startGuest();
    await net.connection('on', BOOT_MS);
    await guest.ready();
    const load = new Load(vm);
    await load.start(guest);
    await flowing(net);

    let mark = net.mark();
    await guest.reset();
    await net.connection('off', 60_000, mark);
    await net.connection('on', BOOT_MS, mark);
    await load.start(guest);
    await flowing(net);

    await net.child.kill();
    await device.line(/receiver disconnected/, 60_000, 'stderr');
    net = vm.startNet();
    await net.connection('on', 60_000);
    await flowing(net);

    mark = net.mark();
    await device.kill();
    await net.connection('off', 60_000, mark);
    device = await vm.startDevice();
    await net.connection('on', 60_000, mark);
    const withoutDevice = { from: mark, to: net.mark() };
    await flowing(net);

    mark = net.mark();
    await guest.child.kill();
    await net.connection('off', 60_000, mark);
    await load.stop();
    guest = await vm.startGuest();
    await net.connection('on', BOOT_MS, mark);
    await guest.ready();
    await transfers(vm, guest);
    // Once the device process is gone QEMU takes the rings of a card without a link back, perhaps before the driver hears
    // of the end; it then gives its ring up.
    const takenBack = /used index was written by somebody else/;
    const errors = net.child.events().filter((e, i) => {
      const then = i >= withoutDevice.from && i < withoutDevice.to;
      return e.event === 'error' && !(then && takenBack.test(String(e.message)));
    });
    expect(errors).toEqual([]);
    await net.stop();
  });
});
