import { describe, expect, it } from 'vitest';
import type { PciHandle } from '../../../src/pci/handle.js';
import { bits } from '../../../src/util/flags.js';
import { FEATURE } from '../../../src/virtio/features.js';
import { VirtioPciDriver } from '../../../src/virtio/pci-driver.js';
import { CFG_TYPE, CommonCfg, NO_VECTOR } from '../../../src/virtio/pci-layout.js';
import { STATUS } from '../../../src/virtio/status.js';
import { LAYOUT, makeRig, OFFERED, type Rig, STRUCTURES } from './rig.js';

const RING = { size: 32, desc: 0x1_0000_0000n, driver: 0x1_0000_1000n, device: 0x1_0000_2000n };
const REACHED = STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FEATURES_OK;
const CHOICE = { wanted: bits(0, 1), required: bits(FEATURE.ACCESS_PLATFORM) };

async function negotiated(rig: Rig): Promise<VirtioPciDriver> {
  const driver = await VirtioPciDriver.open(rig.handle);
  await driver.negotiate(CHOICE);
  rig.events.length = 0;
  return driver;
}

/** A handle that answers some register reads by itself. */
function lying(rig: Rig, answer: (offset: number, length: number) => Buffer | undefined): PciHandle {
  return {
    ...rig.handle,
    read: async (region, offset, length) =>
      (region === 0 ? answer(offset, length) : undefined) ?? rig.handle.read(region, offset, length),
  };
}

const at = (field: keyof typeof CommonCfg.offsets): number => LAYOUT.common.offset + CommonCfg.offsets[field];

describe('virtio-pci driver, initialization', () => {
  it('changes nothing when it only looks', async () => {
    const rig = makeRig();
    const driver = await VirtioPciDriver.open(rig.handle);
    expect(driver.queues).toBe(4);
    expect(rig.events).toEqual([]);
    expect(rig.device.status).toBe(0);
  });

  it('resets, and goes step by step to FEATURES_OK with what both sides know', async () => {
    const rig = makeRig();
    const driver = await VirtioPciDriver.open(rig.handle);
    const accepted = await driver.negotiate(CHOICE);
    expect(accepted).toBe(bits(0, FEATURE.VERSION_1, FEATURE.ACCESS_PLATFORM));
    expect(driver.features).toBe(accepted);
    expect(rig.device.features).toBe(accepted);
    expect(rig.device.status).toBe(REACHED);
    expect(rig.events).toEqual(['reset']);
    expect(Object.values(rig.device.refusals)).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('sets FAILED and says what is missing when a required feature is not offered', async () => {
    const rig = makeRig();
    const driver = await VirtioPciDriver.open(rig.handle);
    await expect(
      driver.negotiate({ wanted: 0n, required: bits(24), names: { PEER_CONNECTION: 24 } }),
    ).rejects.toMatchObject({ code: 'EFEATURES', message: 'model does not offer PEER_CONNECTION' });
    expect(rig.device.status & STATUS.FAILED).toBe(STATUS.FAILED);
  });

  it('sets FAILED when the device does not keep FEATURES_OK', async () => {
    const rig = makeRig({ checkFeatures: () => 'no' });
    const driver = await VirtioPciDriver.open(rig.handle);
    await expect(driver.negotiate(CHOICE)).rejects.toMatchObject({
      code: 'ESTATUS',
      scope: 'device',
      message: 'model refuses FEATURES_OK: its status is ACKNOWLEDGE, DRIVER',
    });
    expect(rig.device.status & STATUS.FAILED).toBe(STATUS.FAILED);
    expect(driver.features).toBe(0n);
  });

  it('takes a device that has failed up again', async () => {
    const rig = makeRig();
    const driver = await VirtioPciDriver.open(rig.handle);
    await driver.fail();
    expect(rig.device.status).toBe(STATUS.FAILED);
    await driver.negotiate(CHOICE);
    await driver.driverOk();
    expect(rig.device.status).toBe(REACHED | STATUS.DRIVER_OK);
  });

  it('gives up on a device that is never reset', async () => {
    const rig = makeRig();
    const handle = lying(rig, (offset) => (offset === at('device_status') ? Buffer.of(0xff) : undefined));
    const driver = await VirtioPciDriver.open(handle);
    await expect(driver.reset()).rejects.toMatchObject({ code: 'ERESET' });
  });

  it('notices that the device needs a reset', async () => {
    const rig = makeRig();
    const driver = await negotiated(rig);
    expect(await driver.needsReset()).toBe(false);
    rig.device.needsReset();
    expect(await driver.needsReset()).toBe(true);
    await expect(driver.driverOk()).rejects.toMatchObject({
      code: 'ESTATUS',
      message: expect.stringContaining('NEEDS_RESET'),
    });
  });

  it('tells the first error when the device is gone', async () => {
    const rig = makeRig();
    const driver = await VirtioPciDriver.open(rig.handle);
    rig.handle.write = async () => {
      throw new Error('the server has ended');
    };
    await expect(driver.negotiate(CHOICE)).rejects.toThrow('the server has ended');
  });
});

describe('virtio-pci driver, queues', () => {
  it('sets a queue up with its vector and enables it', async () => {
    const rig = makeRig();
    const driver = await negotiated(rig);
    await driver.setUpQueue(1, RING, 2);
    await driver.driverOk();
    expect(rig.events).toEqual(['queue 1: 32 0x100000000 0x100001000 0x100002000', 'driver ok 0x300000001']);
    expect(rig.device.queueVector(1)).toBe(2);
    expect(Object.values(rig.device.refusals)).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('does not mix the steps of queues that are set up at once', async () => {
    const rig = makeRig();
    const driver = await negotiated(rig);
    const other = { ...RING, desc: 0x20000n, driver: 0x21000n, device: 0x22000n };
    await Promise.all([
      driver.setUpQueue(0, RING, 0),
      driver.setUpQueue(1, other, 1),
      driver.setQueueVector(2, 2),
      driver.queueSize(3),
    ]);
    expect(rig.events).toEqual([
      'queue 0: 32 0x100000000 0x100001000 0x100002000',
      'queue 1: 32 0x20000 0x21000 0x22000',
    ]);
    expect([0, 1, 2, 3].map((q) => rig.device.queueVector(q))).toEqual([0, 1, 2, undefined]);
  });

  it('reads the largest size of a queue', async () => {
    const driver = await negotiated(makeRig());
    expect(await driver.queueSize(0)).toBe(64);
    expect(await driver.queueSize(2)).toBe(0);
  });

  it.each([
    ['larger than the device allows', 0, { ...RING, size: 128 }, 'EQUEUE', 'has at most 64 entries, not 128'],
    [
      'of a size that the device does not take',
      0,
      { ...RING, size: 24 },
      'EQUEUE',
      'does not take 24 entries',
    ],
    ['that is not there', 9, RING, 'EQUEUE', 'has 4 queues, no queue 9'],
    ['that has no ring', 2, RING, 'EQUEUE', 'has at most 0 entries'],
    ['with unaligned rings', 0, { ...RING, desc: 8n }, 'EQUEUE', 'cannot be enabled'],
  ])('fails on a queue %s', async (_what, queue, ring, code, message) => {
    const rig = makeRig();
    const driver = await negotiated(rig);
    await expect(driver.setUpQueue(queue, ring)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    });
    expect(rig.device.status & STATUS.FAILED).toBe(STATUS.FAILED);
    expect(rig.events).toEqual([]);
  });

  it('fails when the device does not take the vector of a queue', async () => {
    const driver = await negotiated(makeRig());
    await expect(driver.setUpQueue(0, RING, 7)).rejects.toMatchObject({ code: 'EVECTOR' });
  });

  it('tells whether a vector was taken', async () => {
    const rig = makeRig();
    const driver = await negotiated(rig);
    expect(await driver.setQueueVector(2, 1)).toBe(true);
    expect(await driver.setQueueVector(3, 3)).toBe(false);
    expect(await driver.setQueueVector(3, NO_VECTOR)).toBe(true);
    expect(await driver.setConfigVector(0)).toBe(true);
    expect(await driver.setConfigVector(8)).toBe(false);
    expect(rig.device.queueVector(2)).toBe(1);
  });

  it('notifies a queue at its address', async () => {
    const rig = makeRig();
    const driver = await negotiated(rig);
    await driver.setUpQueue(1, RING);
    await driver.driverOk();
    rig.events.length = 0;
    await driver.notify(1);
    expect(rig.events).toEqual(['notify 1']);
  });

  it('finds the register that notifies a queue', async () => {
    const driver = await negotiated(makeRig());
    const register = LAYOUT.notify.offset + 4 * 3;
    expect(await driver.notifyTarget(3)).toEqual({ fd: register * 10 + 3 });
  });

  it('refuses to notify outside the structure', async () => {
    const rig = makeRig();
    const handle = lying(rig, (offset) =>
      offset === at('queue_notify_off') ? Buffer.from([0xff, 0xff]) : undefined,
    );
    const driver = await VirtioPciDriver.open(handle);
    await driver.negotiate(CHOICE);
    await expect(driver.notifyTarget(0)).rejects.toMatchObject({ code: 'EQUEUE' });
    await expect(driver.notify(0)).rejects.toMatchObject({ code: 'EQUEUE' });
  });
});

describe('virtio-pci driver, configuration and interrupts', () => {
  it('reads the configuration again when it changes between two reads', async () => {
    const config = Buffer.from([1, 1]);
    const rig = makeRig({ deviceConfig: () => config });
    let reads = 0;
    const handle = lying(rig, (offset) => {
      // The change comes between the two bytes of the first attempt.
      if (offset === LAYOUT.device.offset && reads++ === 0) {
        const torn = Buffer.from([1, 2]);
        config.fill(2);
        rig.device.raiseConfig();
        rig.device.read(LAYOUT.device.offset, 1);
        return torn;
      }
      return undefined;
    });
    const driver = await VirtioPciDriver.open(handle);
    expect(await driver.readConfig(0, 2)).toEqual(Buffer.from([2, 2]));
    expect(reads).toBe(2);
  });

  it('gives up on a configuration that never stands still', async () => {
    const rig = makeRig();
    let generation = 0;
    const handle = lying(rig, (offset) =>
      offset === at('config_generation') ? Buffer.of(++generation & 0xff) : undefined,
    );
    const driver = await VirtioPciDriver.open(handle);
    await expect(driver.readConfig(0, 2)).rejects.toMatchObject({ code: 'ECONFIG' });
  });

  it('refuses to read configuration that is not there', async () => {
    const driver = await VirtioPciDriver.open(makeRig().handle);
    await expect(driver.readConfig(0xfff, 2)).rejects.toMatchObject({ code: 'ECONFIG' });
    const bare = STRUCTURES.filter((s) => s.cfgType !== CFG_TYPE.DEVICE);
    await expect(
      (await VirtioPciDriver.open(makeRig({}, bare).handle)).readConfig(0, 1),
    ).rejects.toMatchObject({
      code: 'ECONFIG',
    });
  });

  it('reads the ISR status, which clears it', async () => {
    const rig = makeRig({ vectors: 0 });
    const driver = await negotiated(rig);
    await driver.driverOk();
    rig.device.raiseConfig();
    expect(await driver.readIsr()).toBe(2);
    expect(await driver.readIsr()).toBe(0);
  });

  it('accepts what is offered only', async () => {
    const rig = makeRig();
    const driver = await VirtioPciDriver.open(rig.handle);
    expect(await driver.negotiate({ wanted: 0xffff_ffff_ffff_ffffn, required: 0n })).toBe(OFFERED);
  });
});
