import { describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { bits } from '../../../src/util/flags.js';
import { FLAG, NUMBER, REQUEST, VRING_ADDR } from '../../../src/vhost-user/protocol.js';
import { stateOf } from './bad-messages.js';
import { Fixture, MEMORY_BYTES, USER_BASE } from './fixture.js';

describe('a ring that cannot work', () => {
  const addresses = (change: object): Buffer =>
    VRING_ADDR.encode({
      index: 2,
      descriptor: USER_BASE + 0x100000n,
      available: USER_BASE + 0x104000n,
      used: USER_BASE + 0x108000n,
      ...change,
    });
  const CASES: readonly { title: string; num?: number; base?: number; change?: object; cause: RegExp }[] = [
    { title: 'of size 0', num: 0, cause: /size of 0/ },
    { title: 'of size 3', num: 3, cause: /size of 3/ },
    { title: 'of size 65536', num: 65536, cause: /size of 65536/ },
    { title: 'with a misaligned descriptor table', change: { descriptor: USER_BASE + 8n }, cause: /aligned/ },
    { title: 'with a misaligned available ring', change: { available: USER_BASE + 1n }, cause: /aligned/ },
    { title: 'with a misaligned used ring', change: { used: USER_BASE + 2n }, cause: /aligned/ },
    { title: 'outside the memory', change: { used: 0x1000n }, cause: /no memory region/ },
    { title: 'that wraps', change: { descriptor: (1n << 64n) - 16n }, cause: /no memory region/ },
    {
      title: 'that crosses two regions',
      change: { descriptor: USER_BASE + BigInt(MEMORY_BYTES / 2) - 4096n + 16n },
      cause: /no memory region/,
    },
    {
      title: 'whose used ring ends with the memory but for its avail_event',
      change: { used: USER_BASE + BigInt(MEMORY_BYTES) - (4n + 8n * 256n) },
      cause: /no memory region/,
    },
    { title: 'whose areas overlap', change: { available: USER_BASE + 0x100010n }, cause: /overlap/ },
    { title: 'with a base that is no index', base: 0x10000, cause: /base/ },
  ];

  for (const { title, num = 256, base = 0, change = {}, cause } of CASES) {
    it(`${title} is broken and signalled, and the others go on`, async () => {
      await using f = new Fixture();
      await f.start();
      const err = f.eventfd();
      const ack = async (request: number, payload: Buffer, fds: number[] = []) =>
        NUMBER.decode(await f.frontEnd.exchange(request, payload, fds, FLAG.VERSION | FLAG.NEED_REPLY));
      await ack(REQUEST.SET_VRING_ERR, NUMBER.encode(2n), [err]);
      const answers = [
        await ack(REQUEST.SET_VRING_NUM, stateOf(2, num)),
        await ack(REQUEST.SET_VRING_BASE, stateOf(2, base)),
        await ack(REQUEST.SET_VRING_ADDR, addresses(change)),
        await ack(REQUEST.SET_VRING_KICK, NUMBER.encode(2n), [f.eventfd()]),
      ];
      expect(answers).toContain(1n);
      const { state } = f.backEnd;
      expect(state.rings[2]!.broken).toMatch(cause);
      expect(state.heldBy(state.rings[2]!)).toMatch(cause);
      expect(native.eventfdTake(err)).toBe(1);
      expect(state.heldBy(state.rings[0]!)).toBeUndefined();
      expect(f.backEnd.isClosed).toBe(false);

      await f.frontEnd.stopRing(2);
      await f.frontEnd.startRing(2, f.ring(2));
      expect(state.heldBy(state.rings[2]!)).toBeUndefined();
    });
  }

  for (const [what, request, payload] of [
    ['size', REQUEST.SET_VRING_NUM, stateOf(0, 128)],
    ['base', REQUEST.SET_VRING_BASE, stateOf(0, 5)],
    ['address', REQUEST.SET_VRING_ADDR, addresses({ index: 0 })],
  ] as const) {
    it(`whose ${what} changes while it runs is broken, and the others go on`, async () => {
      await using f = new Fixture();
      const rings = await f.start();
      await f.frontEnd.exchange(request, payload, [], FLAG.VERSION | FLAG.NEED_REPLY);
      const { state } = f.backEnd;
      expect(state.rings[0]!.broken).toMatch(/while the ring is started/);
      expect(native.eventfdTake(rings[0]!.errFd!)).toBe(1);
      expect(state.heldBy(state.rings[1]!)).toBeUndefined();
    });
  }

  it('is told to a front-end that gives its error descriptor only afterwards', async () => {
    await using f = new Fixture();
    await f.start();
    f.backEnd.breakRing(1, 'the data path met a loop');
    const err = f.eventfd();
    const flags = FLAG.VERSION | FLAG.NEED_REPLY;
    await f.frontEnd.exchange(REQUEST.SET_VRING_ERR, NUMBER.encode(1n), [err], flags);
    expect(native.eventfdTake(err)).toBe(1);
  });

  it('of the packed kind may have any size up to 32768', async () => {
    await using f = new Fixture();
    await f.negotiate(bits(30, 32, 34));
    await f.frontEnd.sendFeatures();
    await f.frontEnd.setMemory(f.regions());
    await f.frontEnd.startRing(0, { ...f.ring(0), size: 100, base: 0x8063 });
    expect(f.backEnd.state.heldBy(f.backEnd.state.rings[0]!)).toBeUndefined();
    await expect(f.frontEnd.startRing(1, { ...f.ring(1), size: 32_769 })).rejects.toMatchObject({
      code: 'ENACK',
    });
    expect(f.backEnd.state.rings[1]!.broken).toMatch(/size/);
  });

  it('of the packed kind may not start outside itself', async () => {
    await using f = new Fixture();
    await f.negotiate(bits(30, 32, 34));
    await f.frontEnd.sendFeatures();
    await f.frontEnd.setMemory(f.regions());
    await f.frontEnd.startRing(0, { ...f.ring(0), base: 0x8000_8000 });
    expect(f.backEnd.state.heldBy(f.backEnd.state.rings[0]!)).toBeUndefined();
    await expect(f.frontEnd.startRing(1, { ...f.ring(1), base: 0x8000_8100 })).rejects.toMatchObject({
      code: 'ENACK',
    });
    expect(f.backEnd.state.rings[1]!.broken).toMatch(/base/);
  });
});
