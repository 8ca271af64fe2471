/** Adopt mode without hot-plug: the receiving VM is started when the peer runs already, with the peer's own memory as its BAR. */
import { afterEach, beforeEach, expect, it } from 'vitest';
import { pingBothWays } from '../support/guest-traffic.js';
import { Guest } from '../support/qemu.js';
import {
  GuestDriver,
  guestVhostPci,
  receiverAddress,
  receiverProgram,
  startReceiver,
} from '../support/receiver-guest.js';
import { Rig } from '../support/rig.js';
import { need, Scope } from '../support/scope.js';
import { BOOT_MS, PEER_IP, RECEIVER_IP } from '../support/two-vms.js';

const LINK_MS = 90_000;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

it('serves a receiving VM that is started after the peer, and tells it of the end of the peer', async (context) => {
  const program = need(context, await receiverProgram());
  const rig = new Rig(scope);
  const device = await rig.device();
  const peer = await Guest.start(scope, program.peer, {
    memory: { kind: 'adopt', mib: 256 },
    vhostUser: rig.vhostUser,
    ip: `${PEER_IP}/24`,
  });
  await peer.ready(BOOT_MS);
  await rig.served(device, LINK_MS);

  const address = receiverAddress();
  const receiver = await startReceiver(scope, program, { vfioUser: [rig.vfioUser] });
  await receiver.ready(BOOT_MS);
  expect((await guestVhostPci(receiver, `bind ${address}`)).status).toBe(0);
  const net = await GuestDriver.start(receiver, `${address} --tap vp0 --address ${RECEIVER_IP}/24`);
  scope.onFailure(() => net.last);
  await net.connection('on', LINK_MS);
  await peer.carrier(true, LINK_MS);
  await pingBothWays({ guest: peer, ip: PEER_IP }, { guest: receiver, ip: RECEIVER_IP });

  // The device is the peer's memory: it ends with it (the seed, the peer's crash), and the VM goes on.
  await peer.child.kill();
  await net.connection('off', LINK_MS);
  expect(await net.running()).toBe(true);
  expect(await receiver.ok('echo alive')).toBe('alive');
});
