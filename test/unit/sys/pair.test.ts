/** Driver and device side of a virtio-net queue pair, served by two workers over one memfd. */
import { ftruncateSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native, type WorkerMode } from '../../../src/sys/native.js';
import { until } from '../../support/scope.js';
import { errorOf, MAC_A, MAC_B, makePair, openFds, rejectionOf } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;
const CLEAN = { lost: 0, reordered: 0, altered: 0, foreign: 0 };
const source = (stream: number, bytes: number, count?: number) =>
  new native.SourceQueue({
    bytes,
    destination: MAC_A,
    source: MAC_B,
    stream,
    ...(count === undefined ? {} : { count }),
  });

/** A worker on each side; everything ends with the scope. */
function twoWorkers(mode: WorkerMode) {
  const device = new native.Worker({ mode, name: 'device side' });
  const driver = new native.Worker({ mode, name: 'driver side' });
  return { device, driver, stop: () => Promise.all([device.stop(), driver.stop()]) };
}

describe.each([
  ['poll', 64, 128],
  ['interrupt', 64, 256],
  ['adaptive', 1518, 256],
  ['interrupt', 9000, 64],
] as const)('a pair in mode %s with frames of %i bytes and rings of %i', (mode, bytes, size) => {
  it('carries streams both ways at a time, unaltered', async () => {
    const before = [openFds(), native.mappingCount()];
    const count = 20_000;
    const pair = makePair(size);
    const workers = twoWorkers(mode);
    const up = new native.SinkQueue({ stream: 1 });
    const down = new native.SinkQueue({ stream: 2 });
    await workers.device.connect(pair.peer, up, 'hold');
    await workers.device.connect(source(2, bytes, count), pair.peer, 'hold');
    await workers.driver.connect(pair.driver, down, 'hold');
    await workers.driver.connect(source(1, bytes, count), pair.driver, 'hold');
    await until(
      'both streams',
      15_000,
      () => up.verified().packets >= count && down.verified().packets >= count,
    );
    await workers.stop();
    expect(up.verified()).toEqual({ packets: count, ...CLEAN });
    expect(down.verified()).toEqual({ packets: count, ...CLEAN });
    const { receive, send } = pair.peer.stats();
    expect([receive.packets, send.packets]).toEqual([count, count]);
    expect([receive.bytes, send.bytes]).toEqual([count * bytes, count * bytes]);
    expect([receive.broken, send.broken]).toEqual([undefined, undefined]);
    pair[Symbol.dispose]();
    expect([openFds(), native.mappingCount()]).toEqual(before);
  });
});

describe('a peer queue', () => {
  it('lets go of the rings with an exact index when it is detached under traffic, and goes on from there', async () => {
    const pair = makePair(64);
    const workers = twoWorkers('poll');
    const up = new native.SinkQueue({ stream: 1 });
    await workers.driver.connect(source(1, 64), pair.driver, 'hold');
    let peer = pair.peer;
    let taken = 0;
    for (let turn = 0; turn < 5; turn++) {
      await workers.device.connect(peer, up, 'hold');
      await until('traffic', 5000, () => peer.stats().receive.packets > 500);
      await workers.device.detach(peer);
      taken += peer.stats().receive.packets;
      const next = peer.nextAvail();
      peer.close();
      expect(errorOf(() => peer.nextAvail()).code).toBe('EBADF');
      // The driver runs into the end of the ring. After that nobody writes, since the device side has let go.
      let image = pair.mapping.read(0, 4096);
      await until('a ring that stands still', 2000, () => {
        const before = image;
        image = pair.mapping.read(0, 4096);
        return image.equals(before);
      });
      peer = new native.PeerQueue({
        table: pair.table,
        features: (1n << 32n) | (1n << 15n) | (1n << 29n) | (1n << 28n),
        transmit: { ...pair.driver.transmitq, nextAvail: next.transmit!, enabled: true },
        receive: { ...pair.driver.receiveq, nextAvail: next.receive!, enabled: true },
      });
    }
    await workers.stop();
    // Packets that were received and went back unread are counted by receive a second time at most.
    const found = up.verified();
    expect(found).toMatchObject({ lost: 0, altered: 0, foreign: 0, reordered: 0 });
    expect(found.packets).toBeLessThanOrEqual(taken);
    expect(found.packets).toBeGreaterThan(taken - 5 * 64);
    peer.close();
    pair[Symbol.dispose]();
  });

  it('drops at once with policy drop, and waits with policy hold', async () => {
    const pair = makePair(64);
    const worker = new native.Worker({ mode: 'poll' });
    await worker.connect(source(1, 64, 64 * 10), pair.peer, 'drop');
    // The driver side is not served: the peer has its receive buffers and no more.
    await until('drops', 2000, () => pair.peer.stats().send.drops['no-buffers'] > 0);
    await until('the end', 2000, () => {
      const { packets, drops } = pair.peer.stats().send;
      return packets + drops['no-buffers'] === 640;
    });
    await worker.stop();
    pair[Symbol.dispose]();

    const second = makePair(64);
    const waiting = new native.Worker({ mode: 'interrupt' });
    const held = source(1, 64, 64 * 10);
    await waiting.connect(held, second.peer, 'hold');
    await until('sleep', 2000, () => waiting.stats().state === 'sleeping');
    const before = second.peer.stats().send;
    expect(before.drops['no-buffers']).toBe(0);
    expect(before.packets).toBeLessThan(640);
    const sink = new native.SinkQueue({ stream: 1 });
    await waiting.connect(second.driver, sink, 'hold');
    await until('all packets', 5000, () => sink.verified().packets === 640);
    expect(sink.verified()).toEqual({ packets: 640, ...CLEAN });
    await waiting.stop();
    second[Symbol.dispose]();
  });

  it('gives nothing and takes nothing while it is disabled', async () => {
    const pair = makePair(64);
    const workers = twoWorkers('poll');
    const up = new native.SinkQueue({ stream: 1 });
    await workers.device.setEnabled(pair.peer, false, false);
    await workers.device.connect(pair.peer, up, 'hold');
    await workers.driver.connect(source(1, 64, 1000), pair.driver, 'hold');
    await until('discards', 2000, () => pair.peer.stats().receive.drops.disabled === 1000);
    expect(up.stats().send.packets).toBe(0);
    await workers.device.setEnabled(pair.peer, true, true);
    await workers.driver.connect(pair.driver, new native.SinkQueue(), 'hold');
    const more = source(2, 64, 10);
    const other = new native.SinkQueue({ stream: 2 });
    await workers.device.detach(up);
    await workers.device.connect(pair.peer, other, 'hold');
    await workers.driver.connect(more, pair.driver, 'hold');
    await until('packets', 2000, () => other.verified().packets === 10);
    await workers.stop();
    pair[Symbol.dispose]();
  });

  it('logs every page that it writes', async () => {
    const pair = makePair(64);
    const workers = twoWorkers('poll');
    const log = native.memfdCreate('log', 4096);
    const bitmap = new native.Mapping(log, 0, 4096, true);
    await workers.device.setDirtyLog(pair.peer, { mapping: bitmap, offset: 0, bytes: 4096 });
    const before = pair.mapping.read(0, pair.mapping.size);
    await workers.device.connect(source(1, 1518, 30), pair.peer, 'hold');
    await until('packets', 2000, () => pair.peer.stats().send.packets === 30);
    await workers.device.detach(pair.peer);
    const after = pair.mapping.read(0, pair.mapping.size);
    const bits = bitmap.read(0, 4096);
    let changed = 0;
    for (let page = 0; page * 4096 < after.length; page++) {
      const span = [page * 4096, (page + 1) * 4096] as const;
      if (after.subarray(...span).equals(before.subarray(...span))) continue;
      changed++;
      expect((bits[page >> 3]! >> (page & 7)) & 1, `page ${page}`).toBe(1);
    }
    expect(changed).toBeGreaterThan(10);
    expect(() => workers.device.setDirtyLog(pair.peer, { mapping: bitmap, offset: 1, bytes: 4096 })).toThrow(
      RangeError,
    );
    await workers.device.setDirtyLog(pair.peer, undefined);
    await workers.stop();
    bitmap.close();
    pair[Symbol.dispose]();
  });

  it('is given up, and said to be, when the memory vanishes under traffic', async () => {
    const pair = makePair(64);
    const workers = twoWorkers('poll');
    const events: string[] = [];
    workers.device.onEvent((event) => {
      expect(event.queue).toBe(pair.peer);
      events.push(`${event.direction} ${event.event}`);
      expect(event.cause.length).toBeGreaterThan(0);
    });
    await workers.device.connect(pair.peer, new native.SinkQueue(), 'hold');
    await workers.driver.connect(source(1, 64), pair.driver, 'hold');
    await until('traffic', 5000, () => pair.peer.stats().receive.packets > 500);
    ftruncateSync(pair.fd, 0);
    await until('the events', 5000, () => events.length === 2);
    expect(events.sort()).toEqual(['receive broken', 'send broken']);
    expect(pair.table.regions).toBe(1);
    expect(pair.peer.stats().receive.broken).toMatch(/memory/);
    await workers.stop();
    pair[Symbol.dispose]();
  });

  it('has a malformed ring given up, and the other lanes go on', async () => {
    const [sick, well] = [makePair(64), makePair(64)];
    const workers = twoWorkers('poll');
    const sink = new native.SinkQueue({ stream: 1 });
    await workers.device.connect(sick.peer, new native.SinkQueue(), 'hold');
    await workers.device.connect(well.peer, sink, 'hold');
    const broken = new Promise<string>((resolve) => workers.device.onEvent((event) => resolve(event.cause)));
    sick.table.write(sick.driver.transmitq.driver + 2n, Buffer.from([0xff, 0x7f]));
    expect((await broken).length).toBeGreaterThan(0);
    await workers.driver.connect(source(1, 64, 5000), well.driver, 'hold');
    await until('the other stream', 5000, () => sink.verified().packets === 5000);
    await workers.stop();
    sick[Symbol.dispose]();
    well[Symbol.dispose]();
  });

  it('checks its options', async () => {
    const pair = makePair(64);
    const ring = { ...pair.driver.transmitq, nextAvail: 0, enabled: true };
    const make = (options: object) => () =>
      new native.PeerQueue(bad({ table: pair.table, features: 1n << 32n, ...options }));
    expect(make({ transmit: ring })).not.toThrow();
    expect(make({ table: undefined })).toThrow(TypeError);
    expect(make({ features: 1 })).toThrow(TypeError);
    expect(make({ transmit: { ...ring, size: 3 } })).toThrow(RangeError);
    expect(make({ transmit: { ...ring, nextAvail: 65_536 } })).toThrow(RangeError);
    expect(make({ transmit: { ...ring, desc: 3n } })).toThrow(RangeError);
    expect(make({ transmit: { ...ring, kickFd: 99_999 } })).toThrow(RangeError);
    expect(make({ transmit: { ...ring, enabled: 1 } })).toThrow(TypeError);
    expect(make({ transmit: { ...ring, notify: { fd: 'x' } } })).toThrow(TypeError);
    expect(
      make({ transmit: { ...ring, notify: { mmio: { mapping: pair.mapping, offset: 1, value: 0 } } } }),
    ).toThrow(RangeError);
    expect(make({ maxFrame: 13 })).toThrow(RangeError);
    const worker = new native.Worker({ mode: 'interrupt' });
    const other = new native.Worker({ mode: 'interrupt' });
    await other.connect(pair.peer, new native.SinkQueue(), 'hold');
    expect((await rejectionOf(worker.setEnabled(pair.peer, true, true))).code).toBe('EBUSY');
    await worker.stop();
    await other.stop();
    pair[Symbol.dispose]();
  });
});
