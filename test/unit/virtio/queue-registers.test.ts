import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { QueueRegisters } from '../../../src/virtio/queue-registers.js';

const ALL = 0xffff_ffff_ffff_ffffn;

function queueAt(desc: bigint, driver: bigint, device: bigint, size = 64): QueueRegisters {
  const queue = new QueueRegisters(size);
  queue.setAddress('queue_desc', desc, ALL);
  queue.setAddress('queue_driver', driver, ALL);
  queue.setAddress('queue_device', device, ALL);
  return queue;
}

describe('queue set-up', () => {
  it('makes a queue of three areas that do not touch', () => {
    const queue = queueAt(0x1000n, 0x1400n, 0x1600n);
    expect(queue.enable(false)).toBeUndefined();
    expect(queue.ring).toEqual({ size: 64, desc: 0x1000n, driver: 0x1400n, device: 0x1600n });
  });

  it('takes address 0 for what it is', () => {
    expect(queueAt(0n, 0x400n, 0x600n).enable(false)).toBeUndefined();
  });

  it.each(['queue_desc', 'queue_driver', 'queue_device'] as const)('is not enabled before %s', (missing) => {
    const queue = new QueueRegisters(64);
    for (const [i, field] of (['queue_desc', 'queue_driver', 'queue_device'] as const).entries())
      if (field !== missing) queue.setAddress(field, BigInt(i) << 12n, ALL);
    expect(queue.enable(false)).toBe(`${missing} was not written`);
    expect(queue.enabled).toBe(false);
  });

  it.each([
    ['the descriptor table', 0x1008n, 0x2000n, 0x3000n, 'queue_desc is not aligned to 16 bytes'],
    ['the driver area', 0x1000n, 0x2001n, 0x3000n, 'queue_driver is not aligned to 2 bytes'],
    ['the device area', 0x1000n, 0x2000n, 0x3002n, 'queue_device is not aligned to 4 bytes'],
  ])('refuses %s unaligned', (_what, desc, driver, device, message) => {
    expect(queueAt(desc, driver, device).enable(false)).toBe(message);
  });

  it('has the packed ring its own alignment', () => {
    expect(queueAt(0x1000n, 0x2002n, 0x3000n).enable(true)).toBe('queue_driver is not aligned to 4 bytes');
    expect(queueAt(0x1000n, 0x2004n, 0x2008n).enable(true)).toBeUndefined();
  });

  it('refuses areas that wrap, and takes one that ends with the address space', () => {
    expect(queueAt(ALL - 0x3ffn + 16n, 0x1000n, 0x2000n).enable(false)).toBe('queue_desc wraps');
    expect(queueAt(ALL - 0x3ffn, 0x1000n, 0x2000n).enable(false)).toBeUndefined();
  });

  it('refuses areas that overlap by one byte, and takes neighbours', () => {
    // 64 descriptors are 0x400 bytes, an available ring 6 + 2 * 64.
    expect(queueAt(0x1000n, 0x13fen, 0x2000n).enable(false)).toBe('queue_desc and queue_driver overlap');
    expect(queueAt(0x1000n, 0x1400n, 0x1488n).enable(false)).toBeUndefined();
    expect(queueAt(0x1000n, 0x1400n, 0x1484n).enable(false)).toBe('queue_driver and queue_device overlap');
  });

  it('changes size within its limit, to a power of two unless packed', () => {
    const queue = new QueueRegisters(64);
    expect(queue.setSize(32, false)).toBeUndefined();
    expect(queue.size).toBe(32);
    expect(queue.setSize(0, false)).toMatch(/size 0/);
    expect(queue.setSize(128, false)).toMatch(/at most 64/);
    expect(queue.setSize(24, false)).toMatch(/power of two/);
    expect(queue.size).toBe(32);
    expect(queue.setSize(24, true)).toBeUndefined();
  });

  it('changes nothing once it is enabled', () => {
    const queue = queueAt(0x1000n, 0x2000n, 0x3000n);
    queue.enable(false);
    expect(queue.setSize(32, false)).toBe('it is enabled');
    expect(queue.setAddress('queue_desc', 0n, ALL)).toBe('it is enabled');
    expect(queue.enable(false)).toBe('it is enabled');
    expect(queue.ring).toEqual({ size: 64, desc: 0x1000n, driver: 0x2000n, device: 0x3000n });
  });

  it('is never enabled when it has no ring', () => {
    const queue = queueAt(0x1000n, 0x2000n, 0x3000n, 0);
    expect(queue.enable(false)).toBe('it has no ring');
    expect(queue.setSize(1, false)).toBe('it has no ring');
    expect(queue.size).toBe(0);
  });

  it('takes an address in two halves', () => {
    fc.assert(
      fc.property(fc.bigInt(0n, ALL), fc.boolean(), (address, highFirst) => {
        const queue = new QueueRegisters(64);
        const halves = [0xffff_ffffn, 0xffff_ffff_0000_0000n];
        for (const mask of highFirst ? halves.reverse() : halves)
          queue.setAddress('queue_desc', address & mask, mask);
        expect(queue.address('queue_desc')).toBe(address);
      }),
    );
  });
});
