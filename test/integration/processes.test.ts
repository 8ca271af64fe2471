/** Device process, driver and peer as processes that are killed, stopped and started again, one by one, at every step. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Child, checkout, fdCount, mappings, residentKiB, start } from '../support/process.js';
import { type Driver, Rig } from '../support/rig.js';
import { Scope, sleep, until } from '../support/scope.js';

let scope: Scope;
let rig: Rig;
let memory: string;
beforeEach(() => {
  scope = new Scope();
  rig = new Rig(scope);
  memory = join(scope.folder(), 'memory');
});
afterEach((context) => scope.end(context));

const MIB = 8;
const LIMIT = { timeout: 240_000 };
const DEVICE_LOG = 'stderr';

const device = (): Promise<Child> => rig.device({ window: { file: memory, mib: MIB } });
const net = (): Driver => rig.net(['--echo', '--interrupt']);
const peerOn = (file: string, options: readonly string[]): Child =>
  start(scope, 'peer', process.execPath, [
    join(checkout, 'test/support/net-peer.mjs'),
    rig.vhostUser,
    file,
    String(MIB << 20),
    ...options,
  ]);
const peer = (...options: string[]): Child => peerOn(memory, options);
/** A peer with memory of its own. */
const foreignPeer = (...options: string[]): Child => peerOn('-', options);

/** Waits until the peer has frames back, after the first `from` of its events. */
async function echoed(child: Child, from = 0): Promise<void> {
  const event = await child.event('frames that come back', 15_000, (e) => e.event === 'echoed', from);
  expect(event).toMatchObject({ lost: 0, altered: 0, reordered: 0 });
}

interface Held {
  readonly fds: number;
  readonly shared: number;
}

/**
 * Descriptors and shared mappings of a process: what a lost connection could leave behind. The device process maps the
 * window once, when it first has to look into it, and keeps that.
 */
const held = (pid: number): Held => {
  const shared = mappings(pid, /memory|memfd/);
  const window = shared.filter((line) => line.endsWith(memory)).length;
  return { fds: fdCount(pid), shared: shared.length - Math.min(window, 1) };
};

/** What a process has once nothing of an earlier connection is on its way out any more. */
async function atRest(child: Child): Promise<Held> {
  let last = held(child.pid);
  for (let equal = 0; equal < 25; ) {
    await sleep(20);
    const now = held(child.pid);
    equal = now.fds === last.fds && now.shared === last.shared ? equal + 1 : 0;
    last = now;
  }
  return last;
}

/** A process comes back to what it had, or less: what it is about to give back when `before` is taken is no fault. */
async function backTo(child: Child, before: Held): Promise<void> {
  await until(
    `${child.name} has what it had before`,
    5000,
    () => {
      const now = held(child.pid);
      return now.fds <= before.fds && now.shared <= before.shared;
    },
    () => `: ${JSON.stringify({ before, now: held(child.pid) })}`,
  );
}

describe('kill -9', () => {
  it('of the peer after each step of its handshake leaves nothing behind', LIMIT, async () => {
    const dev = await device();
    const driver = net();
    let healthy = peer('--count', '100');
    await echoed(healthy);
    const steps = healthy.events().filter((e) => e.event === 'step').length;
    expect(steps).toBeGreaterThanOrEqual(8);
    await healthy.kill();
    await driver.connection('off');
    const before = { device: await atRest(dev), driver: await atRest(driver.child) };
    for (let at = 1; at <= steps; at++) {
      const victim = peer('--hang-at', String(at));
      await victim.event(`step ${at}`, 10_000, (e) => e.event === 'step' && e.step === at);
      await victim.kill();
      await backTo(dev, before.device);
      await backTo(driver.child, before.driver);
    }
    healthy = peer('--count', '100');
    await echoed(healthy);
    await driver.stop();
  });

  it(
    'of a peer in adopt mode after each step of its handshake lets the next one be served',
    LIMIT,
    async () => {
      const dev = await rig.device();
      const driver = net();
      let before: { device: Held; driver: Held } | undefined;
      for (let at = 1, steps = 1; at <= steps; at++) {
        const victim = foreignPeer('--hang-at', String(at));
        await victim.event(`step ${at}`, 10_000, (e) => e.event === 'step' && e.step === at);
        await victim.kill();
        const mark = driver.mark();
        const next = foreignPeer('--count', '100');
        await echoed(next);
        steps = next.events().filter((e) => e.event === 'step').length;
        await next.kill();
        await driver.connection('off', 10_000, mark);
        before ??= { device: await atRest(dev), driver: await atRest(driver.child) };
        await backTo(dev, before.device);
        await backTo(driver.child, before.driver);
      }
      await driver.stop();
    },
  );

  it('of the peer under load does neither', LIMIT, async () => {
    const dev = await device();
    const driver = net();
    await dev.line(/client connected/, 10_000, DEVICE_LOG);
    const warmUp = peer('--count', '1');
    await echoed(warmUp);
    await warmUp.kill();
    await driver.connection('off');
    const before = { device: await atRest(dev), driver: await atRest(driver.child) };
    for (let round = 0; round < 4; round++) {
      const mark = driver.mark();
      const victim = peer();
      await echoed(victim);
      await victim.kill();
      await driver.connection('off', 10_000, mark);
      await backTo(dev, before.device);
      await backTo(driver.child, before.driver);
    }
    await driver.stop();
  });

  it('of the driver at any step takes the peer’s link down; the next driver takes it up', LIMIT, async () => {
    const dev = await device();
    const other = peer('--count', '100');
    let before: { device: Held; peer: Held } | undefined;
    const points = [/client connected/, /"mem-info-bar"/, /"mem-info-gva"/, /announced to on/, undefined];
    for (const point of points) {
      const lines = dev[DEVICE_LOG].length;
      const events = other.events().length;
      const victim = net();
      if (point) await dev.line(point, 10_000, DEVICE_LOG, lines);
      else await echoed(other, events);
      await victim.child.kill();
      await dev.line(/receiver disconnected/, 5000, DEVICE_LOG, lines);

      const again = other.events().length;
      const driver = net();
      await driver.connection('on');
      await echoed(other, again);
      await driver.stop();
      await other.event('link down', 5000, (e) => e.event === 'disconnected', again);
      before ??= { device: await atRest(dev), peer: await atRest(other) };
      await backTo(dev, before.device);
      await backTo(other, before.peer);
    }
  });

  it('of the device process at any step is survived by both others', LIMIT, async () => {
    const driver = net();
    const other = peer('--count', '100');
    let before: { driver: Held; peer: Held } | undefined;
    const points = [
      undefined,
      /client connected/,
      /peer connected/,
      /"mem-info-bar"/,
      /"mem-info-gva"/,
      /announced to on/,
    ];
    for (const point of points) {
      const victim = await device();
      if (point) await victim.line(point, 10_000, DEVICE_LOG);
      else await echoed(other);
      await victim.kill();

      const events = other.events().length;
      const mark = driver.mark();
      const dev = await device();
      await driver.connection('on', 10_000, mark);
      await echoed(other, events);
      await dev.stop();
      await driver.connection('off', 10_000, mark);
      await other.event('link down', 5000, (e) => e.event === 'disconnected', events);
      before ??= { driver: await atRest(driver.child), peer: await atRest(other) };
      await backTo(driver.child, before.driver);
      await backTo(other, before.peer);
    }
    await driver.stop();
  });
});

describe('an orderly end', () => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    it(`by ${signal} is one, whoever else is there`, LIMIT, async () => {
      for (const who of ['device', 'driver', 'lonely device', 'lonely driver']) {
        const dev = who === 'lonely driver' ? undefined : await device();
        const driver = who === 'lonely device' ? undefined : net();
        const other = dev && driver ? peer('--count', '50') : undefined;
        if (other) await echoed(other);
        else if (driver) await driver.child.line(/waiting for a device process/, 5000, 'stderr');
        const victim = who.endsWith('device') ? dev! : driver!.child;
        const exit = await victim.stop(signal);
        expect(exit).toEqual({ code: 0, signal: null });
        // Nobody was waited for in vain.
        expect(victim.stderr.filter((l) => /within \d+ m?s/.test(l))).toEqual([]);
        if (victim === dev) {
          expect(existsSync(rig.vhostUser)).toBe(false);
          expect(existsSync(rig.vfioUser)).toBe(false);
        }
        if (driver && victim === driver.child && dev)
          expect(driver.child.events().findLast((e) => e.event === 'connection')?.state).toBe('off');
        await other?.kill();
        await driver?.child.stop();
        await dev?.stop();
      }
    });

  it('of the driver cannot be had from a device that hangs: a second signal ends it', LIMIT, async () => {
    const dev = await device();
    const driver = net();
    const other = peer('--count', '50');
    await echoed(other);
    dev.signal('SIGSTOP');
    driver.child.signal('SIGINT');
    await sleep(300);
    expect(driver.child.exit).toBeUndefined();
    // Two that come before the first is looked at are one.
    await until('its end', 10_000, () => {
      driver.child.signal('SIGINT');
      return driver.child.exit;
    });
    expect(driver.child.exit).toEqual({ code: 130, signal: null });
    dev.signal('SIGCONT');
    await other.event('link down', 5000, (e) => e.event === 'disconnected');
  });
});

describe('sockets', () => {
  /** What a device process says that ends before it listens. */
  const refused = (): Promise<string> =>
    device().then(
      () => '',
      (e: Error) => e.message,
    );

  it(
    'that are left over from a killed process are taken over, those of a live one are not',
    LIMIT,
    async () => {
      const first = await device();
      await rig.served(first);
      const second = await refused();
      expect(second).toMatch(/another process serves it; stop that process or name another/);
      expect(second).toMatch(/ended: 2$/);
      expect(existsSync(rig.vhostUser) && existsSync(rig.vfioUser)).toBe(true);
      await first.kill();
      expect(existsSync(rig.vhostUser)).toBe(true);
      const third = await device();
      await rig.served(third);
      const driver = net();
      await echoed(peer('--count', '50'));
      await driver.stop();
    },
  );

  it('that are something else are left alone', LIMIT, async () => {
    writeFileSync(rig.vfioUser, 'precious');
    expect(await refused()).toMatch(/exists and is not a socket; name another path/);
    expect(readFileSync(rig.vfioUser, 'utf8')).toBe('precious');
  });
});

describe('without end', () => {
  it('200 connections of a peer leave nothing behind', LIMIT, async () => {
    const dev = await device();
    const driver = net();
    const warmUp = peer('--count', '1', '--rounds', '20');
    await warmUp.exited;
    const before = {
      device: await atRest(dev),
      driver: await atRest(driver.child),
      kib: residentKiB(dev.pid),
    };
    const many = peer('--count', '1', '--rounds', '200');
    await many.event('its end', 50_000, (e) => e.event === 'end');
    await backTo(dev, before.device);
    await backTo(driver.child, before.driver);
    expect(residentKiB(dev.pid) - before.kib).toBeLessThan(64 << 10);
    expect(driver.child.events().filter((e) => e.event === 'error')).toEqual([]);
    await driver.stop();
  });

  it('a driver that is stopped for 5 s under load goes on, without loss', LIMIT, async () => {
    const dev = await device();
    const driver = net();
    const other = peer();
    await echoed(other);
    const before = { device: held(dev.pid), kib: residentKiB(dev.pid) };
    driver.child.signal('SIGSTOP');
    await sleep(5000);
    expect(dev.exit).toBeUndefined();
    await backTo(dev, before.device);
    expect(residentKiB(dev.pid) - before.kib).toBeLessThan(32 << 10);
    const from = other.events().length;
    driver.child.signal('SIGCONT');
    await echoed(other, from);
    const { receive } = await driver.stop();
    expect(receive.drops).toBe(0);
  });
});
