/**
 * src/vfio by itself, in a receiving VM: what a vhost-pci device does not need (INTx) on a device of QEMU's that has it, DMA
 * as the IOMMU lets it through, and the driver as a user without rights.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { NetPeer } from '../../src/virtio-net/peer.js';
import { Traffic } from '../../src/virtio-net/traffic.js';
import type { Guest } from '../support/qemu.js';
import { guestVhostPci, receiverAddress, receiverProgram, startReceiver } from '../support/receiver-guest.js';
import { Rig } from '../support/rig.js';
import { need, Scope, sleep, until } from '../support/scope.js';

const BOOT_MS = 120_000;
const RUN_MS = 100_000;
const EDU = '0000:00:08.0';

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

/** Puts a script of test/support/guest into the guest; returns its path there. */
async function install(guest: Guest, name: string): Promise<string> {
  const text = readFileSync(fileURLToPath(new URL(`../support/guest/${name}`, import.meta.url)));
  await guest.ok(`echo ${text.toString('base64')} | base64 -d >/tmp/${name}`);
  return `/tmp/${name}`;
}

describe('kernel VFIO', () => {
  it('has INTx that is masked until it is served, MSI, DMA while it is mapped, and reset', async (context) => {
    const program = need(context, await receiverProgram());
    const rig = new Rig(scope);
    await rig.device({ window: { file: join(scope.folder('/dev/shm'), 'peer'), mib: 64 } });
    const receiver = await startReceiver(scope, program, {
      vfioUser: [rig.vfioUser],
      extra: ['-device', 'edu,addr=08'],
    });
    await receiver.ready(BOOT_MS);
    expect((await guestVhostPci(receiver, `bind ${EDU}`)).status).toBe(0);
    const script = await install(receiver, 'edu.mjs');

    const { output } = await receiver.run(`node ${script} ${EDU} 2>&1`, RUN_MS);
    expect(output).toMatch(/^\{.*\}$/m);
    // Each interrupt is told once, and none after it was turned off.
    const interrupts = { count: 1, served: [1, 2, 3, 4, 5], whileOn: 5, whileOff: 0 };
    expect(JSON.parse(/^\{.*\}$/m.exec(output)![0])).toEqual({
      region: { size: 1 << 20, areas: [{ offset: 0, size: 1 << 20 }] },
      id: 0xed,
      msix: 0,
      intx: interrupts,
      msi: interrupts,
      intxAgain: interrupts,
      dma: { back: true, untouched: true },
    });

    // `edu` cannot be reset; a vhost-pci function can.
    const address = receiverAddress();
    expect((await guestVhostPci(receiver, `bind ${address}`)).status).toBe(0);
    const reset = await receiver.run(`node ${await install(receiver, 'reset.mjs')} ${address} 2>&1`, RUN_MS);
    expect(reset).toEqual({ output: '[1,0]', status: 0 });
  });
});

describe('a driver without rights', () => {
  const UID = 1000;
  const STRANGER = 1001;

  it('is told what it lacks, and works when root has given it the IOMMU group', async (context) => {
    const program = need(context, await receiverProgram());
    const rig = new Rig(scope);
    const window = { file: join(scope.folder('/dev/shm'), 'peer'), mib: 64 };
    await rig.device({ window });
    const receiver = await startReceiver(scope, program, { vfioUser: [rig.vfioUser] });
    await receiver.ready(BOOT_MS);
    const address = receiverAddress();
    const script = await install(receiver, 'as-user.mjs');
    const asUser = (uid: number, args: string, before = ''): Promise<{ output: string; status: number }> =>
      receiver.run(
        `${before} node ${script} ${uid} ${args} >/tmp/out 2>&1; status=$?; cat /tmp/out; exit $status`,
        60_000,
      );

    const refused = await asUser(UID, `bind ${address}`);
    expect(refused).toMatchObject({
      status: 2,
      output: expect.stringMatching(/driver_override.*run as root/),
    });
    await guestVhostPci(receiver, `bind ${address}`);
    await receiver.ok('mv /dev/vfio/vfio /dev/vfio/away');
    const bare = await guestVhostPci(receiver, `net ${address} --sink`);
    expect(bare).toMatchObject({ status: 2, output: expect.stringContaining('/dev/vfio/vfio is not there') });
    await receiver.ok('mv /dev/vfio/away /dev/vfio/vfio');
    const locked = await asUser(UID, `net ${address} --sink`);
    expect(locked).toMatchObject({
      status: 2,
      output: expect.stringMatching(/no permission for \/dev\/vfio\/\d+: .*bind --uid/),
    });

    const notMine = await asUser(UID, `bind --uid ${UID} ${address}`);
    expect(notMine).toMatchObject({
      status: 2,
      output: expect.stringMatching(/\/dev\/vfio\/\d+: run as root/),
    });

    const given = await guestVhostPci(receiver, `bind --uid ${UID} ${address}`);
    expect(given).toEqual({ output: `${address} was already bound to vfio-pci`, status: 0 });
    expect((await asUser(STRANGER, `net ${address} --sink`)).output).toContain(
      'no permission for /dev/vfio/',
    );
    const small = await asUser(UID, `net ${address} --sink`, 'ulimit -l 64;');
    expect(small).toMatchObject({
      status: 2,
      output: expect.stringMatching(
        /needs 2048 KiB of locked memory.* may lock 64 KiB.*"ulimit -l 2048", LimitMEMLOCK=2048K/,
      ),
    });

    // As little as the message asks for is enough.
    await receiver.ok(
      `ulimit -l 2048; node ${script} ${UID} net ${address} --echo --json --log-level debug >/tmp/net 2>&1 </dev/null & echo $! >/tmp/pid`,
    );
    let last = '';
    // Each question costs the guest processes, and it has one CPU.
    const said = async (): Promise<string> => {
      await sleep(500);
      last = (await receiver.run('cat /tmp/net; kill -0 $(cat /tmp/pid) || echo ended')).output;
      return last;
    };
    scope.onFailure(() => last);
    const peer = await NetPeer.connect({
      socketPath: rig.vhostUser,
      memoryFile: window.file,
      memoryBytes: window.mib << 20,
    });
    scope.defer(() => peer[Symbol.asyncDispose]());
    await peer.start();
    await until('connection on', 90_000, async () => /"state":"on"/.test(await said()));
    await using traffic = await Traffic.start(peer, { bytes: 512, count: 1000 });
    await until('every frame comes back', 60_000, () => traffic.totals().packets === 1000);
    expect(traffic.totals()).toMatchObject({ sent: 1000, lost: 0, altered: 0, foreign: 0 });
    await receiver.ok('kill $(cat /tmp/pid)');
    await until('it ends in order', 60_000, async () => /"state":"off"/.test(await said()));
    expect(await said()).not.toMatch(/"event":"error"/);
  });
});
