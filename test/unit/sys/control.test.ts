import { closeSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type ControlDeviceQueue,
  type ControlDriverQueue,
  type Mapping,
  native,
  type RegionTable,
} from '../../../src/sys/native.js';
import { errorOf } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;
const SIZE = 8;
const BUFFER = 256;
const ADDRESS = 0x7000_0000n;

let fd: number;
let mapping: Mapping;
let table: RegionTable;
let driver: ControlDriverQueue;
let device: ControlDeviceQueue;

beforeEach(() => {
  const bytes = native.ControlDriverQueue.bytes(SIZE, BUFFER);
  fd = native.memfdCreate('control', bytes);
  mapping = new native.Mapping(fd, 0, bytes, true);
  table = new native.RegionTable([{ address: ADDRESS, size: bytes, mapping, offset: 0 }]);
  driver = new native.ControlDriverQueue(mapping, 0, ADDRESS, SIZE, BUFFER);
  device = new native.ControlDeviceQueue(table, driver.addresses);
});
afterEach(() => {
  driver.close();
  device.close();
  table.close();
  mapping.close();
  closeSync(fd);
});

describe('control queues', () => {
  it('carry messages from the driver to the device, in order', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ minLength: 1, maxLength: BUFFER }), { maxLength: 40 }),
        (messages) => {
          for (const message of messages) {
            expect(driver.addReadable(message)).toBe(true);
            const chain = device.pop()!;
            expect(chain.readable.equals(message)).toBe(true);
            expect(chain.writable).toBe(0);
            device.push(chain.head);
            expect(driver.harvest()).toHaveLength(0);
          }
          expect(device.pop()).toBeUndefined();
          expect(driver.harvest()).toBeUndefined();
        },
      ),
    );
  });

  it('carry messages from the device to the driver', () => {
    for (let i = 0; i < SIZE; i++) expect(driver.addWritable()).toBe(true);
    expect(driver.addWritable()).toBe(false);
    expect(driver.addReadable(Buffer.from('x'))).toBe(false);
    const heads = Array.from({ length: SIZE }, () => device.pop()!);
    expect(heads.map((chain) => [chain.readable.length, chain.writable])).toEqual(
      Array(SIZE).fill([0, BUFFER]),
    );
    expect(device.pop()).toBeUndefined();
    for (const [i, chain] of heads.entries()) device.push(chain.head, Buffer.from(`message ${i}`));
    for (let i = 0; i < SIZE; i++) expect(driver.harvest()!.toString()).toBe(`message ${i}`);
    expect(driver.harvest()).toBeUndefined();
  });

  it('ask for a notification only when there is news', () => {
    expect(driver.needsNotify()).toBe(false);
    driver.addWritable();
    expect(driver.needsNotify()).toBe(true);
    expect(driver.needsNotify()).toBe(false);
    const chain = device.pop()!;
    expect(device.needsInterrupt()).toBe(false);
    device.push(chain.head, Buffer.from('x'));
    expect(device.needsInterrupt()).toBe(true);
    expect(device.needsInterrupt()).toBe(false);
  });

  it('refuse what does not fit, and go on', () => {
    expect(() => driver.addReadable(Buffer.alloc(BUFFER + 1))).toThrow(RangeError);
    expect(() => driver.addReadable(Buffer.alloc(0))).toThrow(RangeError);
    driver.addWritable();
    const chain = device.pop()!;
    expect(() => device.push(chain.head, Buffer.alloc(BUFFER + 1))).toThrow(RangeError);
    expect(() => device.push(chain.head ^ 1, Buffer.from('x'))).toThrow(RangeError);
    expect(() => device.push(70_000)).toThrow(RangeError);
    device.push(chain.head, Buffer.alloc(BUFFER, 3));
    expect(() => device.push(chain.head)).toThrow(RangeError);
    expect(driver.harvest()!.equals(Buffer.alloc(BUFFER, 3))).toBe(true);
  });

  it('give up a ring that is malformed, and stay given up', () => {
    const { driver: available } = driver.addresses;
    table.write(available + 2n, Buffer.from([0xff, 0x7f])); // further ahead than the ring is long
    const error = errorOf(() => device.pop());
    expect(error.code).toBe('EBADRING');
    expect(error.message.length).toBeGreaterThan(0);
    table.write(available + 2n, Buffer.from([0, 0]));
    expect(errorOf(() => device.pop()).code).toBe('EBADRING');
    expect(errorOf(() => device.push(0)).code).toMatch(/EBADRING/);
  });

  it('check their arguments', () => {
    const { addresses } = driver;
    expect(() => native.ControlDriverQueue.bytes(3, BUFFER)).toThrow(RangeError);
    expect(() => native.ControlDriverQueue.bytes(SIZE, 0)).toThrow(RangeError);
    expect(() => new native.ControlDriverQueue(mapping, 8192, ADDRESS, SIZE, BUFFER)).toThrow(RangeError);
    expect(() => new native.ControlDriverQueue(bad(table), 0, ADDRESS, SIZE, BUFFER)).toThrow(TypeError);
    expect(() => new native.ControlDriverQueue(mapping, 0, bad(0), SIZE, BUFFER)).toThrow(TypeError);
    expect(() => new native.ControlDeviceQueue(bad(mapping), addresses)).toThrow(TypeError);
    for (const wrong of [
      { size: 0 },
      { size: 3 },
      { size: 65536 },
      { desc: 1n },
      { device: ADDRESS + 1n },
      { driver: 0n },
    ])
      expect(() => new native.ControlDeviceQueue(table, { ...addresses, ...wrong })).toThrow(RangeError);
    expect(() => new native.ControlDeviceQueue(table, addresses, 0)).toThrow(RangeError);
    device.close();
    expect(errorOf(() => device.pop()).code).toBe('EBADF');
  });
});
