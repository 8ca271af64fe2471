/** The driver against the device, with a real peer: connections, in window and adopt mode, and what ends them. */
import { existsSync, statSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { PciHandle } from '../../../src/pci/handle.js';
import { IRQ } from '../../../src/pci/handle.js';
import { bits, hasBit } from '../../../src/util/flags.js';
import { openDevice } from '../../../src/vhost-pci/driver/device-name.js';
import { SinkPort, SourcePort } from '../../../src/vhost-pci/driver/ports.js';
import { PACKET_FEATURES } from '../../../src/vhost-pci/features.js';
import { NET_FEATURE } from '../../../src/virtio-net/features.js';
import { exchange, isOff, isOn, MIB, Rig, Traffic, until, whole } from './rig.js';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

describe('a connection', () => {
  it('is made by memory, address, rings and ON, in this order, and carries packets', async () => {
    await rig.device();
    const receiver = rig.receiver();
    const peer = await rig.startedPeer();
    await isOn(receiver);
    expect(rig.messages()).toEqual(['> mem-info-bar', '< mem-info-gva', '> virtq-info', '> connection on']);
    expect(await exchange(peer, 500)).toEqual([whole(500)]);
    expect(receiver.errors()).toEqual([]);
  });

  it('is made in whatever order the three come', async () => {
    const receiver = rig.receiver();
    await until('it waits', 2000, () => rig.logged(/waiting for a device process/));
    await rig.device();
    const peer = await rig.startedPeer();
    await isOn(receiver);
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
  });

  it('ends with the rings, the driver telling where it was, and goes on from there', async () => {
    await rig.device();
    const receiver = rig.receiver();
    const peer = await rig.startedPeer();
    await isOn(receiver);
    for (let round = 1; round <= 3; round++) {
      await exchange(peer, 100);
      const at = rig.messages().length;
      const bases = await peer.stop();
      await isOff(receiver, round);
      expect(rig.messages().slice(at)).toEqual(['> connection off', '< virtq-info', '< connection off']);
      // 100 frames went out each time; as many buffers were used for those that came back.
      expect([...bases]).toEqual([
        [0, 100 * round],
        [1, 100 * round],
      ]);
      await peer.start();
      await isOn(receiver, round + 1);
    }
    expect(await exchange(peer, 100)).toEqual([whole(100)]);
  });

  it('keeps its totals over the connections of a peer', async () => {
    await rig.device();
    const receiver = rig.receiver({ port: new SinkPort() });
    for (let round = 1; round <= 2; round++) {
      const peer = await rig.startedPeer();
      await isOn(receiver, round);
      const traffic = await Traffic.start(peer, { count: 100 });
      const packets = () => receiver.endpoint.stats().queues[0]!.receive.packets;
      await until('all of them', 5000, () => packets() === 100 * round);
      await traffic[Symbol.asyncDispose]();
      await peer[Symbol.asyncDispose]();
      await isOff(receiver, round);
    }
    expect(receiver.endpoint.stats()).toMatchObject({
      connected: false,
      queues: [{ pair: 0, receive: { packets: 200, bytes: 200 * 200 }, send: { packets: 0 } }],
    });
  });

  it('with two pairs is served by two workers', async () => {
    await rig.device({ queuePairs: 2 });
    const receiver = rig.receiver({ workers: 2 });
    const peer = await rig.startedPeer({ queuePairs: 2, memoryBytes: 4 * MIB });
    await isOn(receiver);
    expect(receiver.events[0]).toMatchObject({ event: 'connection', state: 'on', pairs: 2 });
    expect(await exchange(peer, 300)).toEqual([whole(300), whole(300)]);
    const { queues, workers } = receiver.endpoint.stats();
    expect(queues.map((q) => [q.receive.packets, q.send.packets])).toEqual([
      [300, 300],
      [300, 300],
    ]);
    expect(workers.map((w) => w.busyRounds > 0)).toEqual([true, true]);
  });

  it('goes on with one pair when the other is stopped', async () => {
    await rig.device({ queuePairs: 2 });
    const receiver = rig.receiver();
    const peer = await rig.startedPeer({ queuePairs: 2 });
    await isOn(receiver);
    await peer.frontEnd.stopRing(2);
    await peer.frontEnd.stopRing(3);
    await isOn(receiver, 2);
    await until('one pair', 2000, () => {
      const last = receiver.events.at(-1);
      return last?.event === 'connection' && last.state === 'on' && last.pairs === 1;
    });
  });
});

describe('memory', () => {
  it('in adopt mode is the peer’s own, and the function is there once it came', async () => {
    const device = await rig.device({ adopt: true });
    const receiver = rig.receiver();
    const peer = await rig.peer({ adopt: true });
    expect(existsSync(rig.vfioUser)).toBe(false);
    await peer.start();
    await isOn(receiver);
    expect(device.function?.window.size).toBe(4 * MIB);
    expect(await exchange(peer, 100)).toEqual([whole(100)]);
  });

  it('in adopt mode may be another when the peer comes again', async () => {
    await rig.device({ adopt: true });
    const receiver = rig.receiver();
    const first = await rig.startedPeer({ adopt: true });
    await isOn(receiver);
    await first[Symbol.asyncDispose]();
    await isOff(receiver);
    // Its memory is new to the receiver: the function goes and comes again, and the driver with it.
    for (let round = 2; round <= 4; round++) {
      const peer = await rig.startedPeer({ adopt: true, memoryBytes: 2 * round * MIB });
      await isOn(receiver, round);
      expect(await exchange(peer, 50)).toEqual([whole(50)]);
      await peer[Symbol.asyncDispose]();
      await isOff(receiver, round);
    }
    expect(receiver.errors()).toEqual([]);
  });

  it('that is not the window’s is refused, with what to do', async () => {
    await rig.device();
    rig.receiver();
    const peer = await rig.peer({ adopt: true });
    await expect(peer.start()).rejects.toThrow();
    await peer.disconnected;
    expect(rig.logged(/is not .*memory: start its QEMU with -object memory-backend-file.*share=on/)).toBe(
      true,
    );
    await peer[Symbol.asyncDispose]();
    const other = await rig.startedPeer();
    expect(await exchange(other, 10)).toEqual([whole(10)]);
  });
});

describe('features', () => {
  it('that the driver accepts bound those of the peer', async () => {
    await rig.device();
    const accept = PACKET_FEATURES & ~bits(NET_FEATURE.MRG_RXBUF, NET_FEATURE.CSUM);
    const receiver = rig.receiver({ accept });
    await until('the driver', 2000, () => rig.logged(/client connected/));
    await until('a peer is offered less', 5000, async () => {
      const peer = await rig.peer();
      const { features } = peer;
      await peer[Symbol.asyncDispose]();
      return !hasBit(features, NET_FEATURE.MRG_RXBUF);
    });
    const peer = await rig.startedPeer();
    await isOn(receiver);
    expect(hasBit(peer.features, NET_FEATURE.CSUM)).toBe(false);
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
  });

  it('that the peer has and the driver does not take: the peer is disconnected, and then offered what is left', async () => {
    await rig.device();
    const before = await rig.startedPeer();
    expect(hasBit(before.features, NET_FEATURE.MRG_RXBUF)).toBe(true);
    const receiver = rig.receiver({ accept: PACKET_FEATURES & ~bits(NET_FEATURE.MRG_RXBUF) });
    await before.disconnected;
    expect(rig.logged(/does not accept MRG_RXBUF, which the peer has negotiated/)).toBe(true);
    await before[Symbol.asyncDispose]();
    const after = await rig.startedPeer();
    expect(hasBit(after.features, NET_FEATURE.MRG_RXBUF)).toBe(false);
    await isOn(receiver);
    expect(await exchange(after, 50)).toEqual([whole(50)]);
  });
});

describe('a driver that leaves', () => {
  it('takes the peer’s link down, which comes up with the next driver', async () => {
    await rig.device();
    const first = rig.receiver();
    const peer = await rig.startedPeer();
    await isOn(first);
    const at = rig.messages().length;
    await first.endpoint.close();
    expect(rig.messages().slice(at)).toEqual(['< virtq-info', '< connection off', '> connection off']);
    await peer.disconnected;
    expect(first.events.at(-1)).toMatchObject({ event: 'connection', state: 'off' });
    await peer[Symbol.asyncDispose]();
    await expect(rig.peer()).rejects.toThrow(/ENOENT|no such/i);

    const second = rig.receiver();
    const again = await until('a peer is admitted', 5000, () =>
      existsSync(rig.vhostUser) ? rig.peer() : undefined,
    );
    await again.start();
    await isOn(second);
    expect(await exchange(again, 50)).toEqual([whole(50)]);
  });

  it('without a peer leaves at once', async () => {
    await rig.device();
    const { endpoint, events } = rig.receiver();
    await until('the driver', 2000, () => rig.logged(/client connected/));
    await endpoint.close();
    expect(events).toEqual([]);
  });
});

describe('a device that goes', () => {
  it('is waited for, and served again when it is back', async () => {
    const device = await rig.device();
    const receiver = rig.receiver();
    for (let round = 1; round <= 3; round++) {
      const peer = await rig.startedPeer();
      await isOn(receiver, round);
      expect(await exchange(peer, 20)).toEqual([whole(20)]);
      await (round === 1 ? device : current)[Symbol.asyncDispose]();
      await isOff(receiver, round);
      await peer.disconnected;
      await peer[Symbol.asyncDispose]();
      current = await rig.device();
    }
    expect(receiver.errors()).toEqual([]);
  });
  let current: Awaited<ReturnType<Rig['device']>>;
});

describe('interrupts', () => {
  /** A device that seems to have less interrupts than it has. */
  function limited(handle: PciHandle, vectors: number): PciHandle {
    return {
      name: handle.name,
      gone: handle.gone,
      regionInfo: (r) => handle.regionInfo(r),
      read: (r, o, l) => handle.read(r, o, l),
      write: (r, o, d) => handle.write(r, o, d),
      map: (r, a, w) => handle.map(r, a, w),
      notifyTarget: (r, o, v) => handle.notifyTarget(r, o, v),
      mapDma: (...a) => handle.mapDma(...a),
      unmapDma: (...a) => handle.unmapDma(...a),
      irqCount: async (i) => Math.min(vectors, i === IRQ.MSIX ? await handle.irqCount(i) : 0),
      setIrqs: (i, f) => handle.setIrqs(i, f),
      reset: () => handle.reset(),
      [Symbol.asyncDispose]: () => handle[Symbol.asyncDispose](),
    };
  }

  for (const [what, device, vectors] of [
    ['by MSI', { interrupts: 'msi' }, undefined],
    ['by one vector for everything', {}, 1],
    ['by none, looking for messages now and then', {}, 0],
  ] as const)
    it(`${what} serve two pairs`, async () => {
      await rig.device({ queuePairs: 2, ...device });
      const open = openDevice(`vfio-user:${rig.vfioUser}`, rig.log);
      const receiver = rig.receiver({
        workers: 2,
        mode: vectors === 0 ? 'poll' : 'interrupt',
        open: async (signal) => {
          const handle = await open(signal);
          return vectors === undefined ? handle : limited(handle, vectors);
        },
      });
      const peer = await rig.startedPeer({ queuePairs: 2 });
      await isOn(receiver);
      expect(await exchange(peer, 100)).toEqual([whole(100), whole(100)]);
      await peer.stop();
      await isOff(receiver);
    });
});

describe('ports', () => {
  it('source sends to the peer as fast as it takes, over disconnections', async () => {
    await rig.device();
    const receiver = rig.receiver({
      port: new SourcePort({ bytes: 100, source: Buffer.from([2, 0, 0, 0, 0, 1]) }),
    });
    for (let round = 1; round <= 2; round++) {
      const peer = await rig.startedPeer();
      await isOn(receiver, round);
      const traffic = await Traffic.start(peer, { count: 1 });
      await until('many of them', 5000, () => traffic.results()[0]!.foreign > 2000);
      await traffic[Symbol.asyncDispose]();
      await peer[Symbol.asyncDispose]();
      await isOff(receiver, round);
    }
  });
});

describe('the window’s file', () => {
  it('is never shrunk or removed', async () => {
    const device = await rig.device();
    const receiver = rig.receiver();
    await rig.startedPeer();
    await isOn(receiver);
    await device[Symbol.asyncDispose]();
    await isOff(receiver);
    expect(statSync(rig.memoryFile).size).toBe(4 * MIB);
  });
});
