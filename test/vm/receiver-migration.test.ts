/** Live migration of a stock peer whose driver is in a receiving VM: the dirty log goes through a BAR and kernel VFIO. */
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { differingPages } from '../support/memory-file.js';
import { migrationEnd } from '../support/qmp.js';
import { receiverAddress } from '../support/receiver-guest.js';
import { Scope } from '../support/scope.js';
import { BOOT_MS, PEER_IP, RECEIVER_IP, startLoad, TwoVms } from '../support/two-vms.js';
import { TAP_IP, VmPeer } from '../support/vm-peer.js';

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

it('leaves no page behind that the driver in the receiving VM has written', async (context) => {
  const vms = await TwoVms.create(context, scope);
  const socket = join(scope.folder(), 'migration');
  // The destination has a driver on the host: a device process and a peer QEMU are all that the migration concerns.
  const target = await VmPeer.create(context, scope, {
    guest: { extra: ['-incoming', `unix:${socket}`, '-S'] },
  });
  await target.startDevice();
  const targetNet = target.startNet();
  const address = receiverAddress();
  await vms.bind(address);
  const net = await vms.startNet(address);
  const before = await vms.startPeer();
  await net.connection('on', BOOT_MS);
  await before.ready(BOOT_MS);
  await vms.ping(before);
  await startLoad(before, RECEIVER_IP);
  await startLoad(vms.receiver, PEER_IP);
  await net.flowing();

  const after = await target.startGuest();
  await before.qmp.run('migrate', { uri: `unix:${socket}` });
  expect(await migrationEnd(before.qmp, 240_000)).toBe('completed');
  expect(
    differingPages(vms.window.file, target.memoryFile),
    'pages that were written without being logged',
  ).toEqual([]);
  expect(await net.events('error')).toEqual([]);

  await after.qmp.run('cont');
  await targetNet.connection('on', 60_000);
  // Another machine has the address here, with a MAC of its own.
  await after.ok(`arp -d ${TAP_IP}; ping -c 1 -w 60 ${TAP_IP}`, 90_000);
});
