/**
 * Live migration of an in-tree peer between two device processes with a driver each, under load in both directions. At
 * each switch-over the copy is compared with the memory, byte by byte, and the peer goes on in the copy.
 * MIGRATIONS=N: how many of each kind.
 */
import { closeSync, openSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { silentLog } from '../../src/util/log.js';
import { DeviceProcess } from '../../src/vhost-pci/device/process.js';
import { Attachment } from '../../src/vhost-pci/driver/attachment.js';
import { openDevice } from '../../src/vhost-pci/driver/device-name.js';
import { Endpoint } from '../../src/vhost-pci/driver/endpoint.js';
import { EchoPort } from '../../src/vhost-pci/driver/ports.js';
import { PCI_ID } from '../../src/vhost-pci/identity.js';
import { MEMORY_BYTES, MigratingPeer, PAGE } from '../support/migrating-peer.js';
import { type Child, vhostPci } from '../support/process.js';
import { Scope, sleep, until } from '../support/scope.js';

const MIGRATIONS = Number(process.env.MIGRATIONS ?? 20);
const TIME = 120_000 + MIGRATIONS * 10_000;

let scope: Scope;
let memoryFile: string;
beforeEach(() => {
  scope = new Scope();
  memoryFile = join(scope.folder(), 'memory');
});
afterEach((context) => scope.end(context));

/** A host: its device process and its driver, which sends everything back. */
interface Host {
  readonly vhostUser: string;
  readonly vfioUser: string;
  readonly device: DeviceProcess;
}

async function deviceOnly(): Promise<Host> {
  const folder = scope.folder();
  const [vhostUser, vfioUser] = [join(folder, 'vhost-user'), join(folder, 'vfio-user')];
  const device = await DeviceProcess.start({
    socketPath: vhostUser,
    vfioUser,
    window: { path: memoryFile, size: MEMORY_BYTES },
    queuePairs: 1,
    interrupts: 'msix',
    pciId: PCI_ID,
    log: silentLog,
  });
  scope.defer(() => device[Symbol.asyncDispose]());
  return { vhostUser, vfioUser, device };
}

const hasDriver = ({ device }: Host): Promise<boolean> =>
  until('the driver is there', 10_000, () => device.link.driverReady);

async function host(): Promise<Host> {
  const made = await deviceOnly();
  const endpoint = Endpoint.start({
    open: openDevice(`vfio-user:${made.vfioUser}`, silentLog),
    port: new EchoPort(),
    mode: 'interrupt',
  });
  scope.defer(() => endpoint.close());
  await hasDriver(made);
  return made;
}

function memoryFd(): number {
  const fd = openSync(memoryFile, 'r+');
  scope.defer(() => closeSync(fd));
  return fd;
}

/** A peer on the first of two hosts, under load. */
async function migratingPeer(): Promise<{ peer: MigratingPeer; hosts: [Host, Host] }> {
  const hosts: [Host, Host] = [await host(), await host()];
  const peer = new MigratingPeer(memoryFd());
  scope.defer(() => peer[Symbol.asyncDispose]());
  await peer.connect(hosts[0].vhostUser);
  await peer.run();
  return { peer, hosts };
}

/** Frames go there and back. */
async function works(peer: MigratingPeer): Promise<void> {
  const before = peer.received;
  await until('frames come back', 5000, () => peer.received > before + 100);
}

/** Everything up to the switch-over: source and guest are stopped. Returns the pages that differ in the copy. */
async function migrate(peer: MigratingPeer): Promise<{ copy: Buffer; differing: number[] }> {
  await peer.startLogging();
  const copy = peer.beginCopy();
  const passes = 1 + Math.floor(Math.random() * 4);
  for (let i = 0; i < passes; i++) {
    await sleep(Math.random() * 15);
    peer.pass(copy);
  }
  // However slow the machine is: more frames than the ring has buffers were written since the copy was begun.
  await works(peer);
  await peer.pause();
  await peer.stop();
  peer.pass(copy);
  peer.copyGuestWrites(copy);
  return { copy, differing: peer.differing(copy) };
}

async function expectWhole(peer: MigratingPeer): Promise<void> {
  const { sent, received, lost, altered } = await peer.settle();
  expect({ received, lost, altered }).toEqual({ received: sent, lost: 0, altered: 0 });
}

describe('a peer that is migrated between two hosts', () => {
  it(
    'has the same memory on both sides each time, and loses nothing that its rings took',
    async () => {
      const { peer, hosts } = await migratingPeer();
      for (let i = 0; i < MIGRATIONS; i++) {
        await works(peer);
        const { copy, differing } = await migrate(peer);
        expect(differing, `pages that differ after migration ${i}`).toEqual([]);
        await peer.disconnect();
        peer.become(copy);
        await peer.connect(hosts[(i + 1) % 2]!.vhostUser);
        await peer.run();
      }
      await works(peer);
      await expectWhole(peer);
      expect(peer.copied).toBeGreaterThan(10 * MIGRATIONS);
    },
    TIME,
  );

  it(
    'goes on where it was when the migration is cancelled, at any point, and can be migrated then',
    async () => {
      const { peer, hosts } = await migratingPeer();
      for (let i = 0; i < Math.max(50, MIGRATIONS); i++) {
        if (i % 3 === 2) {
          // Cancelled when everything had stopped: QEMU starts the rings with LOG_ALL still on, and drops it then.
          const { differing } = await migrate(peer);
          expect(differing).toEqual([]);
          await peer.start();
          await peer.frontEnd.stopLogging();
          await peer.run();
        } else {
          await peer.startLogging();
          const copy = peer.beginCopy();
          await sleep(Math.random() * 12);
          peer.pass(copy);
          await peer.frontEnd.stopLogging();
        }
        await works(peer);
      }
      const { copy, differing } = await migrate(peer);
      expect(differing).toEqual([]);
      await peer.disconnect();
      peer.become(copy);
      await peer.connect(hosts[1].vhostUser);
      await peer.run();
      await works(peer);
      await expectWhole(peer);
    },
    TIME,
  );

  it('has the bits of the old log in it when the front-end brings another one', async () => {
    const { peer } = await migratingPeer();
    await works(peer);
    await peer.startLogging();
    const copy = peer.beginCopy();
    for (let i = 0; i < 10; i++) {
      await sleep(Math.random() * 12);
      await peer.replaceLog(copy);
    }
    await peer.pause();
    await peer.stop();
    peer.pass(copy);
    peer.copyGuestWrites(copy);
    expect(peer.differing(copy)).toEqual([]);
  });
});

describe('a driver that is killed while the peer is migrated', () => {
  it('has every page taken for written, and the next one is logged from its first write', async () => {
    const here = await deviceOnly();
    const driver = (): Child => vhostPci(scope, ['net', `vfio-user:${here.vfioUser}`, '--echo']);
    const first = driver();
    await hasDriver(here);
    const peer = new MigratingPeer(memoryFd());
    scope.defer(() => peer[Symbol.asyncDispose]());
    await peer.connect(here.vhostUser);
    await peer.run();
    await works(peer);
    await peer.startLogging();
    const copy = peer.beginCopy();
    const { closed } = peer.frontEnd;
    await first.kill();
    // D8: without a driver, the peer's link is down.
    await closed;
    expect(peer.pass(copy)).toBe(MEMORY_BYTES / PAGE);
    driver();
    await hasDriver(here);
    await peer.reconnect(here.vhostUser);
    await works(peer);
    peer.pass(copy);
    await peer.pause();
    await peer.stop();
    peer.pass(copy);
    peer.copyGuestWrites(copy);
    expect(peer.differing(copy)).toEqual([]);
  });
});

describe('a device process that is killed while the peer is migrated', () => {
  it('has every page taken for written by the one that takes its place', async () => {
    const folder = scope.folder();
    const [vhostUser, vfioUser] = [join(folder, 'vhost-user'), join(folder, 'vfio-user')];
    const memory = ['--peer-memory', memoryFile, '--peer-memory-size', String(MEMORY_BYTES)];
    const start = async (): Promise<Child> => {
      const device = vhostPci(scope, [
        'device',
        '--socket-path',
        vhostUser,
        '--vfio-user',
        vfioUser,
        ...memory,
      ]);
      await device.until('a socket that is its own', 10_000, () => listening(vhostUser));
      return device;
    };
    const first = await start();
    vhostPci(scope, ['net', `vfio-user:${vfioUser}`, '--echo']);
    const peer = new MigratingPeer(memoryFd());
    scope.defer(() => peer[Symbol.asyncDispose]());
    await peer.connect(vhostUser);
    await peer.run();
    await works(peer);
    await peer.startLogging();
    const copy = peer.beginCopy();
    await works(peer);
    const { closed } = peer.frontEnd;
    await first.kill();
    await closed;
    // What the driver wrote until it noticed is nowhere but in its memory.
    peer.pass(copy);
    await start();
    await peer.reconnect(vhostUser);
    expect(peer.pass(copy)).toBe(MEMORY_BYTES / PAGE);
    await works(peer);
    await peer.pause();
    await peer.stop();
    peer.pass(copy);
    peer.copyGuestWrites(copy);
    expect(peer.differing(copy)).toEqual([]);
  });
});

/** A process accepts connections: the socket is not one that was left over. */
function listening(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('error', () => resolve(false));
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
  });
}

describe('the proof itself', () => {
  it('finds the pages that differ when the driver does not log', async () => {
    const { peer } = await migratingPeer();
    const unlogged = vi.spyOn(Attachment.prototype, 'setDirtyLog').mockResolvedValue(undefined);
    scope.defer(() => unlogged.mockRestore());
    let differing = 0;
    for (let i = 0; i < 5 && differing === 0; i++) {
      await works(peer);
      differing = (await migrate(peer)).differing.length;
      await peer.start();
      await peer.frontEnd.stopLogging();
      await peer.run();
    }
    expect(differing).toBeGreaterThan(0);
  });
});
