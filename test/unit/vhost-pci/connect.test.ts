/** Two devices joined in one process: the packets of each one's peer go to the other's, from memory to memory. */
import { closeSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native, type VerifyResult } from '../../../src/sys/native.js';
import { bits } from '../../../src/util/flags.js';
import { Bridge } from '../../../src/vhost-pci/driver/bridge.js';
import { WorkerPool } from '../../../src/vhost-pci/driver/workers.js';
import { PAGE } from '../../../src/vhost-pci/identity.js';
import { FEATURE } from '../../../src/virtio/features.js';
import { NET_FEATURE } from '../../../src/virtio-net/features.js';
import type { NetPeer } from '../../../src/virtio-net/peer.js';
import { isOff, isOn, MEMORY_BYTES, type Receiver, Rig, Traffic, until, whole } from './rig.js';

/** Fewer than a ring has buffers: none of these can be dropped. */
const FEW = 50;

/** The page of guest address 0x40000000, where the in-tree peer has its memory. */
const FIRST_PAGE = 0x4000_0000 / PAGE;

let left: Rig;
let right: Rig;
beforeEach(() => {
  left = new Rig();
  right = left.twin();
});
afterEach((context) => left.end(context));

/** Drivers of both devices on the same threads. */
function join(workers = 1): [Receiver, Receiver] {
  const pool = new WorkerPool({ mode: 'interrupt', workers });
  left.defer(() => pool[Symbol.asyncDispose]());
  const bridge = new Bridge(pool, left.log);
  return [left.receiver({ port: bridge.ports[0], pool }), right.receiver({ port: bridge.ports[1], pool })];
}

/** Sends frames both ways until all have come; what each side's checks say, left first. */
async function bothWays(a: NetPeer, b: NetPeer, bytes = 200, count = FEW): Promise<VerifyResult[][]> {
  await using fromA = await Traffic.start(a, { count, bytes });
  await using fromB = await Traffic.start(b, { count, bytes });
  const seen = (t: Traffic): number => t.results().reduce((sum, r) => sum + r.packets + r.foreign, 0);
  await until(
    'all frames have come',
    10_000,
    () => seen(fromA) >= count * b.queues.length && seen(fromB) >= count * a.queues.length,
    () => `: ${JSON.stringify([fromA.results(), fromB.results()])}`,
  );
  return [fromA.results(), fromB.results()];
}

describe('two devices that are joined', () => {
  it('carry every frame of either peer to the other', async () => {
    await left.device();
    await right.device();
    const [a, b] = join();
    const one = await left.startedPeer();
    const two = await right.startedPeer();
    await isOn(a);
    await isOn(b);
    for (const bytes of [60, 1514])
      expect(await bothWays(one, two, bytes)).toEqual([[whole(FEW)], [whole(FEW)]]);
    const [atLeft, atRight] = [a, b].map(({ endpoint }) => endpoint.stats());
    expect(atLeft).toMatchObject({
      queues: [{ receive: { packets: 2 * FEW }, send: { packets: 2 * FEW } }],
      undelivered: { packets: 0 },
    });
    expect(atRight!.queues[0]!.send.bytes).toBe(atLeft!.queues[0]!.receive.bytes);
    expect([...a.errors(), ...b.errors()]).toEqual([]);
  });

  it('account for every frame when one peer sends faster than the other takes', async () => {
    await left.device();
    await right.device();
    const [a, b] = join();
    const one = await left.startedPeer();
    const two = await right.startedPeer();
    await isOn(a);
    await isOn(b);
    const count = 5000;
    await using taking = await Traffic.start(two, { count: 1 });
    await using _sending = await Traffic.start(one, { count });
    const at = () => b.endpoint.stats().queues[0]!.send;
    await until(
      'each was sent or dropped',
      10_000,
      () =>
        at().packets + at().drops['no-buffers'] === count && taking.results()[0]!.packets === at().packets,
      () => JSON.stringify([at(), taking.results()]),
    );
    expect(taking.results()[0]).toMatchObject({ altered: 0, reordered: 0, foreign: 0 });
  });

  it('go on for the one peer while the other takes nothing', async () => {
    await left.device();
    await right.device();
    const [a, b] = join();
    const one = await left.startedPeer();
    const two = await right.startedPeer();
    await isOn(a);
    await isOn(b);
    // Nobody runs the second peer's queues: it has a few buffers at most.
    await using sending = await Traffic.start(one, { count: 1000 });
    await until('all are taken', 10_000, () => a.endpoint.stats().queues[0]!.receive.packets === 1000);
    const { packets, drops } = b.endpoint.stats().queues[0]!.send;
    await until('they are counted', 2000, () => drops['no-buffers'] + packets === 1000);
    expect(drops['no-buffers']).toBeGreaterThan(900);
    expect(sending.results()[0]!.packets).toBe(0);
    await sending[Symbol.asyncDispose]();
    expect((await bothWays(two, one))[1]).toEqual([whole(FEW)]);
  });
});

describe('a peer that goes', () => {
  it('leaves the other served, its frames counted as undelivered, and finds it again', async () => {
    await left.device();
    await right.device();
    const [a, b] = join();
    const one = await left.startedPeer();
    await isOn(a);
    let undelivered = 0;
    for (let round = 1; round <= 3; round++) {
      const alone = await Traffic.start(one, { count: 500 });
      undelivered += 500;
      await until(
        'all are taken',
        10_000,
        () => a.endpoint.stats().undelivered?.packets === undelivered,
        () => JSON.stringify(a.endpoint.stats()),
      );
      await alone[Symbol.asyncDispose]();

      const two = await right.startedPeer();
      await isOn(b, round);
      expect(await bothWays(one, two)).toEqual([[whole(FEW)], [whole(FEW)]]);
      if (round === 2) await two.stop();
      await two[Symbol.asyncDispose]();
      await isOff(b, round);
    }
    expect(a.events.filter((e) => e.event === 'connection')).toHaveLength(1);
    expect([...a.errors(), ...b.errors()]).toEqual([]);
  });

  it('under load takes nothing of the other with it, whichever goes', async () => {
    await left.device();
    await right.device();
    const [a, b] = join();
    for (let round = 1; round <= 4; round++) {
      const one = await left.startedPeer();
      const two = await right.startedPeer();
      await isOn(a, round);
      await isOn(b, round);
      const load = [await Traffic.start(one), await Traffic.start(two)];
      await until('there is load', 5000, () => load.every((t) => t.results()[0]!.packets > 500));
      const [first, second] = round % 2 ? [one, two] : [two, one];
      const [stays, goes] = round % 2 ? [load[1]!, load[0]!] : [load[0]!, load[1]!];
      const intact = (t: Traffic): void =>
        expect(t.results()[0]).toMatchObject({ altered: 0, reordered: 0, foreign: 0 });
      intact(goes);
      await goes[Symbol.asyncDispose]();
      await first[Symbol.asyncDispose]();
      await isOff(round % 2 ? a : b, round);
      intact(stays);
      await stays[Symbol.asyncDispose]();
      await second[Symbol.asyncDispose]();
      await isOff(round % 2 ? b : a, round);
    }
    expect([...a.errors(), ...b.errors()]).toEqual([]);
  });

  it('with its device, comes back with it', async () => {
    const device = await left.device();
    await right.device();
    const [a, b] = join();
    const gone = await left.startedPeer();
    const two = await right.startedPeer();
    await isOn(a);
    await isOn(b);
    await device[Symbol.asyncDispose]();
    await isOff(a);
    await gone[Symbol.asyncDispose]();
    await left.device();
    const one = await left.startedPeer();
    await isOn(a, 2);
    expect(await bothWays(one, two)).toEqual([[whole(FEW)], [whole(FEW)]]);
    expect(b.events.filter((e) => e.event === 'connection')).toHaveLength(1);
  });
});

describe('peers that differ', () => {
  for (const [pairs, workers] of [
    [1, 2],
    [3, 2],
  ] as const)
    it(`in their queue pairs, 4 and ${pairs}, share those of the one that has fewer`, async () => {
      await left.device({ queuePairs: 4 });
      await right.device({ queuePairs: 4 });
      const [a, b] = join(workers);
      const one = await left.startedPeer({ queuePairs: 4 });
      const two = await right.startedPeer({ queuePairs: pairs, ringSize: 256 });
      await isOn(a);
      await isOn(b);
      await using fromOne = await Traffic.start(one, { count: FEW });
      await using fromTwo = await Traffic.start(two, { count: FEW });
      const came = (): number => fromTwo.results().reduce((sum, r) => sum + r.packets + r.foreign, 0);
      await until('all of the four pairs', 10_000, () => came() === 4 * FEW);
      // The frames of pair i have stream i: those of the others are foreign to it.
      expect(fromTwo.results()).toEqual(
        Array.from({ length: pairs }, (_, i) =>
          expect.objectContaining({
            packets: FEW,
            foreign: Math.floor((3 - i) / pairs) * FEW,
            altered: 0,
            lost: 0,
          }),
        ),
      );
      await until('all of the others', 10_000, () =>
        fromOne.results().every((r, i) => r.packets === (i < pairs ? FEW : 0)),
      );
      expect(fromOne.results().slice(0, pairs)).toEqual(Array(pairs).fill(whole(FEW)));
    });

  it('in the pairs that they have enabled leave out those that are not', async () => {
    await left.device({ queuePairs: 2 });
    await right.device({ queuePairs: 2 });
    const [a, b] = join(2);
    const one = await left.startedPeer({ queuePairs: 2 });
    const two = await right.startedPeer({ queuePairs: 2, ringSize: 256 });
    await isOn(a);
    await isOn(b);
    expect(await bothWays(one, two)).toEqual([Array(2).fill(whole(FEW)), Array(2).fill(whole(FEW))]);

    for (const ring of [2, 3]) {
      const answers = (): number => right.messages().filter((m) => m === '< virtq-info').length;
      const before = answers();
      await two.frontEnd.setEnabled(ring, false);
      await until(`ring ${ring} is off`, 5000, () => answers() > before);
    }
    const sent = () => b.endpoint.stats().queues.map((q) => q.send.packets);
    const before = sent();
    await using fromOne = await Traffic.start(one, { count: FEW });
    await using taking = await Traffic.start(two, { count: 1 });
    await until('all come by the first', 10_000, () => sent()[0] === before[0]! + 2 * FEW);
    expect(sent()[1]).toBe(before[1]);
    expect(taking.results()[0]).toMatchObject({ packets: FEW, foreign: FEW, altered: 0 });
    expect(fromOne.results()).toHaveLength(2);
  });

  it('in their features get what they negotiated', async () => {
    const plain = bits(FEATURE.VERSION_1);
    const offloads = bits(NET_FEATURE.CSUM, NET_FEATURE.HOST_TSO4);
    await left.device();
    await right.device();
    const [a, b] = join();
    const one = await left.startedPeer({
      features: plain | offloads | bits(NET_FEATURE.MRG_RXBUF, FEATURE.EVENT_IDX, FEATURE.INDIRECT_DESC),
      bufferBytes: 512,
      ringSize: 512,
    });
    const two = await right.startedPeer({ features: plain });
    await isOn(a);
    await isOn(b);
    expect([one.features, two.features].map((f) => (f & bits(NET_FEATURE.MRG_RXBUF)) !== 0n)).toEqual([
      true,
      false,
    ]);
    // 1514 bytes are three or four buffers of the one peer, and one of the other.
    await using fromTwo = await Traffic.start(two, { count: FEW, bytes: 1514 });
    await using atOne = await Traffic.start(one, { count: FEW, bytes: 400 });
    await until('all', 10_000, () => [fromTwo, atOne].every((t) => t.results()[0]!.packets === FEW));
    expect(atOne.results()).toEqual([whole(FEW)]);
    expect(fromTwo.results()).toEqual([whole(FEW)]);
    expect(left.logged(/may send unsegmented packets \(HOST_TSO4\) that the other does not take/)).toBe(true);
  });
});

describe('a dirty log', () => {
  it('of one peer has what the other writes, also when that one came later', async () => {
    await left.device();
    const device = await right.device();
    const [a, b] = join();
    const two = await right.startedPeer();
    await isOn(b);
    const bytes = FIRST_PAGE / 8 + MEMORY_BYTES / PAGE / 8;
    const fd = native.memfdCreate('log', bytes);
    const log = new native.Mapping(fd, 0, bytes, true);
    left.defer(() => {
      log.close();
      closeSync(fd);
    });
    await two.frontEnd.startLogging({ fd, size: bytes, offset: 0 });
    const memory = (): Buffer => device.function!.window.mapping.read(0, MEMORY_BYTES);

    for (let round = 1; round <= 2; round++) {
      const one = await left.startedPeer();
      await isOn(a, round);
      const before = memory();
      expect(await bothWays(one, two)).toEqual([[whole(FEW)], [whole(FEW)]]);
      await one[Symbol.asyncDispose]();
      await isOff(a, round);
      if (round === 2) await two.stop();
      else await until('the log is moved', 5000, () => log.read(0, bytes).some((byte) => byte !== 0));
      const after = memory();
      const { receiveq } = two.queues[0]!;
      const pages = new Set<number>();
      for (let i = 0; i < receiveq.size; i++) {
        const at = Number(receiveq.desc) - FIRST_PAGE * PAGE + 16 * i;
        pages.add(Math.floor((Number(after.readBigUInt64LE(at)) - FIRST_PAGE * PAGE) / PAGE));
      }
      const page = (of: Buffer, n: number): Buffer => of.subarray(n * PAGE, (n + 1) * PAGE);
      const changed = [...pages].filter((n) => !page(before, n).equals(page(after, n)));
      expect(changed.length).toBeGreaterThan(10);
      const logged = (n: number): boolean =>
        ((log.read((FIRST_PAGE + n) >> 3, 1)[0]! >> ((FIRST_PAGE + n) & 7)) & 1) === 1;
      if (round === 2) expect(changed.filter((n) => !logged(n))).toEqual([]);
    }
  });
});
