/** What the peer's front-end asks for while it is connected: enable, MTU, announcement; down to the receiving port. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { EchoPort, type PeerFacts } from '../../../src/vhost-pci/driver/ports.js';
import type { NetPeer } from '../../../src/virtio-net/peer.js';
import { exchange, isOn, type Receiver, Rig, Traffic, until, whole } from './rig.js';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

/** Sends frames, all of which are taken and none comes back. */
async function discarded(peer: NetPeer, receiver: Receiver, count: number): Promise<void> {
  await using traffic = await Traffic.start(peer, { count });
  const drops = (): number | undefined => receiver.endpoint.stats().queues[0]?.receive.drops.disabled;
  await until('all are discarded', 2000, () => drops() === count);
  expect(traffic.results()).toEqual([whole(0)]);
}

describe('the peer’s front-end', () => {
  it('allows and forbids rings while ON', async () => {
    await rig.device();
    const receiver = rig.receiver();
    const peer = await rig.startedPeer();
    await isOn(receiver);
    await exchange(peer, 20);
    const at = rig.messages().length;
    await peer.frontEnd.setEnabled(1, false);
    await until('the driver has it', 2000, () => rig.messages().length >= at + 2);
    expect(rig.messages().slice(at)).toEqual(['> virtq-info', '< virtq-info']);
    // A disabled transmitq is drained and discarded.
    await discarded(peer, receiver, 20);
    await peer.frontEnd.setEnabled(1, true);
    await until('the driver has it', 2000, () => rig.messages().length >= at + 4);
    expect(await exchange(peer, 20)).toEqual([whole(20)]);
    expect(receiver.events).toHaveLength(1);
  });

  it('that never enables its rings has what it sends drained and discarded', async () => {
    await rig.device();
    const receiver = rig.receiver();
    const peer = await rig.peer();
    const { frontEnd } = peer;
    const enable = frontEnd.setEnabled.bind(frontEnd);
    frontEnd.setEnabled = async () => {};
    await peer.start();
    await isOn(receiver);
    await discarded(peer, receiver, 20);
    for (const ring of [0, 1]) {
      const at = rig.messages().length;
      await enable(ring, true);
      await until('the driver has it', 2000, () => rig.messages().length >= at + 2);
    }
    expect(await exchange(peer, 20)).toEqual([whole(20)]);
  });

  it('sets an MTU, before and while ON', async () => {
    const facts: PeerFacts[] = [];
    const mtus: number[] = [];
    const port = Object.assign(new EchoPort(), {
      peerOn: (f: PeerFacts) => facts.push(f),
      setMtu: (mtu: number) => mtus.push(mtu),
    });
    await rig.device();
    const receiver = rig.receiver({ port });
    const peer = await rig.peer();
    await peer.frontEnd.setMtu(9000);
    await peer.start();
    await isOn(receiver);
    expect(facts[0]).toMatchObject({ mtu: 9000 });
    await peer.frontEnd.setMtu(1400);
    await until('the port has it', 2000, () => mtus.length > 0);
    expect(mtus).toEqual([1400]);
    // It is no reason to let go of the peer.
    await peer.frontEnd.setEnabled(0, true);
    expect(receiver.events).toHaveLength(1);
  });

  it('has the peer announced on the receiving side', async () => {
    const frames: Uint8Array[] = [];
    const port = Object.assign(new EchoPort(), { announce: (f: Uint8Array) => frames.push(f) });
    await rig.device();
    const receiver = rig.receiver({ port });
    const peer = await rig.startedPeer();
    await isOn(receiver);
    const mac = Buffer.from('525400123456', 'hex');
    await peer.frontEnd.sendRarp(mac);
    await until('a frame', 2000, () => frames.length > 0);
    const frame = Buffer.from(frames[0]!);
    // RFC 903: a request in a broadcast frame, from the address and for it.
    expect(frame.subarray(0, 14).toString('hex')).toBe('ffffffffffff' + '525400123456' + '8035');
    expect(frame.indexOf(mac, 14)).toBeGreaterThan(0);
  });

  it('is told about share=on and has its link down when it starts without memory', async () => {
    await rig.device();
    const receiver = rig.receiver();
    const without = await rig.peer();
    await without.frontEnd.setStatus(0xb);
    expect(rig.logged(/without memory/)).toBe(false);
    await expect(without.frontEnd.setStatus(0xf)).rejects.toThrow();
    await without.disconnected;
    expect(
      rig.lines.filter((l) => /^peer disconnected: .*without memory.*share=on/.test(l.msg)),
    ).toHaveLength(1);
    await without[Symbol.asyncDispose]();
    const peer = await rig.startedPeer();
    await isOn(receiver);
    expect(rig.lines.filter((l) => /without memory/.test(l.msg))).toHaveLength(1);
    expect(await exchange(peer, 20)).toEqual([whole(20)]);
  });
});
