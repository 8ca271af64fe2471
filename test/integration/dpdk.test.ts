/**
 * The commands against DPDK's virtio_user, a vhost-user front-end and virtio-net driver that is not ours: both
 * directions and back again, frame sizes, mergeable buffers and queue pairs. How the ends stop and go away is in
 * dpdk-lifecycle.test.ts.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { dpdkPeer, SECONDS } from '../support/dpdk-peer.js';
import { Scope } from '../support/scope.js';

/** `VHOST_PCI_LONG=1` adds the sizes between. */
const SIZES = process.env.VHOST_PCI_LONG ? [64, 256, 512, 1024, 1518] : [64, 1518];
const SHAPES = [1, 2].flatMap((queuePairs) =>
  [false, true].flatMap((mergeable) =>
    [false, true].map((packed) => ({
      queuePairs,
      mergeable,
      packed,
      title: `${queuePairs} queue pair${queuePairs > 1 ? 's' : ''}, mergeable ${mergeable ? 'on' : 'off'}, ${packed ? 'packed' : 'split'} rings`,
    })),
  ),
);
/** VIRTIO_F_RING_PACKED */
const hasPacked = (features: unknown): boolean => ((BigInt(String(features)) >> 34n) & 1n) === 1n;
/** Enough for every ring to have gone round many times. */
const MANY = 50_000;
const LIMIT = { timeout: 180 * SECONDS };

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

describe.each(SHAPES)('a DPDK peer with $title', ({ queuePairs, mergeable, packed }) => {
  for (const frame of SIZES) {
    it(`has every frame of ${frame} bytes that it sends taken`, LIMIT, async (context) => {
      const { rig, peer } = await dpdkPeer(context, scope, {
        mode: 'txonly',
        frame,
        queuePairs,
        mergeable,
        packed,
      });
      const net = rig.net(['--sink', '--poll', '--cpu', '0']);
      expect(hasPacked((await net.connection('on')).features)).toBe(packed);
      await peer.forward();
      await peer.until('many packets sent', 20 * SECONDS, (s) => s.txPackets > MANY);
      await peer.stop();
      const sent = await peer.stats();
      const taken = await net.until('all of them', 10 * SECONDS, (t) => t.receive.packets >= sent.txPackets);
      expect(taken.receive).toEqual({ packets: sent.txPackets, bytes: sent.txPackets * frame, drops: 0 });
      expect(taken.queues).toHaveLength(queuePairs);
      for (const [received] of taken.queues) expect(received).toBeGreaterThan(0);
    });

    it(`gets every frame of ${frame} bytes that the source sends`, LIMIT, async (context) => {
      const { rig, peer } = await dpdkPeer(context, scope, { mode: 'rxonly', queuePairs, mergeable, packed });
      await peer.forward();
      const net = rig.net(['--source', String(frame), '--poll', '--cpu', '0']);
      await net.connection('on');
      await peer.until('many packets received', 20 * SECONDS, (s) => s.rxPackets > MANY);
      const { send, queues } = await net.stop();
      expect(queues).toHaveLength(queuePairs);
      for (const [, sent] of queues) expect(sent).toBeGreaterThan(0);
      // What it had not taken off its rings when they were stopped is still there for it to take, or lost with the
      // rings: at most a ring full each.
      const { rxPackets, rxBytes, rxErrors } = await peer.stats();
      expect(rxErrors).toBe(0);
      expect(rxPackets).toBeLessThanOrEqual(send.packets);
      expect(rxPackets).toBeGreaterThanOrEqual(send.packets - 256 * queuePairs);
      expect(rxBytes).toBe(rxPackets * frame);
    });
  }

  it('gets back what it sends, round and round', LIMIT, async (context) => {
    const { rig, peer } = await dpdkPeer(context, scope, { mode: 'io', queuePairs, mergeable, packed });
    const net = rig.net(['--echo', '--poll', '--cpu', '0']);
    await net.connection('on');
    await peer.forward(true);
    await peer.until('many rounds', 20 * SECONDS, (s) => s.rxPackets > MANY && s.txPackets > MANY);
    await peer.stop();
    const totals = await net.stop();
    expect(totals.receive.packets).toBeGreaterThan(MANY);
    expect(totals.send.packets).toBeGreaterThan(MANY);
    expect(totals.receive.drops).toBe(0);
  });
});

describe('a DPDK peer with frames in segments', () => {
  const segments = [100, 300, 200];
  const ways = [true, false].flatMap((inOrder) => [false, true].map((packed) => ({ inOrder, packed })));
  for (const { inOrder, packed } of ways) {
    const how = `${inOrder ? 'chained' : 'indirect'} descriptors of a ${packed ? 'packed' : 'split'} ring`;
    it(`has every one taken from ${how}`, LIMIT, async (context) => {
      const options = { mode: 'txonly', segments, inOrder, packed, mergeable: true } as const;
      const { rig, peer } = await dpdkPeer(context, scope, options);
      const net = rig.net(['--sink', '--poll', '--cpu', '0']);
      await net.connection('on');
      await peer.forward();
      await peer.until('many packets sent', 20 * SECONDS, (s) => s.txPackets > MANY);
      await peer.stop();
      const sent = await peer.stats();
      const taken = await net.until('all of them', 10 * SECONDS, (t) => t.receive.packets >= sent.txPackets);
      expect(taken.receive).toEqual({ packets: sent.txPackets, bytes: sent.txPackets * 600, drops: 0 });
    });
  }
});

describe('the ways of waiting', () => {
  const modes = ['--poll', '--interrupt', '--adaptive'];
  for (const { mode, packed } of modes.flatMap((m) => [false, true].map((p) => ({ mode: m, packed: p })))) {
    const how = `${mode} from a ${packed ? 'packed' : 'split'} ring`;
    it(`take every packet with ${how}`, LIMIT, async (context) => {
      const options = { mode: 'txonly', frame: 64, mergeable: true, packed } as const;
      const { rig, peer } = await dpdkPeer(context, scope, options);
      const net = rig.net(['--sink', mode, '--cpu', '0']);
      await net.connection('on');
      await peer.forward();
      await peer.until('many packets sent', 20 * SECONDS, (s) => s.txPackets > MANY);
      await peer.stop();
      const sent = await peer.stats();
      const taken = await net.until('all of them', 10 * SECONDS, (t) => t.receive.packets >= sent.txPackets);
      expect(taken.receive.packets).toBe(sent.txPackets);
    });
  }
});
