/** RING_EVENTFDS (docs/protocol.md, P7) on the wire, between client and server, and from either that lies. */
import { closeSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { RingEventfds } from '../../../src/pci/handle.js';
import { DeviceInfo } from '../../../src/pci/vfio-abi.js';
import { native } from '../../../src/sys/native.js';
import { Client } from '../../../src/vfio-user/client.js';
import {
  COMMANDS,
  encodeMessage,
  HEADER_FLAG,
  RingEventfdsHeader,
  RingEventfdsRow,
  Version,
} from '../../../src/vfio-user/protocol.js';
import { decodeRingEventfds, encodeRingEventfds } from '../../../src/vfio-user/ring-eventfds.js';
import { Server } from '../../../src/vfio-user/server.js';
import { encodeCapabilities } from '../../../src/vfio-user/version.js';
import { isError, openFds, RawClient, TestDevice, until, withClient, withServer } from './rig.js';

const EINVAL = 22;
const EAGAIN = 11;
const ENOTSUP = 95;
const NONE = 0xffff_ffff;

/** Which eventfd a descriptor refers to, whatever its number. */
const identity = (fd: number | undefined): string | undefined =>
  fd === undefined
    ? undefined
    : /eventfd-id:\s*(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];

/** Eventfds for so many rings; every third has no kick, every fifth no call. */
function withRings<T>(count: number, run: (rings: RingEventfds[]) => Promise<T>): Promise<T> {
  const rings = Array.from({ length: count }, (_, i) => ({
    ...(i % 3 !== 2 && { kick: native.eventfd() }),
    ...(i % 5 !== 4 && { call: native.eventfd() }),
  }));
  return run(rings).finally(() => closeRings(rings));
}

function closeRings(rings: readonly RingEventfds[]): void {
  for (const { kick, call } of rings) for (const fd of [kick, call]) if (fd !== undefined) closeSync(fd);
}

const request = (first: number, count: number, argsz = 4096, flags = 0): Buffer =>
  RingEventfdsHeader.encode({ argsz, flags, first, count });

describe('the reply', () => {
  it('is decoded to what was encoded', () =>
    withRings(7, async (rings) => {
      const { payload, fds } = encodeRingEventfds(3, rings);
      expect(payload).toHaveLength(16 + 7 * 8);
      expect(RingEventfdsHeader.decode(payload)).toEqual({ argsz: 72, flags: 0, first: 3, count: 7 });
      expect(decodeRingEventfds(payload, 3, fds)).toEqual(rings);
    }));

  it('is refused when its numbers or descriptors cannot be', () =>
    withRings(2, async (rings) => {
      const { payload, fds } = encodeRingEventfds(0, rings);
      const row = (kick: number, call: number): Buffer =>
        Buffer.concat([
          RingEventfdsHeader.encode({ argsz: 24, first: 0, count: 1 }),
          RingEventfdsRow.encode({ kick, call }),
        ]);
      const [a, b] = fds.slice(0, 2) as [number, number];
      expect(() => decodeRingEventfds(payload, 1, fds)).toThrow(/do not fit/);
      expect(() => decodeRingEventfds(payload.subarray(0, -1), 0, fds)).toThrow(/do not fit/);
      expect(() => decodeRingEventfds(payload.subarray(0, 15), 0, fds)).toThrow();
      expect(() => decodeRingEventfds(row(0, 2), 0, [a, b])).toThrow(/eventfd 2 of 2/);
      expect(() => decodeRingEventfds(row(0, 0), 0, [a])).toThrow(/twice/);
      expect(() => decodeRingEventfds(row(0, NONE), 0, [a, b])).toThrow(/belong to no ring/);
      const [one, other] = native.unixPair();
      expect(() => decodeRingEventfds(row(0, 1), 0, [a, one])).toThrow(/no eventfd/);
      for (const fd of [one, other]) closeSync(fd);
    }));
});

class RingDevice extends TestDevice {
  asked: [number, number][] = [];
  constructor(readonly rings: readonly RingEventfds[] | undefined) {
    super();
  }
  takeRings(first: number, count: number): readonly RingEventfds[] | undefined {
    this.asked.push([first, count]);
    return this.rings?.slice(first, first + count);
  }
}

/** As withServer, for a device with these rings. */
async function withRingServer(
  rings: readonly RingEventfds[] | undefined,
  run: (connect: () => number, device: RingDevice) => Promise<void>,
): Promise<void> {
  const fds = openFds();
  {
    using device = new RingDevice(rings);
    await using server = new Server(device);
    await run(() => {
      const [ours, theirs] = native.unixPair();
      server.serve(theirs);
      return ours;
    }, device);
  }
  await until(() => openFds() === fds);
}

describe('a client', () => {
  it('gets the eventfds of every ring, in as many messages as their number takes', () =>
    withRings(21, (rings) =>
      withRingServer(rings, async (connect, device) => {
        await using client = await Client.fromFd(connect(), 'rings');
        const taken = await client.takeRings(21);
        expect(device.asked).toEqual([
          [0, 8],
          [8, 8],
          [16, 5],
        ]);
        const ids = (of: readonly RingEventfds[]): unknown =>
          of.map(({ kick, call }) => [identity(kick), identity(call)]);
        expect(ids(taken)).toEqual(ids(rings));
        closeRings(taken);
      }),
    ));

  it('gets what there is when it asks for more', () =>
    withRings(2, (rings) =>
      withRingServer(rings, async (connect) => {
        await using client = await Client.fromFd(connect(), 'rings');
        const taken = await client.takeRings(9);
        expect(taken).toHaveLength(2);
        closeRings(taken);
      }),
    ));

  it('gets none of a device without a peer, nor of a server without the extension, and goes on', async () => {
    await withRingServer(undefined, async (connect) => {
      await using client = await Client.fromFd(connect(), 'rings');
      expect(await client.takeRings(2)).toEqual([]);
      expect(await client.irqCount(2)).toBeGreaterThan(0);
    });
    await withClient(async (client) => {
      expect(await client.takeRings(2)).toEqual([]);
      expect(await client.irqCount(2)).toBeGreaterThan(0);
    });
  });

  const liars: [string, (server: RawClient, id: number, fd: number) => void, RegExp][] = [
    [
      'names no eventfd',
      (s, id, fd) => s.bytes(reply(id, RingEventfdsRow.encode({ kick: 1, call: NONE })), [fd]),
      /wrong reply to RING_EVENTFDS/,
    ],
    [
      'gives more rings than were asked',
      (s, id) =>
        s.bytes(
          reply(id, ...Array.from({ length: 5 }, () => RingEventfdsRow.encode({ kick: NONE, call: NONE }))),
        ),
      /5 rings, 2 were asked/,
    ],
    ['is silent', () => {}, /no reply to RING_EVENTFDS/],
  ];
  for (const [what, lie, error] of liars)
    it(`leaves a server that ${what}, with nothing left open`, async () => {
      const before = openFds();
      {
        const [ours, theirs] = native.unixPair();
        using server = new RawClient(theirs);
        const connecting = Client.fromFd(ours, 'liar', { timeoutMs: 500 });
        for (const payload of [
          Buffer.concat([Version.encode({}), encodeCapabilities()]),
          DeviceInfo.encode({ argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 }),
        ]) {
          const { id, command } = (await server.reply())!;
          server.bytes(encodeMessage({ id, command, flags: HEADER_FLAG.REPLY }, payload));
        }
        await using client = await connecting;
        const taking = client.takeRings(2).catch((e: Error) => e);
        const asked = (await server.reply())!;
        expect(asked.command).toBe(COMMANDS.RING_EVENTFDS.command);
        const fd = native.eventfd();
        lie(server, asked.id, fd);
        closeSync(fd);
        expect(String(await taking)).toMatch(error);
        expect((await client.gone).message).toMatch(error);
      }
      await until(() => openFds() === before);
    });
});

function reply(id: number, ...rows: readonly Buffer[]): Buffer {
  const argsz = RingEventfdsHeader.size + rows.length * RingEventfdsRow.size;
  const header = RingEventfdsHeader.encode({ argsz, first: 0, count: rows.length });
  const { command } = COMMANDS.RING_EVENTFDS;
  return encodeMessage({ id, command, flags: HEADER_FLAG.REPLY }, header, ...rows);
}

describe('a server', () => {
  it('refuses what it cannot give, and stays', () =>
    withRings(4, (rings) =>
      withRingServer(rings, async (connect, device) => {
        using client = new RawClient(connect());
        await client.version();
        expect(isError(await client.ask('RING_EVENTFDS', request(0, 2, 4096, 1)), EINVAL)).toBe(true);
        expect(isError(await client.ask('RING_EVENTFDS', request(0, 2, 15)), EINVAL)).toBe(true);
        expect(device.asked).toEqual([]);
        const some = await client.ask('RING_EVENTFDS', request(NONE, NONE));
        expect(RingEventfdsHeader.decode(some.payload).count).toBe(0);
        // Room for one row only.
        const one = await client.ask('RING_EVENTFDS', request(0, 4, 31));
        expect(RingEventfdsHeader.decode(one.payload)).toMatchObject({ argsz: 24, count: 1 });
        for (const fd of one.fds) closeSync(fd);
        expect(device.asked.at(-1)).toEqual([0, 1]);
      }),
    ));

  it('passes no more descriptors than the client takes in a message', () =>
    withRings(4, (rings) =>
      withRingServer(rings, async (connect, device) => {
        using client = new RawClient(connect());
        await client.version(Buffer.from('{"capabilities":{"max_msg_fds":5}}\0'));
        const { fds } = await client.ask('RING_EVENTFDS', request(0, 4));
        expect(device.asked).toEqual([[0, 2]]);
        expect(fds.length).toBeLessThanOrEqual(5);
        for (const fd of fds) closeSync(fd);
      }),
    ));

  it('says that it has no peer, or no such thing', async () => {
    await withRingServer(undefined, async (connect) => {
      using client = new RawClient(connect());
      await client.version();
      expect(isError(await client.ask('RING_EVENTFDS', request(0, 2)), EAGAIN)).toBe(true);
    });
    await withServer(async (server) => {
      using client = RawClient.of(server);
      await client.version();
      expect(isError(await client.ask('RING_EVENTFDS', request(0, 2)), ENOTSUP)).toBe(true);
    });
  });
});
