/** Up to the point where the kernel's VFIO would be opened; what follows needs a device (test/vm/receiver.test.ts). */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VfioOpener } from '../../../src/vfio/opener.js';
import { rejectionOf } from '../sys/helpers.js';
import { FakeBus } from './fake-sysfs.js';

const A = '0000:01:00.0';

let bus: FakeBus;
beforeEach(() => {
  bus = new FakeBus();
});
afterEach(() => bus[Symbol.dispose]());

describe('opening a function', () => {
  it('fails at once for a function that is there and not bound', async () => {
    bus.add(A, { group: 2 });
    const opening = new VfioOpener(A, bus).open(new AbortController().signal, () => {});
    expect(await rejectionOf(opening)).toMatchObject({
      scope: 'usage',
      message: expect.stringContaining(`vhost-pci bind ${A}`),
    });
    expect(bus.written).toEqual([]);
  });

  it('waits for one that is not there, tells it once, and gives it to vfio-pci when it comes', async () => {
    const told: string[] = [];
    const abort = new AbortController();
    const opening = new VfioOpener(A, bus).open(abort.signal, (why) => told.push(why));
    const settled = opening.then(
      () => 'open',
      () => 'aborted',
    );
    await expect.poll(() => told).toEqual([`there is no PCI device ${A}`]);
    bus.add(A, { group: 987654 });
    await expect.poll(() => bus.facts(A)?.driver).toBe('vfio-pci');
    // No such group in this machine: it goes on waiting.
    await expect.poll(() => told.length).toBe(2);
    abort.abort();
    expect(await settled).toBe('aborted');
  });

  it('does not take a function from a driver that has got it first', async () => {
    const told: string[] = [];
    const abort = new AbortController();
    const opening = new VfioOpener(A, bus).open(abort.signal, (why) => told.push(why)).catch(() => {});
    await expect.poll(() => told.length).toBe(1);
    bus.add(A, { group: 2, driver: 'virtio-pci' });
    await expect.poll(() => told.at(-1)).toContain('is used by the driver virtio-pci');
    expect(bus.written).toEqual([]);
    abort.abort();
    await opening;
  });
});
