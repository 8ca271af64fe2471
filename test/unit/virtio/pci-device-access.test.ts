import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { CommonCfg } from '../../../src/virtio/pci-layout.js';
import { STATUS } from '../../../src/virtio/status.js';
import { Bench, type Field, LIVE } from './registers.js';
import { LAYOUT, recorder } from './rig.js';

let t: Bench;

beforeEach(() => {
  t = new Bench();
});

describe('virtio-pci registers, notifications', () => {
  it('passes on a notification of a queue by its address', () => {
    t.live();
    t.notify(LAYOUT.notify.offset, 0);
    expect(t.events).toEqual(['notify 0']);
  });

  it('passes on a notification of a ring of the peer', () => {
    t.live();
    t.notify(0x4000 + 4 * 3, 3);
    expect(t.events).toEqual(['peer notify 3']);
  });

  it.each([
    ['before DRIVER_OK', () => t.negotiate(), LAYOUT.notify.offset, 2],
    ['of a queue that is not enabled', () => t.live(), LAYOUT.notify.offset + 4, 2],
    ['of a queue that is not there', () => t.live(), LAYOUT.notify.offset + 400, 2],
    ['between two addresses', () => t.live(), LAYOUT.notify.offset + 2, 2],
    ['of one byte', () => t.live(), LAYOUT.notify.offset, 1],
    ['of four bytes', () => t.live(), LAYOUT.notify.offset, 4],
    ['of a peer ring before DRIVER_OK', () => t.negotiate(), 0x4000, 2],
    ['of a peer ring, unaligned', () => t.live(), 0x4001, 2],
  ])('ignores one %s', (_what, prepare, offset, length) => {
    prepare();
    t.events.length = 0;
    t.device.write(offset, Buffer.alloc(length));
    expect(t.events).toEqual([]);
    expect(t.device.refusals.notify).toBe(1);
  });

  it('ignores one past the rings of the peer', () => {
    t.live();
    t.notify(0x4010, 4);
    expect(t.events).toEqual([]);
    expect(t.device.refusals.access).toBe(1);
  });

  it('ignores all of a driver that has failed', () => {
    t.live();
    t.set('device_status', LIVE | STATUS.FAILED);
    t.notify(LAYOUT.notify.offset, 0);
    expect(t.events).toEqual([]);
  });
});

describe('virtio-pci registers, interrupts', () => {
  it('signals the vector of the queue, and that of the configuration', () => {
    t.live();
    t.set('queue_msix_vector', 1);
    t.set('config_msix_vector', 0);
    t.device.raiseQueue(0);
    t.device.raiseConfig();
    expect(t.events).toEqual(['interrupt 1', 'interrupt 0']);
  });

  it('signals nothing for a queue without a vector, nor for one that is not there', () => {
    t.live();
    t.device.raiseQueue(0);
    t.device.raiseQueue(77);
    t.device.raiseConfig();
    expect(t.events).toEqual([]);
  });

  it('signals nothing before DRIVER_OK', () => {
    t.negotiate();
    t.set('queue_msix_vector', 1);
    t.device.raiseQueue(0);
    expect(t.events).toEqual([]);
  });

  it('has an ISR status that a read clears', () => {
    t = new Bench({ vectors: 0 });
    t.live();
    t.device.raiseQueue(0);
    t.device.raiseConfig();
    expect(t.events).toEqual(['isr true', 'interrupt 0', 'interrupt 0']);
    expect([...t.device.read(LAYOUT.isr.offset, 1)]).toEqual([3]);
    expect([...t.device.read(LAYOUT.isr.offset, 1)]).toEqual([0]);
    expect(t.events.at(-1)).toBe('isr false');
  });

  it('clears the ISR status by a read that covers it among others, and not by its neighbours', () => {
    t.live();
    t.device.raiseConfig();
    expect(t.device.read(LAYOUT.isr.offset + 1, 4)).toEqual(Buffer.alloc(4));
    expect([...t.device.read(LAYOUT.isr.offset - 1, 3)]).toEqual([0, 2, 0]);
    expect(t.device.read(LAYOUT.isr.offset, 1)[0]).toBe(0);
  });
});

describe('virtio-pci registers, device configuration', () => {
  it('changes the generation when a change is first read', () => {
    let mtu = 1;
    t = new Bench({ deviceConfig: () => Buffer.of(mtu) });
    expect(t.device.read(LAYOUT.device.offset, 2)).toEqual(Buffer.from([1, 0]));
    const before = t.common.config_generation;
    mtu = 2;
    t.device.raiseConfig();
    expect(t.common.config_generation).toBe(before);
    expect(t.device.read(LAYOUT.device.offset, 1)[0]).toBe(2);
    expect(t.common.config_generation).toBe(before + 1);
    t.device.read(LAYOUT.device.offset, 1);
    expect(t.common.config_generation).toBe(before + 1);
  });

  it('reads 0 when there is none', () => {
    expect(t.device.read(LAYOUT.device.offset, 8)).toEqual(Buffer.alloc(8));
  });

  it('is read-only', () => {
    t.device.write(LAYOUT.device.offset, Buffer.of(1));
    expect(t.device.refusals.access).toBe(1);
  });
});

describe('virtio-pci registers, any access', () => {
  it.each(['device_feature', 'num_queues', 'config_generation', 'queue_notify_off', 'queue_reset'] as const)(
    'does not let a driver write %s',
    (field) => {
      const before = t.common;
      t.set(field, 1);
      expect(t.common).toEqual(before);
      expect(t.device.refusals.access).toBe(1);
    },
  );

  it('reads the same bytes in any width and alignment', () => {
    t.live();
    const whole = t.device.read(0, 128);
    fc.assert(
      fc.property(fc.nat(100), fc.integer({ min: 1, max: 28 }), (offset, length) => {
        expect(t.device.read(offset, length)).toEqual(whole.subarray(offset, offset + length));
      }),
    );
  });

  it.each([
    [-1, 1],
    [LAYOUT.size, 1],
    [LAYOUT.size - 2, 4],
  ])('refuses %i + %i, outside the BAR', (offset, length) => {
    expect(() => t.device.read(offset, length)).toThrow(
      expect.objectContaining({ code: 'ERANGE', scope: 'message' }),
    );
    expect(() => t.device.write(offset, Buffer.alloc(length))).toThrow(
      expect.objectContaining({ code: 'ERANGE' }),
    );
  });

  /** Accesses that are often meaningful, among those that are not. */
  const fields = Object.keys(CommonCfg.fields) as Field[];
  const step = fc.oneof(
    fc.record({
      field: fc.constantFrom(...fields),
      value: fc.constantFrom(0, 1, 2, 3, 11, 15, 64, 0xffff, 0x1000),
    }),
    fc.record({ offset: fc.nat(LAYOUT.size - 16), data: fc.uint8Array({ maxLength: 16 }) }),
    fc.record({ offset: fc.nat(LAYOUT.size - 16), length: fc.nat(16) }),
    fc.record({ raise: fc.nat(5) }),
  );

  it('never throws, and keeps its rules, for any sequence of accesses inside the BAR', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), fc.boolean(), (steps, start) => {
        let liveNow = false;
        t = new Bench({
          events: {
            ...recorder([]),
            driverOk: () => {
              liveNow = true;
            },
            reset: () => {
              liveNow = false;
            },
            notify: () => expect(liveNow).toBe(true),
            peerNotify: (ring) => {
              expect(liveNow).toBe(true);
              expect(ring).toBeLessThan(4);
            },
            interrupt: (vector) => {
              expect(liveNow).toBe(true);
              expect(vector).toBeLessThan(3);
            },
            queueEnabled: (queue, ring) => {
              expect(queue).toBeLessThan(2);
              expect([1, 2, 4, 8, 16, 32, 64]).toContain(ring.size);
            },
          },
        });
        if (start) t.live();
        for (const s of steps) {
          if ('field' in s) t.set(s.field, s.value);
          else if ('data' in s) t.device.write(s.offset, s.data);
          else if ('length' in s) expect(t.device.read(s.offset, s.length)).toHaveLength(s.length);
          else t.device.raiseQueue(s.raise);
          expect((t.device.status & STATUS.DRIVER_OK) !== 0).toBe(liveNow);
        }
      }),
      { numRuns: 300 },
    );
  });
});
