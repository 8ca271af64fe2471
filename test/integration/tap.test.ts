/** `vhost-pci net --tap` whose interface is deleted by somebody else. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Netns, netnsAvailable } from '../support/netns.js';
import { checkout, start } from '../support/process.js';
import { Rig } from '../support/rig.js';
import { type Availability, need, Scope } from '../support/scope.js';

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

function available(): Availability<true> {
  return existsSync('/dev/net/tun') ? netnsAvailable() : { missing: '/dev/net/tun is not there' };
}

it('the driver ends with status 1, the peer has its link down, and the next driver serves it', {
  timeout: 180_000,
}, async (context) => {
  need(context, available());
  const netns = await Netns.create(scope);
  const rig = new Rig(scope);
  const file = join(scope.folder(), 'memory');
  await rig.device({ window: { file, mib: 8 } });
  const first = rig.net(['--tap', 'vp0'], netns);
  const program = join(checkout, 'test/support/net-peer.mjs');
  const peer = start(scope, 'peer', process.execPath, [program, rig.vhostUser, file, String(8 << 20)]);
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
