/**
 * Live migration of a stock peer under traffic: every page that the driver writes has to be in the dirty log, so
 * that source and destination have the same memory; and the network has to come back on either side.
 */
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { differingPages } from '../support/memory-file.js';
import { migrationEnd } from '../support/qmp.js';
import { Scope, until } from '../support/scope.js';
import { VmPeer } from '../support/vm-peer.js';

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe('a peer that is migrated while it downloads', () => {
  for (const packed of [false, true]) {
    const rings = packed ? 'packed' : 'split';
    it(`has the same memory on both sides, and its network on the other, with ${rings} rings`, async (context) => {
      const source = await VmPeer.create(context, scope, { guest: { packed } });
      const socket = join(scope.folder(), 'migration');
      const target = await VmPeer.create(context, scope, {
        guest: { packed, extra: ['-incoming', `unix:${socket}`, '-S'] },
      });
      await source.startDevice();
      await target.startDevice();
      const net = source.startNet();
      const before = await source.startGuest();
      await net.connection('on', 60_000);
      await before.ready();
      // Random bytes: a page that is written without being logged differs on the other side.
      const { url } = await source.serve(20);
      await before.ok(`(while :; do wget -q -O /dev/null ${url}; done) >/dev/null 2>&1 &`);
      const targetNet = target.startNet();
      const after = await target.startGuest();
      const sent = net.totals()?.send.bytes ?? 0;
      await net.until('traffic', 60_000, (t) => t.send.bytes > sent + (20 << 20));

      await before.qmp.run('migrate', { uri: `unix:${socket}` });
      expect(await migrationEnd(before.qmp, 120_000)).toBe('completed');
      const pages = differingPages(source.memoryFile, target.memoryFile);
      expect(pages, 'pages that were written without being logged').toEqual([]);

      await after.qmp.run('cont');
      await targetNet.connection('on', 60_000);
      await target.ping(after);
    });
  }

  it('stays where it is when the migration is cancelled, several times', async (context) => {
    const source = await VmPeer.create(context, scope);
    await source.startDevice();
    const net = source.startNet();
    const guest = await source.startGuest();
    await net.connection('on', 60_000);
    await guest.ready();
    await source.ping(guest);
    // Slow enough that it cannot end by itself.
    await guest.qmp.run('migrate-set-parameters', { 'max-bandwidth': 1 << 20 });
    for (let round = 0; round < 3; round++) {
      await guest.qmp.run('migrate', { uri: 'exec:cat >/dev/null' });
      await until('migration runs', 60_000, async () => {
        const { status } = (await guest.qmp.run('query-migrate')) as { status?: string };
        return status === 'active';
      });
      await source.ping(guest);
      await guest.qmp.run('migrate_cancel');
      expect(await migrationEnd(guest.qmp, 60_000)).toBe('cancelled');
      await source.ping(guest);
    }
    await source.transfer(guest, 1);
  });
});
