import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { NetDevice } from '../../../src/vhost-pci/net-device.js';
import { Rig } from './rig.js';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

const settled = (promise: Promise<unknown>, ms = 30_000): Promise<string> =>
  Promise.race([
    promise.then(
      () => 'resolved',
      (error: Error) => error.message,
    ),
    sleep(ms, 'pending'),
  ]);

describe('the packet API', () => {
  it('tells a sender of room although the program waits for packets at the same time', async () => {
    await rig.device();
    await using net = new NetDevice(`vfio-user:${rig.vfioUser}`, { slots: 64, mode: 'interrupt' });
    net.onBurst(() => {});
    const peer = await rig.startedPeer();
    await net.peer();
    const frame = Buffer.alloc(64, 1);
    // Until the peer's ring and the pool are full: nobody takes anything yet.
    for (let idle = 0; idle < 20; ) {
      if (net.send([frame]) === 0) {
        idle++;
        await sleep(5);
      }
    }
    const writable = net.writable();
    const worker = new native.Worker({ mode: 'interrupt' });
    const sink = new native.SinkQueue({});
    await worker.connect(peer.queues[0]!, sink, 'hold');
    const outcome = await settled(writable);
    await worker.detach(peer.queues[0]!);
    await worker.stop();
    sink.close();
    expect(outcome).toBe('resolved');
    expect(net.send([frame])).toBe(1);
  });

  it('does not let wait for a peer that cannot come any more', async () => {
    const closed = new NetDevice(`vfio-user:${rig.vfioUser}`);
    const before = settled(closed.peer());
    await closed.close();
    expect(await before).toBe('the device was closed');
    expect(await settled(closed.peer())).toBe('the device was closed');

    await using useless = new NetDevice('vfio-user:/etc/passwd');
    const wait = useless.peer();
    expect(await settled(wait)).toMatch(/is not a socket/);
    expect(await settled(useless.peer())).toMatch(/is not a socket/);
  });
});
