/** How the commands and a DPDK peer stop, start again, and go away, in an orderly way and by kill -9. */

import { closeSync, existsSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../src/sys/native.js';
import { dpdkPeer, SECONDS } from '../support/dpdk-peer.js';
import { fdCount } from '../support/process.js';
import { Rig } from '../support/rig.js';
import { need, Scope, until } from '../support/scope.js';
import { Testpmd, testpmd } from '../support/testpmd.js';

const LIMIT = { timeout: 240 * SECONDS };
const SOME = 5_000;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe.each([false, true])('a DPDK peer (packed rings: %s)', (packed) => {
  it('goes on after its forwarding and its port were stopped and started', LIMIT, async (context) => {
    const { rig, peer } = await dpdkPeer(context, scope, { mode: 'txonly', frame: 64, packed });
    const net = rig.net(['--sink', '--cpu', '0']);
    await net.connection('on');
    for (let round = 0; round < 3; round++) {
      const before = (await peer.stats()).txPackets;
      await peer.forward();
      await peer.until('more packets', 20 * SECONDS, (s) => s.txPackets > before + SOME);
      await peer.stop();
      await peer.command('port stop 0');
      await peer.command('port start 0');
    }
    const { txPackets } = await peer.stats();
    await net.until('all of them', 10 * SECONDS, (t) => t.receive.packets >= txPackets);
    expect((await net.stop()).receive).toEqual({ packets: txPackets, bytes: txPackets * 64, drops: 0 });
  });

  it('may negotiate other features, which stops and starts its rings', LIMIT, async (context) => {
    const { rig, peer } = await dpdkPeer(context, scope, { mode: 'txonly', frame: 64, packed });
    const net = rig.net(['--sink', '--cpu', '0']);
    let before = (await net.connection('on')).features;
    for (const receiveChecksum of ['on', 'off']) {
      const mark = net.mark();
      await peer.command('port stop 0');
      await peer.command(`port config 0 rx_offload tcp_cksum ${receiveChecksum}`);
      await peer.command('port start 0');
      await net.connection('off', 20 * SECONDS, mark);
      const { features } = await net.connection('on', 20 * SECONDS, mark);
      expect(features).not.toBe(before);
      before = features;
      const taken = net.totals()?.receive.packets ?? 0;
      await peer.forward();
      await net.until('packets', 20 * SECONDS, (t) => t.receive.packets > taken + SOME);
      await peer.stop();
    }
    expect((await net.stop()).receive.drops).toBe(0);
  });

  it('may be killed and started again while the driver stays', LIMIT, async (context) => {
    const { rig, device, peer, restart } = await dpdkPeer(context, scope, {
      mode: 'txonly',
      frame: 64,
      packed,
    });
    const net = rig.net(['--sink', '--cpu', '0']);
    let running = peer;
    let mark = 0;
    let fds = Number.POSITIVE_INFINITY;
    for (let round = 0; round < 4; round++) {
      await net.connection('on', 20 * SECONDS, mark);
      // What was opened to make the link may be closed a little after the driver has told of it.
      await until('no descriptor is left', 20 * SECONDS, () => fdCount(device.pid) <= fds);
      if (round > 0) fds = Math.min(fds, fdCount(device.pid));
      const before = net.totals()?.receive.packets ?? 0;
      await running.forward();
      await net.until('packets', 20 * SECONDS, (t) => t.receive.packets > before + SOME);
      mark = net.mark();
      await running.child.kill();
      await net.connection('off', 20 * SECONDS, mark);
      running = await restart();
    }
  });

  it('may come back after the driver was killed', LIMIT, async (context) => {
    const { rig, device, peer, restart } = await dpdkPeer(context, scope, {
      mode: 'txonly',
      frame: 64,
      packed,
    });
    const first = rig.net(['--sink', '--cpu', '0']);
    await first.connection('on');
    await peer.forward();
    await first.until('packets', 20 * SECONDS, (t) => t.receive.packets > SOME);
    await first.child.kill();
    // The device has to let the peer go (protocol.md, P5) and refuses peers until there is a driver; virtio_user does
    // not connect anew by itself. The peer that comes next has other memory, which is a device of its own.
    await peer.link(false);
    await peer.child.kill();
    const second = rig.net(['--sink', '--cpu', '0']);
    await device.until('it admits peers', 20 * SECONDS, () => existsSync(rig.vhostUser));
    const again = await restart();
    await second.connection('on');
    await again.forward();
    await second.until('packets', 20 * SECONDS, (t) => t.receive.packets > SOME);
    expect(device.exit).toBeUndefined();
  });

  it(
    'has its link taken down and its rings given back when the driver ends in order',
    LIMIT,
    async (context) => {
      const { rig, peer } = await dpdkPeer(context, scope, { mode: 'txonly', frame: 64, packed });
      const net = rig.net(['--sink', '--cpu', '0']);
      await net.connection('on');
      await peer.forward();
      await net.until('packets', 20 * SECONDS, (t) => t.receive.packets > SOME);
      await net.stop();
      await peer.link(false);
      await peer.stop();
      expect(peer.child.exit).toBeUndefined();
    },
  );

  it('as a listening front-end takes one device process after the other', LIMIT, async (context) => {
    const program = need(context, testpmd());
    const rig = new Rig(scope);
    const peer = await Testpmd.start(scope, program, {
      mode: 'txonly',
      frame: 64,
      path: rig.vhostUser,
      server: true,
      packed,
    });
    for (let round = 0; round < 2; round++) {
      const fd = await until('testpmd listens', 20 * SECONDS, () => {
        try {
          return native.unixConnect(rig.vhostUser);
        } catch {
          return undefined;
        }
      });
      const device = await rig.device({ vhostUserFd: fd });
      closeSync(fd);
      if (round === 0) await peer.ready();
      await rig.served(device);
      const net = rig.net(['--sink', '--cpu', '0']);
      await net.connection('on');
      await peer.forward();
      await net.until('packets', 20 * SECONDS, (t) => t.receive.packets > SOME);
      await peer.stop();
      await device.kill();
      await net.child.stop('SIGTERM');
    }
  });
});
