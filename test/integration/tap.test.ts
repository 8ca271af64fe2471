/** `vhost-pci net --tap` whose interface is taken down or deleted by somebody else. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Netns, netnsAvailable } from '../support/netns.js';
import { checkout, start } from '../support/process.js';
import { Rig } from '../support/rig.js';
import { type Availability, need, Scope } from '../support/scope.js';

const netPeer = join(checkout, 'test/support/net-peer.mjs');

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

function available(): Availability<true> {
  return existsSync('/dev/net/tun') ? netnsAvailable() : { missing: '/dev/net/tun is not there' };
}

it('what a TAP interface refuses is in the statistics', { timeout: 180_000 }, async (context) => {
  need(context, available());
  const netns = await Netns.create(scope);
  const rig = new Rig(scope);
  const file = join(scope.folder(), 'memory');
  await rig.device({ window: { file, mib: 8 } });
  const driver = rig.net(['--tap', 'vp0'], netns);
  start(scope, 'peer', process.execPath, [netPeer, rig.vhostUser, file, String(8 << 20)]);
  await driver.connection('on');
  type Way = { packets: number; drops: number; drop_causes: Record<string, number> };
  const port = (): { queue: number; receive: Way; send: Way } | undefined => {
    const stats = driver.child.events().findLast((e) => e.event === 'stats');
    return (stats?.port as { queue: number; receive: Way; send: Way }[] | undefined)?.[0];
  };
  await driver.child.until('packets on the interface', 10_000, () => (port()?.receive.packets ?? 0) > 0);
  await netns.run(['ip', 'link', 'set', 'vp0', 'down']);
  await driver.child.until('drops', 10_000, () => (port()?.receive.drops ?? 0) > 0);
  const last = await driver.stop();
  const { queue, receive, send } = port()!;
  expect(receive.drop_causes).toEqual({ 'device-error': receive.drops });
  expect(receive.packets + receive.drops).toBe(last.receive.packets);
  expect([queue, send.drops, send.drop_causes]).toEqual([0, 0, {}]);
});

it('the driver ends with status 1, the peer has its link down, and the next driver serves it', {
  timeout: 180_000,
}, async (context) => {
  need(context, available());
  const netns = await Netns.create(scope);
  const rig = new Rig(scope);
  const file = join(scope.folder(), 'memory');
  await rig.device({ window: { file, mib: 8 } });
  const first = rig.net(['--tap', 'vp0'], netns);
  const peer = start(scope, 'peer', process.execPath, [netPeer, rig.vhostUser, file, String(8 << 20)]);
  await first.connection('on');
  await netns.run(['ip', 'link', 'del', 'vp0']);
  expect(await first.child.exited).toEqual({ code: 1, signal: null });
  const [error, ...more] = first.child.events().filter((e) => e.event === 'error');
  expect([error, more]).toMatchObject([
    { code: 'EPORT', message: expect.stringMatching(/^the TAP .* vp0 was deleted/) },
    [],
  ]);
  const events = first.child.events();
  expect(events.at(-1)?.event).toBe('stats');
  expect(events.findLast((e) => e.event === 'connection')?.state).toBe('off');
  expect(first.child.stderr.at(-1)).toMatch(
    /^vhost-pci: the TAP interface vp0 was deleted: start the driver again/,
  );
  await peer.event('its link goes down', 10_000, (e) => e.event === 'disconnected');
  const second = rig.net(['--tap', 'vp0'], netns);
  await second.connection('on');
  await second.stop();
});
