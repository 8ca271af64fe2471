/**
 * src/vfio by itself, in a receiving VM: what a vhost-pci device does not need (INTx) on a device of QEMU's that has it, and DMA
 * as the IOMMU lets it through.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Guest } from '../support/qemu.js';
import { guestVhostPci, receiverProgram, startReceiver } from '../support/receiver-guest.js';
import { need, Scope } from '../support/scope.js';

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
  it('has INTx that is masked until it is served, MSI, and DMA while it is mapped', async (context) => {
    const program = need(context, await receiverProgram());
    const receiver = await startReceiver(scope, program, {
      vfioUser: [],
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
  });
});
