/**
 * Adopt mode: the device process itself plugs its device into a running receiving VM when a peer has given its memory, and
 * takes it out when the peer has gone. The receiving VM is 10.0.0.1, the peers 10.0.0.2; both are stock.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { pingBothWays } from '../support/guest-traffic.js';
import { Guest } from '../support/qemu.js';
import { GuestDriver, receiverProgram, startReceiver } from '../support/receiver-guest.js';
import { Rig } from '../support/rig.js';
import { need, Scope, until } from '../support/scope.js';

const PEER_MIB = 256;
const RECEIVER_IP = '10.0.0.1';
const PEER_IP = '10.0.0.2';
const BOOT_MS = 120_000;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe('a device process that has the QMP socket of a running receiving VM', () => {
  it('gives the VM a device for every peer that comes, and takes it away when the peer is killed, and after its own', async (context) => {
    const program = need(context, await receiverProgram());
    const rig = new Rig(scope);
    const qmp = join(scope.folder(), 'hotplug');
    const receiver = await startReceiver(scope, program, {
      vfioUser: [],
      extra: [
        '-device',
        'pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1,pref64-reserve=1G',
        '-cpu',
        'max,vendor=GenuineIntel',
        // A socket of its own: the test has the other.
        '-qmp',
        `unix:${qmp},server=on,wait=off`,
      ],
    });
    let device = await rig.device({ receiver: { qmp, bus: 'port0' } });
    await receiver.ready(BOOT_MS);
    const net = await GuestDriver.start(receiver, `01:00.0 --tap vp0 --address ${RECEIVER_IP}/24`);
    scope.onFailure(() => net.last);
    await net.says(/waiting for 0000:01:00.0: there is no PCI device/, BOOT_MS);

    for (let round = 1; round <= 2; round++) {
      const peer = await Guest.start(scope, program.peer, {
        memory: { kind: 'adopt', mib: PEER_MIB },
        vhostUser: rig.vhostUser,
        ip: `${PEER_IP}/24`,
      });
      await net.connection('on', BOOT_MS, round);
      await peer.ready(BOOT_MS);
      await pingBothWays({ guest: peer, ip: PEER_IP }, { guest: receiver, ip: RECEIVER_IP });
      expect(await receiver.ok('grep -o "vfio-msi[^ ]*" /proc/interrupts')).toMatch(/^vfio-msi\[/);

      if (round === 1) {
        // The same memory, so the same device: nothing is unplugged.
        const seen = receiver.qmp.events.length;
        await peer.reset(BOOT_MS);
        await peer.ok(`ping -c 3 -w 30 ${RECEIVER_IP}`);
        expect(receiver.qmp.events.slice(seen).map((e) => e.event)).not.toContain('DEVICE_DELETED');
      }

      if (round === 2) {
        // What a killed process leaves in the VM is unplugged by the next one, and replaced.
        await device.kill();
        await net.connection('off', 60_000, 3);
        device = await rig.device({ receiver: { qmp, bus: 'port0' } });
        await net.connection('on', BOOT_MS, 4);
        await peer.ok(`ping -c 3 -w 30 ${RECEIVER_IP}`);
      }

      const seen = receiver.qmp.events.length;
      await peer.child.kill();
      const deleted = await receiver.qmp.event('DEVICE_DELETED', 60_000, seen);
      expect(deleted.data).toMatchObject({ device: expect.stringMatching(/^vhost-pci-/) });
      await net.connection('off', 60_000, round === 1 ? 2 : 4);
      expect(await net.running()).toBe(true);
      expect(await receiver.ok('ls /sys/bus/pci/devices')).not.toContain('0000:01:00.0');
      await until('a peer is admitted', 60_000, () => existsSync(rig.vhostUser));
    }
    await net.stop();
    const exit = await device.stop('SIGTERM');
    expect(exit.code).toBe(0);
  });
});
