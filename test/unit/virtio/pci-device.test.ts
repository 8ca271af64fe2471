import { beforeEach, describe, expect, it } from 'vitest';
import { bits } from '../../../src/util/flags.js';
import { FEATURE } from '../../../src/virtio/features.js';
import { CommonCfg, NO_VECTOR } from '../../../src/virtio/pci-layout.js';
import { STATUS } from '../../../src/virtio/status.js';
import { ACK_DRIVER, Bench, FEATURES_OK, LIVE } from './registers.js';
import { LAYOUT, OFFERED } from './rig.js';

let t: Bench;

beforeEach(() => {
  t = new Bench();
});

describe('virtio-pci registers, feature negotiation', () => {
  it('shows the offer in windows of 32 bits, and 0 above 63', () => {
    for (const [select, shown] of [
      [0, 0x0040_0001],
      [1, 0x3],
      [2, 0],
      [0xffff_ffff, 0],
    ] as const) {
      t.set('device_feature_select', select);
      expect(t.common).toMatchObject({ device_feature_select: select, device_feature: shown });
    }
  });

  it('agrees to a subset of the offer', () => {
    t.negotiate(bits(0, FEATURE.VERSION_1));
    expect(t.common.device_status).toBe(FEATURES_OK);
    expect(t.device.features).toBe(bits(0, FEATURE.VERSION_1));
  });

  it.each([
    ['VERSION_1 is missing', bits(0)],
    ['a feature was not offered', bits(1, FEATURE.VERSION_1)],
    ['a feature above 31 was not offered', bits(FEATURE.VERSION_1, FEATURE.PACKED)],
  ])('does not set FEATURES_OK when %s', (_what, mask) => {
    t.negotiate(mask);
    expect(t.common.device_status).toBe(ACK_DRIVER);
    expect(t.device.features).toBe(0n);
    expect(t.device.refusals.features).toBe(1);
  });

  it('lets the driver try again with fewer features', () => {
    t.negotiate(bits(1, FEATURE.VERSION_1));
    t.acceptFeatures(bits(FEATURE.VERSION_1));
    t.set('device_status', FEATURES_OK);
    expect(t.common.device_status).toBe(FEATURES_OK);
  });

  it('asks the device type, too', () => {
    t = new Bench({ checkFeatures: (mask) => (mask & 1n ? 'not today' : undefined) });
    t.negotiate(bits(0, FEATURE.VERSION_1));
    expect(t.device.status).toBe(ACK_DRIVER);
    t.acceptFeatures(bits(FEATURE.VERSION_1));
    t.set('device_status', FEATURES_OK);
    expect(t.device.status).toBe(FEATURES_OK);
  });

  it('ignores features that come after FEATURES_OK', () => {
    t.negotiate(bits(FEATURE.VERSION_1));
    t.acceptFeatures(OFFERED);
    expect(t.device.features).toBe(bits(FEATURE.VERSION_1));
    expect(t.device.refusals.features).toBe(2);
  });

  it('ignores features above 63, and shows 0 there', () => {
    t.set('driver_feature_select', 2);
    t.set('driver_feature', 5);
    expect(t.common.driver_feature).toBe(0);
    expect(t.device.refusals.features).toBe(1);
  });

  it('does not offer what the registers cannot do', () => {
    expect(() => new Bench({ features: bits(FEATURE.VERSION_1, FEATURE.NOTIFICATION_DATA) })).toThrow(
      expect.objectContaining({ scope: 'bug' }),
    );
  });
});

describe('virtio-pci registers, status', () => {
  it('tells of DRIVER_OK with the features, once', () => {
    t.negotiate();
    t.set('device_status', LIVE);
    t.set('device_status', LIVE);
    expect(t.events).toEqual([`driver ok 0x${OFFERED.toString(16)}`]);
  });

  it('ignores a step out of order', () => {
    t.set('device_status', LIVE);
    expect(t.common.device_status).toBe(0);
    t.set('device_status', STATUS.ACKNOWLEDGE);
    t.set('device_status', STATUS.ACKNOWLEDGE | STATUS.DRIVER_OK);
    expect(t.common.device_status).toBe(STATUS.ACKNOWLEDGE);
    expect(t.device.refusals.status).toBe(2);
    expect(t.events).toEqual([]);
  });

  it('forgets everything when 0 is written', () => {
    t.live();
    t.set('queue_msix_vector', 1);
    t.set('config_msix_vector', 2);
    t.set('device_status', 0);
    expect(t.events).toEqual(['reset']);
    expect(t.device.features).toBe(0n);
    expect(t.device.queueVector(0)).toBeUndefined();
    expect(t.common).toMatchObject({
      device_status: 0,
      driver_feature: 0,
      config_msix_vector: NO_VECTOR,
      queue_select: 0,
      queue_size: 64,
      queue_msix_vector: NO_VECTOR,
      queue_enable: 0,
      queue_desc: 0n,
      queue_driver: 0n,
      queue_device: 0n,
    });
  });

  it('can be taken up again after a reset', () => {
    t.live();
    t.set('device_status', 0);
    t.live();
    t.notify(LAYOUT.notify.offset, 0);
    expect(t.events).toEqual(['notify 0']);
  });

  it('shows NEEDS_RESET until the reset, and signals it to a driver that is there', () => {
    t.live();
    t.set('config_msix_vector', 2);
    t.device.needsReset();
    t.device.needsReset();
    expect(t.events).toEqual(['interrupt 2']);
    expect(t.common.device_status).toBe(LIVE | STATUS.NEEDS_RESET);
    t.set('device_status', LIVE | STATUS.FAILED);
    expect(t.common.device_status).toBe(LIVE | STATUS.NEEDS_RESET | STATUS.FAILED);
    t.set('device_status', 0);
    expect(t.common.device_status).toBe(0);
  });
});

describe('virtio-pci registers, queues', () => {
  it('tells of a queue that was set up, with its addresses', () => {
    t.negotiate();
    t.set('queue_select', 1);
    t.set('queue_size', 16);
    t.setUpQueue(1);
    expect(t.events).toEqual(['queue 1: 16 0x20000 0x21000 0x22000']);
    expect(t.common).toMatchObject({
      num_queues: 4,
      queue_select: 1,
      queue_size: 16,
      queue_enable: 1,
      queue_notify_off: 1,
      queue_desc: 0x20000n,
    });
  });

  it('takes the addresses in halves', () => {
    t.negotiate();
    const at = LAYOUT.common.offset + CommonCfg.offsets.queue_device;
    t.device.write(at + 4, Buffer.from([1, 0, 0, 0]));
    t.device.write(at, Buffer.from([0, 0x10, 0, 0]));
    expect(t.common.queue_device).toBe(0x1_0000_1000n);
  });

  it('does not enable a queue before its addresses', () => {
    t.negotiate();
    t.set('queue_enable', 1);
    expect(t.common.queue_enable).toBe(0);
    expect(t.events).toEqual([]);
    expect(t.device.refusals.queue).toBe(1);
  });

  it('does not enable a queue before FEATURES_OK', () => {
    t.setUpQueue(0);
    expect(t.common.queue_enable).toBe(0);
    expect(t.device.refusals.queue).toBe(1);
  });

  it('keeps an enabled queue as it is, and enabled', () => {
    t.live();
    t.set('queue_size', 8);
    t.set('queue_desc', 0);
    t.set('queue_enable', 0);
    t.set('queue_enable', 1);
    expect(t.common).toMatchObject({ queue_size: 64, queue_desc: 0x10000n, queue_enable: 1 });
    expect(t.events).toEqual([]);
    expect(t.device.refusals.queue).toBe(4);
  });

  it('has queues without rings, of which only the vector counts', () => {
    t.negotiate();
    t.setUpQueue(2);
    t.set('queue_msix_vector', 1);
    expect(t.common).toMatchObject({ queue_size: 0, queue_enable: 0, queue_desc: 0n, queue_msix_vector: 1 });
    expect(t.device.queueVector(2)).toBe(1);
    expect(t.events).toEqual([]);
  });

  it('shows a queue that is not there as unavailable, and ignores its set-up', () => {
    t.negotiate();
    t.setUpQueue(4);
    t.set('queue_msix_vector', 0);
    expect(t.common).toMatchObject({
      queue_select: 4,
      queue_size: 0,
      queue_enable: 0,
      queue_msix_vector: NO_VECTOR,
    });
    expect(t.device.refusals.queue).toBe(5);
  });

  it.each(['queue_msix_vector', 'config_msix_vector'] as const)(
    'reads %s back as none when the vector is out of range',
    (field) => {
      t.set(field, 2);
      expect(t.common[field]).toBe(2);
      t.set(field, 3);
      expect(t.common[field]).toBe(NO_VECTOR);
      expect(t.device.refusals.vector).toBe(1);
      t.set(field, NO_VECTOR);
      expect(t.device.refusals.vector).toBe(1);
    },
  );
});
