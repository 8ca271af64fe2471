import { closeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { bits } from '../../../src/util/flags.js';
import { logBytes } from '../../../src/vhost-user/peer-state.js';
import { NUMBER, PROTOCOL_FEATURE, REQUEST } from '../../../src/vhost-user/protocol.js';
import { OFFERED_PROTOCOL_FEATURES } from '../../../src/vhost-user/requests.js';
import { countingFds, Fixture, MEMORY_BYTES, MRG_RXBUF, openFds, VERSION_1 } from './fixture.js';

const TABLE_ONLY = OFFERED_PROTOCOL_FEATURES & ~bits(PROTOCOL_FEATURE.CONFIGURE_MEM_SLOTS);

describe('a back-end', () => {
  it('goes through the set-up of QEMU and shows what the front-end said', async () => {
    await using f = new Fixture();
    const rings = await f.start();
    const { state } = f.backEnd;
    expect(state.features).toBe(VERSION_1 | MRG_RXBUF);
    expect(state.status).toBe(0xf);
    expect(state.memory?.regions.map((r) => r.gpa)).toEqual([0n, 0x1_0000_0000n]);
    for (const [i, ring] of rings.entries()) {
      const seen = state.rings[i]!;
      expect(seen).toMatchObject({ size: 256, base: 0, started: true, enabled: true, broken: undefined });
      expect(seen.areas).toEqual({ desc: ring.desc, driver: ring.driver, device: ring.device });
      expect(state.heldBy(seen)).toBeUndefined();
      native.eventfdSignal(seen.call!.fd);
      expect(native.eventfdTake(ring.callFd!)).toBe(1);
    }
    expect(state.rings[2]!.started).toBe(false);
    expect(f.device.events.filter((e) => e !== 'ringsChanged')).toEqual([
      'featuresSet 100008000',
      'memoryChanged 1',
      'memoryChanged 2',
      'statusChanged 15',
    ]);
  });

  it('takes the memory as one table from a front-end without memory slots', async () => {
    await using f = new Fixture();
    await f.negotiate(undefined, TABLE_ONLY);
    await f.frontEnd.setMemory(f.regions());
    const { memory } = f.backEnd.state;
    expect(memory?.guestToOffset(0x1_0000_0000n, 16)).toBe(MEMORY_BYTES / 2);
    expect(memory?.end).toBe(0x1_0000_0000n + BigInt(MEMORY_BYTES / 2));
  });

  it('works with a front-end that knows no protocol features, and enables its rings at once', async () => {
    await using f = new Fixture();
    await f.frontEnd.negotiate(VERSION_1, 0n);
    await f.frontEnd.start(f.regions(), [f.ring(0), f.ring(1)]);
    expect(await f.frontEnd.stopRing(1)).toBe(8);
    expect(f.backEnd.state.rings.map((r) => r.enabled)).toEqual([true, true, true, true]);
    expect(f.backEnd.state.rings[0]!.started).toBe(true);
  });

  it('offers LOG_ALL and PROTOCOL_FEATURES besides the features of the device, and tells the queue pairs', async () => {
    await using f = new Fixture();
    const { features, queuePairs } = await f.frontEnd.negotiate((1n << 64n) - 1n, 1n);
    expect(features).toBe(f.device.offeredFeatures);
    expect(queuePairs).toBe(2);
    expect(f.frontEnd.features & bits(30)).toBe(bits(30));
  });

  it('answers GET_VRING_BASE only after the device has let go, with the exact index', async () => {
    await using f = new Fixture();
    await f.start();
    let open = () => {};
    f.device.gate = new Promise((resolve) => {
      open = resolve;
    });
    let answered = false;
    const base = f.frontEnd.stopRing(1).then((n) => {
      answered = true;
      return n;
    });
    await expect.poll(() => f.device.events.includes('stopRing 1')).toBe(true);
    expect(answered).toBe(false);
    open();
    expect(await base).toBe(8);
    const ring = f.backEnd.state.rings[1]!;
    expect(ring).toMatchObject({ started: false, enabled: true, base: 8, kick: undefined, areas: undefined });
    expect(f.backEnd.state.rings[0]!.started).toBe(true);
  });

  it('answers GET_VRING_BASE for a ring that never ran with the base it was given', async () => {
    await using f = new Fixture();
    await f.negotiate();
    expect(await f.frontEnd.stopRing(3)).toBe(0);
    expect(f.device.events).not.toContain('stopRing 3');
  });

  it('starts a stopped ring again', async () => {
    await using f = new Fixture();
    const rings = await f.start();
    const base = await f.frontEnd.stopRing(0);
    await f.frontEnd.startRing(0, { ...rings[0]!, base });
    expect(f.backEnd.state.rings[0]).toMatchObject({ started: true, base });
  });

  it('keeps the old memory until the device has let go of it', async () => {
    await using f = new Fixture();
    await f.start();
    const old = f.backEnd.state.memory!;
    let open = () => {};
    f.device.gate = new Promise((resolve) => {
      open = resolve;
    });
    const shorter = f.regions().slice(0, 1);
    const changed = f.frontEnd.setMemory(shorter);
    await expect.poll(() => f.device.memories.at(-1)?.regions.length).toBe(1);
    const alive = native.dup(old.fd);
    closeSync(alive);
    open();
    await changed;
    expect(() => native.dup(old.fd)).toThrow();
    expect(f.backEnd.state.rings[0]!.areas).toBeDefined();
  });

  it('holds a ring back while its memory is away, and lets it go on when it returns', async () => {
    await using f = new Fixture();
    await f.start();
    const [low, high] = f.regions();
    await f.frontEnd.setMemory([high!]);
    const { state } = f.backEnd;
    expect(state.heldBy(state.rings[0]!)).toMatch(/memory/);
    expect(state.rings[0]).toMatchObject({ started: true, broken: undefined });
    await f.frontEnd.setMemory([low!, high!]);
    expect(state.heldBy(state.rings[0]!)).toBeUndefined();
  });

  it('starts a ring whose addresses came before the memory table', async () => {
    await using f = new Fixture();
    await f.negotiate();
    await f.frontEnd.setMemory(f.regions());
    await f.frontEnd.startRing(0, f.ring(0));
    await f.frontEnd.setMemory([]);
    const { state } = f.backEnd;
    expect(state.memory).toBeUndefined();
    expect(await f.frontEnd.stopRing(0)).toBe(7);

    const kick = NUMBER.encode(0n);
    f.frontEnd.send(REQUEST.SET_VRING_KICK, kick, [f.eventfd()]);
    await expect.poll(() => state.rings[0]!.started).toBe(true);
    expect(state.heldBy(state.rings[0]!)).toMatch(/memory/);
    await f.frontEnd.setMemory(f.regions());
    expect(state.heldBy(state.rings[0]!)).toBeUndefined();
  });

  it('takes a kick without a descriptor as a ring to be polled', async () => {
    await using f = new Fixture();
    await f.negotiate();
    await f.frontEnd.setMemory(f.regions());
    const { kickFd: _, ...polled } = f.ring(0);
    await f.frontEnd.startRing(0, polled);
    expect(f.backEnd.state.rings[0]).toMatchObject({ started: true, kick: undefined });
  });

  it('replaces the call descriptor of a running ring by another object', async () => {
    await using f = new Fixture();
    await f.start();
    const before = f.backEnd.state.rings[0]!.call;
    const call = f.eventfd();
    await f.frontEnd.setCall(0, call);
    const after = f.backEnd.state.rings[0]!.call;
    expect(after).not.toBe(before);
    native.eventfdSignal(after!.fd);
    expect(native.eventfdTake(call)).toBe(1);
  });

  it('hands on MTU, announcement and status, and gives the status back', async () => {
    await using f = new Fixture();
    await f.negotiate();
    await f.frontEnd.setMtu(9000);
    await f.frontEnd.sendRarp(Buffer.from('525400123456', 'hex'));
    await f.frontEnd.setStatus(3);
    expect(await f.frontEnd.getStatus()).toBe(3);
    expect(f.device.events).toEqual(['mtu 9000', 'announce 525400123456', 'statusChanged 3']);
  });

  it('refuses an impossible MTU and goes on', async () => {
    await using f = new Fixture();
    await f.negotiate();
    await expect(f.frontEnd.setMtu(67)).rejects.toMatchObject({ code: 'ENACK' });
    await f.frontEnd.setMtu(68);
    expect(f.device.events).toEqual(['mtu 68']);
  });

  it('stops, disables and forgets the rings at RESET_DEVICE but keeps the memory', async () => {
    await using f = new Fixture();
    await f.start();
    await f.frontEnd.resetDevice();
    const { state } = f.backEnd;
    expect(f.device.events.slice(-3)).toEqual(['stopRing 0', 'stopRing 1', 'reset']);
    for (const ring of state.rings)
      expect(ring).toMatchObject({ started: false, enabled: false, size: 0, base: 0 });
    expect(state).toMatchObject({ features: 0n, status: 0 });
    await f.frontEnd.start(f.regions(), [f.ring(0), f.ring(1)]);
    expect(state.heldBy(state.rings[0]!)).toBeUndefined();
  });

  it('stops rings at device status 0', async () => {
    await using f = new Fixture();
    await f.start();
    await f.frontEnd.setStatus(0);
    expect(f.backEnd.state.rings.some((r) => r.started)).toBe(false);
  });

  it('tells the device of an orderly end, and closes every descriptor', async () => {
    const [before, after] = await countingFds(async (f) => {
      await f.start();
      f.frontEnd.close();
      await f.backEnd.done;
      expect(f.device.events.at(-1)).toBe('closed');
      expect(f.device.closedWith).toBeUndefined();
    });
    expect(after).toBe(before);
  });

  for (const [call, request] of [
    ['stopRing 0', (f: Fixture) => f.frontEnd.stopRing(0)],
    ['memoryChanged 1', (f: Fixture) => f.frontEnd.setMemory(f.regions().slice(0, 1))],
  ] as const) {
    it(`closes while ${call} waits for the device, and calls it no more afterwards`, async () => {
      const [before, after] = await countingFds(async (f) => {
        await f.start();
        let open = () => {};
        f.device.gate = new Promise((resolve) => {
          open = resolve;
        });
        const lost = request(f).then(
          () => 'answered',
          (error) => error.code,
        );
        await expect.poll(() => f.device.events.at(-1)).toBe(call);
        f.backEnd.close();
        open();
        await f.backEnd.done;
        expect(f.device.events.at(-1)).toBe('closed');
        expect(await lost).toBe('ECLOSED');
      });
      expect(after).toBe(before);
    });
  }

  it('survives being closed from inside a call to the device', async () => {
    const [before, after] = await countingFds(async (f) => {
      await f.negotiate();
      f.device.mtu = () => f.backEnd.close();
      await expect(f.frontEnd.setMtu(1500)).rejects.toMatchObject({ code: 'ECLOSED' });
      await f.backEnd.done;
    });
    expect(after).toBe(before);
  });

  it('drops the connection when the device refuses the features or the memory', async () => {
    for (const call of ['featuresSet', 'memoryChanged']) {
      await using f = new Fixture();
      await f.negotiate();
      f.device.refusal = { call, error: new Error('not this') };
      await expect(f.frontEnd.start(f.regions(), [])).rejects.toMatchObject({ code: 'ENACK' });
      await f.backEnd.done;
      expect(f.device.closedWith?.message).toMatch(/not this/);
    }
  });

  it('leaves as many descriptors open after a hundred connections as before', async () => {
    const before = openFds();
    for (let i = 0; i < 100; i++) {
      await using f = new Fixture();
      await f.start();
    }
    expect(openFds()).toBe(before);
  });
});

describe('the dirty log', () => {
  const LOG_BYTES = (0x1_0000_0000 + MEMORY_BYTES / 2) / 4096 / 8;

  it('is switched on with the log and off with LOG_ALL', async () => {
    await using f = new Fixture();
    await f.start();
    const fd = f.keep(native.memfdCreate('log', LOG_BYTES + 4096));
    const without = openFds();
    await f.frontEnd.startLogging({ fd, size: LOG_BYTES, offset: 4096 });
    expect(openFds()).toBe(without + 1);
    expect(f.backEnd.state).toMatchObject({ logging: true, log: { size: LOG_BYTES, offset: 4096 } });
    expect(f.backEnd.state.rings[0]!.logged).toBe(true);
    await f.frontEnd.stopLogging();
    expect(openFds()).toBe(without);
    expect(f.backEnd.state).toMatchObject({ logging: false, log: undefined });
    expect(f.backEnd.state.rings[0]!.logged).toBe(false);
    expect(f.device.events.filter((e) => e.startsWith('log'))).toEqual([
      `logChanged ${LOG_BYTES}`,
      'logChanged off',
    ]);
  });

  it('is replaced by a second one without a pause', async () => {
    const [before, after] = await countingFds(async (f) => {
      await f.start();
      const fd = f.keep(native.memfdCreate('log', 2 * LOG_BYTES));
      await f.frontEnd.startLogging({ fd, size: LOG_BYTES, offset: 0 });
      await f.frontEnd.startLogging({ fd, size: 2 * LOG_BYTES, offset: 0 });
      expect(f.device.events.filter((e) => e.startsWith('log'))).toEqual([
        `logChanged ${LOG_BYTES}`,
        `logChanged ${2 * LOG_BYTES}`,
      ]);
    });
    expect(after).toBe(before);
  });

  it('holds rings back that start before it during a migration, as QEMU starts them', async () => {
    await using f = new Fixture();
    const rings = await f.start();
    const fd = f.keep(native.memfdCreate('log', LOG_BYTES));
    await f.frontEnd.startLogging({ fd, size: LOG_BYTES, offset: 0 });
    await f.frontEnd.stop();
    expect(f.backEnd.state).toMatchObject({ logging: true, log: undefined });
    await f.frontEnd.sendFeatures();
    await f.frontEnd.startRing(0, rings[0]!);
    const { state } = f.backEnd;
    expect(state.heldBy(state.rings[0]!)).toMatch(/log/);
    await f.frontEnd.startLogging({ fd, size: LOG_BYTES, offset: 0 });
    expect(state.heldBy(state.rings[0]!)).toBeUndefined();
  });

  it('has a bit for every page up to the end of the memory', () => {
    expect(logBytes(512n << 20n)).toBe(0x4000n); // as QEMU sends it for a guest of 512 MiB
    expect(logBytes(1n)).toBe(1n);
    expect(logBytes(8n * 4096n + 1n)).toBe(2n);
  });
});
