/** The peer's own eventfds in the driver's hands (docs/protocol.md, P7): who waits on what, and every way back. */
import { closeSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native, type Relay } from '../../../src/sys/native.js';
import type { DeviceProcess } from '../../../src/vhost-pci/device/process.js';
import type { SharedRing } from '../../../src/vhost-user/front-end.js';
import { RawDriver } from './raw-driver.js';
import { exchange, isOff, isOn, Rig, Traffic, until, whole } from './rig.js';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

const relayed = (device: DeviceProcess): ReturnType<Relay['stats']> => device.function!.notifications.stats();

function eventfd(): number {
  const fd = native.eventfd();
  rig.defer(() => closeSync(fd));
  return fd;
}

/** Resolves when the driver has confirmed what the device told it of moved eventfds. */
async function confirmed(from: number): Promise<void> {
  await until('the driver has taken them', 5000, () => {
    const since = rig.messages().slice(from);
    return since.includes('> virtq-info') && since.at(-1) === '< virtq-info';
  });
}

describe('the peer’s eventfds', () => {
  it('carry packets without the device process, also of several pairs', async () => {
    const device = await rig.device({ queuePairs: 5 });
    const receiver = rig.receiver();
    const peer = await rig.startedPeer({ queuePairs: 5 });
    await isOn(receiver);
    const before = relayed(device);
    expect(await exchange(peer, 300)).toEqual(Array(5).fill(whole(300)));
    expect(relayed(device)).toEqual(before);
    expect(receiver.errors()).toEqual([]);
  });

  it('stay with the device process for workers that poll, and for who wants it so', async () => {
    const device = await rig.device();
    for (const options of [{ mode: 'poll' }, { signals: 'relay' }] as const) {
      const receiver = rig.receiver(options);
      const peer = await until('a peer is admitted', 5000, () => rig.startedPeer().catch(() => undefined));
      await isOn(receiver);
      const before = relayed(device);
      expect(await exchange(peer, 50)).toEqual([whole(50)]);
      const after = relayed(device);
      expect(after.doorbells + after.forwarded).toBeGreaterThan(before.doorbells + before.forwarded);
      await receiver.endpoint.close();
      await peer[Symbol.asyncDispose]();
    }
  });

  it('that are replaced while ON are taken anew: the old ones are not used, the new call is signalled once', async () => {
    const device = await rig.device();
    const receiver = rig.receiver();
    const peer = await rig.startedPeer();
    await isOn(receiver);
    expect(await exchange(peer, 20)).toEqual([whole(20)]);
    const call = eventfd();
    let at = rig.messages().length;
    await peer.frontEnd.setCall(1, call);
    await confirmed(at);
    await until('the new call is signalled', 5000, () => native.eventfdTake(call) === 1);

    const kick = eventfd();
    at = rig.messages().length;
    await peer.frontEnd.setKick(1, kick);
    await confirmed(at);
    const { forwarded } = relayed(device);
    native.eventfdSignal(kick);
    await until('the driver takes the kick', 5000, () => native.eventfdTake(kick) === 0);
    // What the peer sends, it still kicks where it did: only a kick of the new one brings it.
    await using traffic = await Traffic.start(peer, { count: 30 });
    await until('all frames are back', 10_000, () => {
      native.eventfdSignal(kick);
      return traffic.results()[0]!.packets >= 30;
    });
    expect(native.eventfdTake(call)).toBeGreaterThan(0);
    expect(relayed(device).forwarded).toBe(forwarded);
    expect(receiver.events).toHaveLength(1);
    expect(receiver.errors()).toEqual([]);
  });

  it('may be replaced again and again under traffic: no signal gets lost', async () => {
    const device = await rig.device();
    const receiver = rig.receiver();
    const peer = await rig.peer();
    const { frontEnd } = peer;
    const start = frontEnd.start.bind(frontEnd);
    let rings: readonly SharedRing[] = [];
    frontEnd.start = (regions, shared) => {
      rings = shared;
      return start(regions, shared);
    };
    await peer.start();
    await isOn(receiver);
    await using traffic = await Traffic.start(peer);
    const packets = (): number => traffic.results()[0]!.packets;
    for (let round = 0; round < 40; round++) {
      // The same eventfds for the peer; for the others they might be new ones.
      const ring = round % 2;
      await frontEnd.setCall(ring, rings[ring]!.callFd);
      await frontEnd.setKick(ring, rings[ring]!.kickFd as number);
      const from = packets();
      await until('packets go on', 10_000, () => packets() > from + 200);
    }
    await until('the driver has taken the last', 5000, () => rig.messages().at(-1) === '< virtq-info');
    const { forwarded } = relayed(device);
    const from = packets();
    await until('packets go on', 10_000, () => packets() > from + 200);
    expect(relayed(device).forwarded).toBe(forwarded);
    expect(traffic.results()).toEqual([whole(expect.any(Number) as unknown as number)]);
    expect(receiver.events).toHaveLength(1);
  });

  it('go back to the relay with the driver: a next one without them is served', async () => {
    const device = await rig.device();
    const first = rig.receiver();
    const peer = await rig.startedPeer();
    await isOn(first);
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
    const before = relayed(device);
    await peer.stop();
    await isOff(first);
    await first.endpoint.close();
    await peer.disconnected;
    const second = rig.receiver({ signals: 'relay' });
    const next = await until('a peer is admitted', 5000, () => rig.startedPeer().catch(() => undefined));
    await isOn(second);
    expect(await exchange(next, 50)).toEqual([whole(50)]);
    expect(relayed(device).forwarded).toBeGreaterThan(before.forwarded);
  });

  it('are handed out between ON and OFF only', async () => {
    const device = await rig.device();
    const raw = await RawDriver.start(rig);
    expect(await raw.client.takeRings(2)).toEqual([]);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    const rings = await raw.client.takeRings(4);
    expect(rings).toHaveLength(2);
    for (const { kick, call } of rings) {
      expect(kick).toBeDefined();
      expect(call).toBeDefined();
    }
    const stopping = peer.stop();
    expect(await raw.next()).toEqual({ kind: 'connection', on: false });
    expect(await raw.client.takeRings(2)).toEqual([]);
    for (const { kick, call } of rings) for (const fd of [kick, call]) closeSync(fd as number);
    await raw.send({ kind: 'connection', on: false });
    await stopping;
    expect(relayed(device).forwarded).toBe(0);
  });
});
