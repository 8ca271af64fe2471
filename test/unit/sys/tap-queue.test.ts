/** The engine on a real TAP interface, where the machine lets a test make one. */
import { spawnSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { closeSync, constants, openSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native, type PortQueue, type Worker } from '../../../src/sys/native.js';
import { Tap } from '../../../src/sys/tap.js';
import { until } from '../../support/scope.js';
import { errorOf, MAC_A, MAC_B } from './helpers.js';

const bad = <T>(value: unknown): T => value as T;
const name = `vpt${process.pid % 1_000_000}`;
/** 198.18.0.0/15 is for tests. A network of four addresses for each process: another run may have its own beside it. */
const net = (process.pid % 32_768) << 2;
const host = (n: number): string => `198.${18 + (net >> 16)}.${(net >> 8) & 0xff}.${(net & 0xff) | n}`;

function missing(): string | undefined {
  try {
    new Tap(name)[Symbol.dispose]();
    return spawnSync('ip', ['-V']).status === 0 ? undefined : 'ip is missing';
  } catch (error) {
    return (error as Error).message;
  }
}

describe.skipIf(missing() !== undefined)('a TAP queue', () => {
  let tap: Tap;
  let worker: Worker;
  let queue: PortQueue;
  beforeEach(() => {
    tap = new Tap(name);
    worker = new native.Worker({ mode: 'interrupt' });
    queue = new native.TapQueue({ fd: tap.queueFd(0) });
  });
  afterEach(async () => {
    await worker.stop();
    queue.close(); // its duplicate of the fd keeps the interface
    tap[Symbol.dispose]();
  });

  it('drops packets while the interface is down, and delivers them once it is up', async () => {
    const source = () => new native.SourceQueue({ bytes: 64, destination: MAC_A, source: MAC_B, count: 10 });
    await worker.connect(source(), queue, 'drop');
    await until('drops', 2000, () => {
      const { drops } = queue.stats().send;
      return drops['device-error'] + drops['no-buffers'] === 10;
    });
    tap.setUp();
    await worker.connect(source(), queue, 'hold');
    await until('packets', 2000, () => queue.stats().send.packets === 10);
    expect(queue.stats().send.broken).toBeUndefined();
  });

  it('receives what the kernel sends, while the worker sleeps in between', async () => {
    const app = new native.AppQueue({ slots: 64, slotBytes: 2048 });
    await worker.connect(queue, app, 'hold');
    tap.setUp();
    expect(spawnSync('ip', ['address', 'add', `${host(1)}/30`, 'dev', name]).status).toBe(0);
    await until('sleep', 1000, () => worker.stats().state === 'sleeping');
    // Nobody has this address, so that the kernel asks for it by ARP.
    const socket = createSocket('udp4');
    socket.on('error', () => {});
    const asked = () => {
      socket.send('x', 9, host(2));
      for (let n = app.receive(); n > 0; n = app.receive())
        for (let i = 0; i < n; i++) {
          const frame = Buffer.from(app.pool, app.received[2 * i], app.received[2 * i + 1]);
          if (frame.readUInt16BE(12) === 0x0806 && frame.subarray(38, 42).join('.') === host(2)) return true;
        }
      return undefined;
    };
    await until('an ARP request', 3000, asked);
    socket.close();
    expect(queue.stats().receive).toMatchObject({ broken: undefined });
    expect(queue.stats().receive.packets).toBe(app.stats().send.packets);
  });

  it('checks its arguments', () => {
    expect(() => new native.TapQueue(bad({}))).toThrow(TypeError);
    expect(() => new native.TapQueue({ fd: tap.queueFd(0), maxFrame: 1 })).toThrow(RangeError);
    expect(errorOf(() => new native.TapQueue({ fd: 99_999 })).code).toBe('EBADF');
    const file = openSync('/proc/self/exe', constants.O_RDONLY);
    expect(errorOf(() => new native.TapQueue({ fd: file })).code).toBe('EPERM');
    closeSync(file);
  });
});
