import { describe, expect, it } from 'vitest';
import {
  native,
  type PortQueue,
  type Worker,
  type WorkerEvent,
  type WorkerMode,
} from '../../../src/sys/native.js';
import { until } from '../../support/scope.js';
import { errorOf, MAC_A, MAC_B, openFds, rejectionOf } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;
const source = (more: object = {}) =>
  new native.SourceQueue({ bytes: 64, destination: MAC_A, source: MAC_B, ...more });

/** The next event of a worker. */
const nextEvent = (worker: Worker): Promise<WorkerEvent> => new Promise((resolve) => worker.onEvent(resolve));

async function withWorker(mode: WorkerMode, body: (worker: Worker) => Promise<void>): Promise<void> {
  const worker = new native.Worker({ mode, name: `test ${mode}` });
  try {
    await body(worker);
  } finally {
    await worker.stop();
  }
}

describe.each(['poll', 'interrupt', 'adaptive'] as const)('a worker in mode %s', (mode) => {
  it('moves a stream from source to sink without a fault, and tells of its end', async () => {
    await withWorker(mode, async (worker) => {
      const from = source({ count: 100_003, stream: 9 });
      const to = new native.SinkQueue({ stream: 9 });
      const end = nextEvent(worker);
      expect(await worker.connect(from, to, 'hold')).toBe(0);
      expect(await end).toMatchObject({ queue: from, direction: 'receive', event: 'end' });
      expect(to.verified()).toEqual({ packets: 100_003, lost: 0, reordered: 0, altered: 0, foreign: 0 });
      const { receive } = from.stats();
      expect([receive.packets, receive.bytes]).toEqual([100_003, 100_003 * 64]);
      expect(to.stats().send.packets).toBe(100_003);
      expect(receive.bursts.reduce((sum, n) => sum + n)).toBe(Math.ceil(100_003 / 64));
    });
  });

  it('sleeps when nothing can come, whatever its mode, and stops', async () => {
    const before = openFds();
    const worker = new native.Worker({ mode });
    await until('sleep', 1000, () => worker.stats().state === 'sleeping');
    await worker.stop();
    await worker.stop();
    expect(worker.stats().state).toBe('stopped');
    expect(openFds()).toBe(before);
  });
});

describe('lanes', () => {
  it('are refused when one already receives from the queue, or another worker has it', async () => {
    await withWorker('poll', (first) =>
      withWorker('poll', async (second) => {
        const [from, to, other] = [source(), new native.SinkQueue(), new native.SinkQueue()];
        await first.connect(from, to, 'hold');
        expect((await rejectionOf(first.connect(from, other, 'hold'))).code).toBe('EBUSY');
        expect((await rejectionOf(second.connect(from, other, 'hold'))).code).toBe('EBUSY');
        expect((await rejectionOf(second.connect(source(), to, 'hold'))).code).toBe('EBUSY');
        other.close();
        await first.detach(from);
        await first.detach(to);
        await second.connect(from, to, 'drop');
      }),
    );
  });

  it('let several sources feed one sink', async () => {
    await withWorker('poll', async (worker) => {
      const sink = new native.SinkQueue();
      const sources = [1, 2, 3].map((stream) => source({ stream, count: 1000 }));
      const lanes = await Promise.all(sources.map((from) => worker.connect(from, sink, 'hold')));
      expect(new Set(lanes).size).toBe(3);
      await until('all packets', 2000, () => sink.stats().send.packets === 3000);
    });
  });

  it('count what a sink does not know as foreign', async () => {
    await withWorker('poll', async (worker) => {
      const sink = new native.SinkQueue({ stream: 1 });
      await worker.connect(source({ stream: 2, count: 10 }), sink, 'hold');
      await worker.connect(source({ count: 5 }), sink, 'hold');
      await until('all packets', 2000, () => sink.stats().send.packets === 15);
      expect(sink.verified()).toEqual({ packets: 0, lost: 0, reordered: 0, altered: 0, foreign: 15 });
    });
  });
});

describe('detach', () => {
  it('stops the flow for good, while the source runs at line rate', async () => {
    await withWorker('poll', async (worker) => {
      const from = source();
      const to = new native.SinkQueue();
      await worker.connect(from, to, 'hold');
      await until('traffic', 2000, () => to.stats().send.packets > 1000);
      expect(errorOf(() => from.close()).code).toBe('EBUSY');
      await worker.detach(to);
      const { packets } = to.stats().send;
      await until('sleep', 1000, () => worker.stats().state === 'sleeping');
      expect(to.stats().send.packets).toBe(packets);
      to.close();
      to.close();
      expect(errorOf(() => to.stats()).code).toBe('EBADF');
      expect(errorOf(() => from.close()).code).toBe('EBUSY');
      await worker.detach(from);
      from.close();
    });
  });

  it('of a queue that the worker never had resolves', async () => {
    await withWorker('interrupt', async (worker) => {
      await worker.detach(source());
    });
  });

  it('can be asked for before connect has resolved', async () => {
    await withWorker('interrupt', async (worker) => {
      const from = source();
      const to = new native.SinkQueue();
      const connected = worker.connect(from, to, 'hold');
      expect(errorOf(() => from.close()).code).toBe('EBUSY');
      await Promise.all([connected, worker.detach(from), worker.detach(to)]);
      from.close();
      to.close();
    });
  });
});

describe('stop', () => {
  it('detaches everything', async () => {
    const worker = new native.Worker({ mode: 'poll' });
    const from = source();
    const to = new native.SinkQueue();
    await worker.connect(from, to, 'hold');
    await worker.stop();
    from.close();
    to.close();
    const error = await rejectionOf(worker.connect(source(), new native.SinkQueue(), 'hold'));
    expect(error.code).toBe('ESHUTDOWN');
    await worker.detach(source());
  });
});

describe('arguments', () => {
  it('of workers are checked', async () => {
    const before = openFds();
    expect(() => new native.Worker({ mode: bad('fast') })).toThrow(RangeError);
    expect(() => new native.Worker(bad('poll'))).toThrow(TypeError);
    expect(() => new native.Worker({ mode: 'poll', name: 'sixteen letters!' })).toThrow(RangeError);
    expect(() => new native.Worker({ mode: 'poll', spinMicroseconds: -1 })).toThrow(RangeError);
    expect(errorOf(() => new native.Worker({ mode: 'poll', cpu: 1023 })).code).toBe('EINVAL');
    await until('descriptors closed', 1000, () => {
      globalThis.gc?.();
      return openFds() <= before;
    });
    await withWorker('interrupt', async (worker) => {
      const sink = new native.SinkQueue();
      expect(() => worker.connect(bad<PortQueue>({}), sink, 'hold')).toThrow(TypeError);
      expect(() => worker.connect(bad<PortQueue>(worker), sink, 'hold')).toThrow(TypeError);
      expect(() => worker.connect(source(), sink, bad('keep'))).toThrow(RangeError);
      expect(() => worker.detach(bad(undefined))).toThrow(TypeError);
      expect(() => worker.setEnabled(bad(sink), true, true)).toThrow(TypeError);
      expect(() => worker.onEvent(bad(1))).toThrow(TypeError);
      sink.close();
      expect(errorOf(() => worker.connect(source(), sink, 'hold')).code).toBe('EBADF');
    });
  });

  it('of sources and sinks are checked', () => {
    expect(() => source({ bytes: 13 })).toThrow(RangeError);
    expect(() => source({ bytes: 65_536 })).toThrow(RangeError);
    expect(() => source({ bytes: 37, stream: 1 })).toThrow(RangeError);
    expect(() => source({ count: 0 })).toThrow(RangeError);
    expect(() => source({ destination: Buffer.alloc(5) })).toThrow(RangeError);
    expect(() => source({ source: 'aa' })).toThrow(TypeError);
    expect(() => source({ stream: 2 ** 32 })).toThrow(RangeError);
    expect(() => new native.SinkQueue({ stream: bad('1') })).toThrow(TypeError);
  });
});
