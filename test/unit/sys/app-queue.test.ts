import { describe, expect, it } from 'vitest';
import { type AppQueue, native, type WorkerMode } from '../../../src/sys/native.js';
import { sleep, until } from '../../support/scope.js';
import { errorOf, MAC_A, MAC_B, makePair, openFds } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;
const SLOT = 2048;
const HEADER = 12;

const ready = (queue: AppQueue): Promise<void> => new Promise((resolve) => queue.onReady(resolve));

/** Queues one frame; false when there is no slot. */
function sendFrame(queue: AppQueue, frame: Uint8Array): boolean {
  if (queue.reserve(1) === 0) return false;
  Buffer.from(queue.pool).set(frame, queue.toSend[0]);
  queue.toSend[1] = frame.length;
  queue.send(1);
  return true;
}

const frameOf = (n: number, length = 60): Buffer => {
  const frame = Buffer.alloc(length, n & 0xff);
  frame.writeUInt32LE(n, 14);
  return frame;
};

describe.each(['poll', 'interrupt'] as WorkerMode[])('an app queue with a worker in mode %s', (mode) => {
  it('hands packets there and back through a pair, in order and unaltered', async () => {
    const before = openFds();
    const pair = makePair(64);
    const [a, b] = [0, 1].map(() => new native.AppQueue({ slots: 128, slotBytes: SLOT, burst: 16 })) as [
      AppQueue,
      AppQueue,
    ];
    const worker = new native.Worker({ mode });
    await worker.connect(a, pair.driver, 'hold');
    await worker.connect(pair.peer, b, 'hold');
    await worker.connect(b, pair.peer, 'hold');
    await worker.connect(pair.driver, a, 'hold');
    const count = 2000;
    let [sent, echoed, back] = [0, 0, 0];
    const held: Buffer[] = [];
    while (back < count) {
      while (sent < count && sendFrame(a, frameOf(sent, 60 + (sent % 1400)))) sent++;
      for (let n = b.receive(); n > 0; n = b.receive()) {
        for (let i = 0; i < n; i++) {
          const [offset, length] = [b.received[2 * i]!, b.received[2 * i + 1]!];
          held.push(Buffer.from(Buffer.from(b.pool, offset, length)));
        }
      }
      while (held.length > 0 && sendFrame(b, held[0]!)) {
        held.shift();
        echoed++;
      }
      const n = a.receive();
      for (let i = 0; i < n; i++) {
        const frame = Buffer.from(a.pool, a.received[2 * i], a.received[2 * i + 1]);
        expect(frame.equals(frameOf(back, 60 + (back % 1400))), `packet ${back}`).toBe(true);
        back++;
      }
      if (n === 0) await Promise.race([ready(a), ready(b)]);
    }
    expect([sent, echoed]).toEqual([count, count]);
    expect(a.receive()).toBe(0);
    await worker.stop();
    a.close();
    b.close();
    pair[Symbol.dispose]();
    await until('descriptors closed', 1000, () => openFds() === before);
  });

  it('calls onReady once for packets that come later, and at once for those that wait', async () => {
    const queue = new native.AppQueue({ slots: 8, slotBytes: SLOT });
    const worker = new native.Worker({ mode });
    let calls = 0;
    queue.onReady(() => calls++);
    await sleep(10);
    expect(calls).toBe(0);
    const from = new native.SourceQueue({ bytes: 64, destination: MAC_A, source: MAC_B, count: 3 });
    await worker.connect(from, queue, 'hold');
    await until('the call', 1000, () => calls === 1);
    await until('3 packets', 1000, () => queue.stats().send.packets === 3);
    expect(calls).toBe(1);
    await ready(queue);
    expect(queue.receive()).toBe(3);
    expect(queue.receive()).toBe(0);
    await worker.stop();
    queue.close();
  });

  it('calls onReady when slots came free after a reservation that fell short', async () => {
    const queue = new native.AppQueue({ slots: 8, slotBytes: SLOT });
    const sink = new native.SinkQueue();
    const worker = new native.Worker({ mode });
    expect(queue.reserve(100)).toBe(4);
    for (let i = 0; i < 4; i++) queue.toSend[2 * i + 1] = 60;
    queue.send(4);
    expect(queue.reserve(1)).toBe(0);
    const space = ready(queue);
    await worker.connect(queue, sink, 'hold');
    await space;
    await until('4 packets', 1000, () => sink.stats().send.packets === 4);
    expect(queue.reserve(100)).toBe(4);
    // The worker may sleep by now: what is sent has to wake it.
    await sleep(5);
    queue.toSend[1] = 60;
    queue.send(1);
    await until('5 packets', 1000, () => sink.stats().send.packets === 5);
    await worker.stop();
    queue.close();
  });
});

describe('an app queue', () => {
  it('holds packets back when the program does not take them', async () => {
    const queue = new native.AppQueue({ slots: 8, slotBytes: SLOT });
    const worker = new native.Worker({ mode: 'interrupt' });
    await worker.connect(
      new native.SourceQueue({ bytes: 64, destination: MAC_A, source: MAC_B, count: 100, stream: 3 }),
      queue,
      'hold',
    );
    let got = 0;
    while (got < 100) {
      await ready(queue);
      for (let n = queue.receive(); n > 0; n = queue.receive()) got += n;
    }
    expect(got).toBe(100);
    const { packets, drops } = queue.stats().send;
    expect([packets, drops['no-buffers']]).toEqual([100, 0]);
    await worker.stop();
    queue.close();
  });

  it('shows each packet its own header, also in a slot whose packet before had another', async () => {
    const [a, b] = [native, native].map(({ AppQueue }) => new AppQueue({ slots: 6, slotBytes: SLOT })) as [
      AppQueue,
      AppQueue,
    ];
    const worker = new native.Worker({ mode: 'interrupt' });
    await worker.connect(a, b, 'hold');
    const checksum = Buffer.from([1, 0, 0, 0, 0, 0, 14, 0, 16, 0, 0, 0]);
    // Three slots a direction: each has in turn a packet with a checksum to complete and one without.
    for (let n = 0; n < 12; n++) {
      await until('a slot', 1000, () => a.reserve(1) === 1);
      if (n % 2 === 0) Buffer.from(a.pool, a.toSend[0]! - HEADER, HEADER).set(checksum);
      a.toSend[1] = 60;
      a.send(1);
      await until('a packet', 1000, () => b.receive() === 1);
      const header = Buffer.from(b.pool, b.received[0]! - HEADER, HEADER);
      expect(header, `packet ${n}`).toEqual(n % 2 === 0 ? checksum : Buffer.alloc(HEADER));
    }
    await worker.stop();
    for (const queue of [a, b]) queue.close();
  });

  it('drops frames that do not fit a slot, and headers that make no sense', async () => {
    const queue = new native.AppQueue({ slots: 16, slotBytes: 64 + HEADER });
    const worker = new native.Worker({ mode: 'poll' });
    const long = new native.SourceQueue({ bytes: 65, destination: MAC_A, source: MAC_B, count: 10 });
    await worker.connect(long, queue, 'hold');
    await until('drops', 1000, () => queue.stats().send.drops['too-long'] === 10);
    const sink = new native.SinkQueue();
    await worker.connect(queue, sink, 'hold');
    expect(queue.reserve(3)).toBe(3);
    const pool = Buffer.from(queue.pool);
    for (let i = 0; i < 3; i++) {
      expect(queue.toSend[2 * i + 1]).toBe(64);
      expect(
        pool.subarray(queue.toSend[2 * i]! - HEADER, queue.toSend[2 * i]).equals(Buffer.alloc(HEADER)),
      ).toBe(true);
    }
    pool.writeUInt8(1, queue.toSend[2]! - HEADER); // NEEDS_CSUM …
    pool.writeUInt16LE(4000, queue.toSend[2]! - HEADER + 6); // … outside of the frame
    queue.send(3);
    await until('all three', 1000, () => sink.stats().send.packets === 2);
    expect(queue.stats().receive.drops['bad-header']).toBe(1);
    await until('free slots', 1000, () => queue.reserve(8) === 8);
    await worker.stop();
    queue.close();
  });

  it('gives packets that were not delivered to the next worker', async () => {
    const queue = new native.AppQueue({ slots: 64, slotBytes: SLOT });
    const full = new native.AppQueue({ slots: 4, slotBytes: SLOT });
    const first = new native.Worker({ mode: 'poll' });
    await first.connect(queue, full, 'hold');
    queue.reserve(10);
    for (let i = 0; i < 10; i++) queue.toSend[2 * i + 1] = 60;
    queue.send(10);
    await until('two delivered', 1000, () => full.stats().send.packets === 2);
    await first.detach(queue);
    await first.stop();
    const second = new native.Worker({ mode: 'poll' });
    const sink = new native.SinkQueue();
    await second.connect(queue, sink, 'hold');
    await until('the rest', 1000, () => sink.stats().send.packets === 8);
    await second.stop();
  });

  it('checks its arguments', () => {
    const make = (options: object) => () =>
      new native.AppQueue(bad({ slots: 8, slotBytes: SLOT, ...options }));
    expect(make({ slots: 1 })).toThrow(RangeError);
    expect(make({ slotBytes: 63 })).toThrow(RangeError);
    expect(make({ burst: 0 })).toThrow(RangeError);
    expect(make({ slots: 1 << 20, slotBytes: 1 << 17 })).toThrow(RangeError);
    expect(make({ slots: '8' })).toThrow(TypeError);
    const queue = make({})();
    expect(() => queue.reserve(-1)).toThrow(RangeError);
    expect(() => queue.send(1)).toThrow(RangeError);
    queue.reserve(2);
    queue.toSend[1] = 13;
    expect(() => queue.send(1)).toThrow(RangeError);
    queue.toSend[1] = SLOT - HEADER + 1;
    expect(() => queue.send(1)).toThrow(RangeError);
    queue.toSend[1] = 60;
    queue.toSend[0]! += 1;
    expect(() => queue.send(1)).toThrow(RangeError);
    queue.toSend[0]! -= 1;
    queue.send(1);
    expect(() => queue.onReady(bad(0))).toThrow(TypeError);
  });

  it('leaves its memory to those who still look at it', () => {
    const queue = new native.AppQueue({ slots: 8, slotBytes: SLOT });
    const { pool, received } = queue;
    new Uint8Array(pool).fill(7);
    queue.close();
    queue.close();
    expect(new Uint8Array(pool)[100]).toBe(7);
    expect(received).toHaveLength(512);
    expect(errorOf(() => queue.receive()).code).toBe('EBADF');
  });
});
