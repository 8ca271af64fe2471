/**
 * The receiving VM as a switch between two peers: three stock VMs, two devices in one of them, joined by `vhost-pci net A
 * --connect B`. The peers are 10.0.0.2 and 10.0.0.3; the receiving VM has no address of its own.
 */
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { pingBothWays, transferBothWays } from '../support/guest-traffic.js';
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

const PEER_MIB = 192;
const TRANSFER_MIB = 4;
const BOOT_MS = 120_000;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe('a receiving VM with two devices that are joined', () => {
  it('carries the packets of two stock peers, one of which is killed and comes back', async (context) => {
    const program = need(context, await receiverProgram());
    const halves = [2, 3].map((host) => ({
      rig: new Rig(scope),
      window: { file: join(scope.folder('/dev/shm'), 'peer'), mib: PEER_MIB },
      ip: `10.0.0.${host}`,
      mac: `52:54:00:00:00:0${host}`,
    }));
    const [left, right] = halves as [(typeof halves)[0], (typeof halves)[0]];
    for (const { rig, window } of halves) await rig.device({ window });
    const receiver = await startReceiver(scope, program, {
      vfioUser: halves.map(({ rig }) => rig.vfioUser),
    });
    await receiver.ready(BOOT_MS);
    const [a, b] = [receiverAddress(0), receiverAddress(1)];
    for (const address of [a, b]) expect((await guestVhostPci(receiver, `bind ${address}`)).status).toBe(0);
    const net = await GuestDriver.start(receiver, `${a} --connect ${b}`);
    scope.onFailure(() => net.last);

    const start = ({ rig, window, ip, mac }: (typeof halves)[0]): Promise<Guest> =>
      Guest.start(scope, program.peer, {
        memory: { kind: 'window', ...window },
        vhostUser: rig.vhostUser,
        ip: `${ip}/24`,
        mac,
      });
    const one = await start(left);
    let two = await start(right);
    await one.ready(BOOT_MS);
    await two.ready(BOOT_MS);
    await net.connection('on', 60_000, 2);

    const traffic = async (): Promise<void> => {
      const ends = [
        { guest: one, ip: left.ip },
        { guest: two, ip: right.ip },
      ] as const;
      await pingBothWays(...ends);
      await transferBothWays(...ends, TRANSFER_MIB);
    };
    await traffic();

    await two.child.kill();
    await net.connection('off', 60_000);
    await one.carrier(true);
    two = await start(right);
    await two.ready(BOOT_MS);
    await net.connection('on', 60_000, 3);
    await traffic();

    const said = await net.stop();
    expect(said).not.toMatch(/"event":"error"/);
    const last = said.split('\n').filter((line) => line.includes('"event":"stats"'));
    for (const address of [a, b]) {
      const stats = JSON.parse(last.findLast((line) => line.includes(`"device":"${address}"`))!);
      expect(stats.queues[0].send.packets).toBeGreaterThan(100);
    }
    await one.carrier(false);
    await two.carrier(false);
  });
});
