import { closeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native, type Relay } from '../../../src/sys/native.js';
import { sleep, until } from '../../support/scope.js';
import { errorOf, openFds } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;

/** Wake-ups come to an end: nothing keeps the thread awake. */
async function sleepsOn(relay: Relay): Promise<void> {
  let wakeups = -1;
  for (let n = 0; n < 20 && relay.stats().wakeups !== wakeups; n++) {
    wakeups = relay.stats().wakeups;
    await sleep(30);
  }
  expect(relay.stats().wakeups).toBe(wakeups);
}

describe('a relay', () => {
  it('forwards signals, and sleeps without a wake-up while nothing happens', async () => {
    const before = openFds();
    const relay = new native.Relay();
    const [from, to] = [native.eventfd(), native.eventfd()];
    const id = relay.add(from, to);
    native.eventfdSignal(from);
    await until('the signal', 1000, () => native.eventfdTake(to) === 1);
    expect(native.eventfdTake(from)).toBe(1); // the relay does not read it
    const idle = relay.stats();
    expect(idle.forwarded).toBe(1);
    await sleep(50);
    expect(relay.stats()).toEqual(idle);
    relay.remove(id);
    native.eventfdSignal(from);
    await sleep(20);
    expect(native.eventfdTake(to)).toBe(0);
    expect(native.eventfdTake(from)).toBe(1);
    expect(() => relay.remove(id)).toThrow(RangeError);
    await relay.stop();
    await relay.stop();
    closeSync(from);
    closeSync(to);
    expect(openFds()).toBe(before);
  });

  it('keeps its own duplicates of the descriptors', async () => {
    const relay = new native.Relay();
    const [from, to] = [native.eventfd(), native.eventfd()];
    const [ring, heard] = [native.dup(from), native.dup(to)];
    relay.add(from, to);
    closeSync(from);
    closeSync(to);
    native.eventfdSignal(ring);
    await until('the signal', 1000, () => native.eventfdTake(heard) === 1);
    await relay.stop();
    closeSync(ring);
    closeSync(heard);
  });

  it('forwards doorbell words and says when it sleeps (P6)', async () => {
    const relay = new native.Relay();
    const page = native.memfdCreate('doorbells', 8192);
    const mapping = new native.Mapping(page, 0, 8192, true);
    const [trap, to, other] = [native.eventfd(), native.eventfd(), native.eventfd()];
    relay.setSleepWord(mapping, 0x40);
    await until('sleep', 1000, () => mapping.load32(0x40) === 1);
    relay.add(trap, native.eventfd());
    relay.addDoorbell(mapping, 0x1000, to);
    const id = relay.addDoorbell(mapping, 0x1040, other);
    // A driver: add 1 to the word; when the device sleeps, use the trapped way too.
    const ring = (offset: number) => {
      mapping.store32(offset, (mapping.load32(offset) + 1) >>> 0);
      if (mapping.load32(0x40) & 1) native.eventfdSignal(trap);
    };
    for (let turn = 0; turn < 40; turn++) {
      ring(0x1000);
      if (turn % 4 === 0) await sleep(1);
      await until(`doorbell ${turn}`, 1000, () => native.eventfdTake(to) > 0);
    }
    expect(native.eventfdTake(other)).toBe(0);
    mapping.store32(0x1040, 0xffff_ffff);
    native.eventfdSignal(trap);
    await until('the other doorbell', 1000, () => native.eventfdTake(other) > 0);
    relay.remove(id);
    ring(0x1040);
    await until('sleep again', 1000, () => mapping.load32(0x40) === 1);
    expect(native.eventfdTake(other)).toBe(0);
    // The last ring may still be on its way to a thread whose word says that it sleeps.
    await sleepsOn(relay);
    await relay.stop();
    expect(mapping.load32(0x40)).toBe(1);
    mapping.close();
    for (const fd of [page, trap, to, other]) closeSync(fd);
  });

  it('signals once for a doorbell whose word and eventfd tell of the same event', async () => {
    const relay = new native.Relay();
    const page = native.memfdCreate('doorbells', 8192);
    const mapping = new native.Mapping(page, 0, 8192, true);
    const [from, to] = [native.eventfd(), native.eventfd()];
    relay.setSleepWord(mapping, 0x40);
    const id = relay.addDoorbell(mapping, 0x1000, to, from);
    const change = () => mapping.store32(0x1000, mapping.load32(0x1000) + 1);
    let heard = 0;
    for (let turn = 1; turn <= 20; turn++) {
      await sleepsOn(relay);
      change();
      native.eventfdSignal(from);
      await until('the signal', 5000, () => {
        heard += native.eventfdTake(to);
        return heard >= turn;
      });
      await sleepsOn(relay);
      heard += native.eventfdTake(to);
      expect(heard).toBe(turn);
    }
    expect(relay.stats()).toMatchObject({ forwarded: 20, doorbells: 0 });
    // The register does the same as the eventfd, which alone is enough too.
    change();
    relay.ring(id);
    expect(native.eventfdTake(to)).toBe(1);
    native.eventfdSignal(from);
    await until('the signal', 5000, () => native.eventfdTake(to) === 1);
    await sleepsOn(relay);
    expect(relay.stats()).toMatchObject({ forwarded: 21, doorbells: 0 });
    relay.remove(id);
    native.eventfdSignal(from);
    await sleepsOn(relay);
    expect(native.eventfdTake(to)).toBe(0);
    expect(() => relay.ring(id)).toThrow(RangeError);
    await relay.stop();
    mapping.close();
    for (const fd of [page, from, to]) closeSync(fd);
  });

  it('is not stopped by a full target, nor kept awake by a source that ended', async () => {
    const relay = new native.Relay();
    const [a, b] = native.unixPair();
    const [from, to] = [native.eventfd(), native.eventfd()];
    relay.add(a, to);
    relay.add(from, to);
    closeSync(b);
    await sleepsOn(relay);
    expect(native.eventfdTake(to)).toBeLessThanOrEqual(1); // that the end came
    native.eventfdSignal(from);
    await until('the signal', 1000, () => native.eventfdTake(to) === 1);
    await relay.stop();
    for (const fd of [a, from, to]) closeSync(fd);
  });

  it('checks its arguments', async () => {
    const relay = new native.Relay();
    const page = native.memfdCreate('doorbells', 4096);
    const mapping = new native.Mapping(page, 0, 4096, true);
    const readOnly = new native.Mapping(page, 0, 4096, false);
    const fd = native.eventfd();
    expect(errorOf(() => relay.add(99_999, fd)).code).toBe('EBADF');
    expect(errorOf(() => relay.add(fd, 99_999)).code).toBe('EBADF');
    expect(() => relay.add(bad('1'), fd)).toThrow(TypeError);
    expect(errorOf(() => relay.add(page, fd)).code).toMatch(/EPERM/);
    expect(() => relay.addDoorbell(mapping, 4094, fd)).toThrow(RangeError);
    expect(() => relay.addDoorbell(mapping, 2, fd)).toThrow(RangeError);
    expect(errorOf(() => relay.addDoorbell(readOnly, 0, fd)).code).toBe('EACCES');
    expect(() => relay.setSleepWord(bad({}), 0)).toThrow(TypeError);
    expect(() => relay.remove(0)).toThrow(RangeError);
    await relay.stop();
    expect(errorOf(() => relay.add(fd, fd)).code).toBe('ESHUTDOWN');
    for (const open of [mapping, readOnly]) open.close();
    closeSync(page);
    closeSync(fd);
  });
});
