/** Random sequences of requests, and mutated bytes: a back-end answers or closes, and keeps nothing. */
import { closeSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { BackEnd } from '../../../src/vhost-user/back-end.js';
import {
  encodeMessage,
  FLAG,
  LOG_DESCRIPTION,
  MEMORY_TABLE,
  NUMBER,
  REQUEST,
  SINGLE_REGION,
  VRING_ADDR,
  VRING_STATE,
} from '../../../src/vhost-user/protocol.js';
import { OFFERED_PROTOCOL_FEATURES } from '../../../src/vhost-user/requests.js';
import { countingFds, type Fixture, MEMORY_BYTES, openFds, TestDevice, USER_BASE } from './fixture.js';

interface Step {
  readonly request: number;
  readonly payload: Buffer;
  readonly fds: readonly ('eventfd' | 'memory' | 'log')[];
}

const index = fc.constantFrom(0, 0, 1, 1, 2, 3, 4, 0xffffffff);
const ringNumber = fc.constantFrom(0, 1, 2, 3, 4, 0x100, 0x101).map(BigInt);
const address = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.nat({ max: MEMORY_BYTES / 4096 }).map((page) => USER_BASE + BigInt(page) * 4096n),
  },
  { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }) },
);
const region = fc.record({
  gpa: fc.constantFrom(0n, 0x10000n, 1n << 32n, (1n << 64n) - 4096n),
  size: fc.constantFrom(0n, 4096n, BigInt(MEMORY_BYTES), BigInt(MEMORY_BYTES / 2), 1n << 63n),
  userAddress: fc.constantFrom(USER_BASE, USER_BASE + BigInt(MEMORY_BYTES / 2), 0n),
  fileOffset: fc.constantFrom(0n, BigInt(MEMORY_BYTES / 2), 4096n, 3n),
});
const good = { gpa: 0n, size: BigInt(MEMORY_BYTES), userAddress: USER_BASE, fileOffset: 0n };

const one = (request: number, payload: fc.Arbitrary<Buffer>, ...fds: Step['fds'][number][]) =>
  payload.map((bytes): Step => ({ request, payload: bytes, fds }));
const number = (values: fc.Arbitrary<bigint>) => values.map((value) => NUMBER.encode(value));
const empty = fc.constant(Buffer.alloc(0));
const withEventFd = (request: number) =>
  ringNumber.map((n): Step => ({ request, payload: NUMBER.encode(n), fds: n < 0x100n ? ['eventfd'] : [] }));

const step: fc.Arbitrary<Step> = fc.oneof(
  one(
    REQUEST.SET_FEATURES,
    number(fc.constantFrom(1n << 32n, (1n << 32n) | (1n << 30n), (1n << 32n) | (1n << 26n) | (1n << 30n))),
  ),
  one(REQUEST.SET_PROTOCOL_FEATURES, number(fc.constantFrom(OFFERED_PROTOCOL_FEATURES, 8n, 0n))),
  one(REQUEST.SET_MEM_TABLE, fc.constant(MEMORY_TABLE.encode([good])), 'memory'),
  one(
    REQUEST.SET_MEM_TABLE,
    region.map((r) => MEMORY_TABLE.encode([r])),
    'memory',
  ),
  one(
    REQUEST.ADD_MEM_REG,
    region.map((r) => SINGLE_REGION.encode(r)),
    'memory',
  ),
  one(REQUEST.REM_MEM_REG, fc.constant(SINGLE_REGION.encode(good))),
  one(
    REQUEST.SET_LOG_BASE,
    fc.constantFrom(0n, 64n, 0x200000n).map((size) => LOG_DESCRIPTION.encode({ size })),
    'log',
  ),
  one(
    REQUEST.SET_VRING_NUM,
    fc.record({ index, num: fc.constantFrom(0, 3, 64, 256, 32768, 65536) }).map((v) => VRING_STATE.encode(v)),
  ),
  one(
    REQUEST.SET_VRING_BASE,
    fc.record({ index, num: fc.constantFrom(0, 9, 70000) }).map((v) => VRING_STATE.encode(v)),
  ),
  one(
    REQUEST.SET_VRING_ADDR,
    fc
      .record({
        index,
        flags: fc.constantFrom(0, 0, 1, 2),
        descriptor: address,
        available: address,
        used: address,
      })
      .map((v) => VRING_ADDR.encode(v)),
  ),
  one(
    REQUEST.SET_VRING_ENABLE,
    fc.record({ index, num: fc.constantFrom(0, 1, 2) }).map((v) => VRING_STATE.encode(v)),
  ),
  one(
    REQUEST.GET_VRING_BASE,
    fc.record({ index, num: fc.constant(0) }).map((v) => VRING_STATE.encode(v)),
  ),
  withEventFd(REQUEST.SET_VRING_KICK),
  withEventFd(REQUEST.SET_VRING_CALL),
  withEventFd(REQUEST.SET_VRING_ERR),
  one(REQUEST.RESET_DEVICE, empty),
  one(REQUEST.RESET_OWNER, empty),
  one(REQUEST.SET_STATUS, number(fc.constantFrom(0n, 15n, 256n))),
  one(REQUEST.NET_SET_MTU, number(fc.constantFrom(0n, 1500n))),
  one(99, empty),
);

function descriptors(f: Fixture, kinds: Step['fds']): number[] {
  return kinds.map((kind) =>
    kind === 'eventfd'
      ? f.eventfd()
      : kind === 'memory'
        ? f.memoryFd
        : f.keep(native.memfdCreate('log', 0x200000)),
  );
}

/** What must hold in every state that a front-end can bring about. */
function checkState({ state }: BackEnd): void {
  for (const ring of state.rings) {
    if (state.heldBy(ring) !== undefined) continue;
    expect(ring.started).toBe(true);
    expect(state.memory).toBeDefined();
    expect(state.memory!.guestToOffset(ring.areas!.desc, 16 * ring.size)).toBeDefined();
    expect(state.memory!.guestToOffset(ring.areas!.driver, 4 + 2 * ring.size)).toBeDefined();
    expect(state.memory!.guestToOffset(ring.areas!.device, 4 + 8 * ring.size)).toBeDefined();
    if (state.logging) expect(state.log).toBeDefined();
  }
  if (state.logging && state.log && state.memory)
    expect(BigInt(state.log.size) * 8n * 4096n).toBeGreaterThanOrEqual(state.memory.end);
}

describe('a back-end under random requests', () => {
  it('answers each or closes, holds its invariants, and keeps no descriptor', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 40 }), async (steps) => {
        const [before, after] = await countingFds(async (f) => {
          await f.negotiate();
          for (const { request, payload, fds } of steps) {
            const flags = FLAG.VERSION | FLAG.NEED_REPLY;
            const sent = f.frontEnd.exchange(request, payload, descriptors(f, fds), flags);
            const outcome = await Promise.race([
              sent.then(
                (reply) => reply.length,
                (error) => error.code,
              ),
              // Without REPLY_ACK there may be no answer: ask for something that always has one.
              f.backEnd.done.then(() => 'ECLOSED'),
              ...(f.backEnd.state.protocolFeatures & 8n ? [] : [Promise.resolve('unanswered')]),
            ]);
            expect([8, 'ECLOSED', 'ECONNRESET', 'EPIPE', 'unanswered']).toContain(outcome);
            if (outcome !== 8) break;
            checkState(f.backEnd);
          }
        });
        expect(after).toBe(before);
      }),
      { numRuns: 150 },
    );
  });
});

/** A small generator with a seed, so that a failure can be repeated. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * below);
  };
}

describe('a back-end under mutated bytes', () => {
  const seconds = Number(process.env.FUZZ_SECONDS ?? 2);
  const seed = Number(process.env.FUZZ_SEED ?? 1);

  it(
    `survives them for ${seconds} s from seed ${seed}`,
    async () => {
      const random = randomFrom(seed);
      const before = openFds();
      const memory = native.memfdCreate('peer', MEMORY_BYTES);
      const event = native.eventfd();
      const pool = [memory, event];
      const session = (): [Buffer, number[]][] => {
        const say = (request: number, payload: Buffer, ...fds: number[]): [Buffer, number[]] => [
          encodeMessage(request, random(4) === 0 ? 9 : 1, payload),
          fds,
        ];
        const ring = (n: number): [Buffer, number[]][] => [
          say(REQUEST.SET_VRING_NUM, VRING_STATE.encode({ index: n, num: 256 })),
          say(REQUEST.SET_VRING_BASE, VRING_STATE.encode({ index: n, num: 0 })),
          say(
            REQUEST.SET_VRING_ADDR,
            VRING_ADDR.encode({
              index: n,
              descriptor: USER_BASE,
              available: USER_BASE + 4096n,
              used: USER_BASE + 8192n,
            }),
          ),
          say(REQUEST.SET_VRING_KICK, NUMBER.encode(BigInt(n)), event),
          say(REQUEST.SET_VRING_CALL, NUMBER.encode(BigInt(n)), event),
          say(REQUEST.SET_VRING_ERR, NUMBER.encode(BigInt(n)), event),
          say(REQUEST.SET_VRING_ENABLE, VRING_STATE.encode({ index: n, num: 1 })),
        ];
        return [
          say(REQUEST.SET_OWNER, Buffer.alloc(0)),
          say(REQUEST.GET_FEATURES, Buffer.alloc(0)),
          say(REQUEST.SET_PROTOCOL_FEATURES, NUMBER.encode(OFFERED_PROTOCOL_FEATURES)),
          say(REQUEST.SET_FEATURES, NUMBER.encode((1n << 32n) | (1n << 30n))),
          say(REQUEST.SET_MEM_TABLE, MEMORY_TABLE.encode([good]), memory),
          ...ring(0),
          ...ring(1),
          say(REQUEST.SET_LOG_BASE, LOG_DESCRIPTION.encode({ size: 512n }), memory),
          say(REQUEST.GET_VRING_BASE, VRING_STATE.encode({ index: 0 })),
          say(REQUEST.SET_STATUS, NUMBER.encode(0n)),
        ];
      };
      let rounds = 0;
      let whole = 0;
      // On a machine that is slow at the moment: until there was one of each.
      for (
        const end = Date.now() + seconds * 1000;
        Date.now() < end || whole === 0 || rounds === whole;
        rounds++
      ) {
        const [a, b] = native.unixPair();
        const device = new TestDevice();
        const backEnd = new BackEnd(a, device);
        for (const [message, fds] of session()) {
          const kind = random(24);
          if (kind === 0) message[random(message.length)] = random(256);
          if (kind === 1) message.writeUInt32LE(random(60), 0);
          if (kind === 2) message.writeUInt32LE(random(5000), 8);
          if (kind === 3) fds.push(pool[random(2)]!);
          if (kind === 4) fds.pop();
          if (kind === 5 && fds.length > 0) fds[0] = pool[random(2)]!;
          const cut = kind === 6 ? 1 + random(message.length - 1) : message.length;
          try {
            native.sendMessage(b, message.subarray(0, cut), fds);
            if (cut < message.length && random(2) === 0) native.sendMessage(b, message.subarray(cut), []);
          } catch (error) {
            expect((error as { code?: string }).code).toMatch(/EPIPE|ECONNRESET/);
            break;
          }
        }
        // A message takes a turn of the event loop.
        for (let turn = 0; turn < 60 && !backEnd.isClosed; turn++)
          await new Promise((resolve) => setImmediate(resolve));
        if (!backEnd.isClosed) whole++;
        backEnd.close();
        await backEnd.done;
        expect(device.events.filter((e) => e === 'closed')).toHaveLength(1);
        closeSync(b);
      }
      for (const fd of pool) closeSync(fd);
      // Both ends of a session were met: refused, and served to the end.
      expect(whole).toBeGreaterThan(0);
      expect(rounds).toBeGreaterThan(whole);
      expect(openFds()).toBe(before);
    },
    (seconds + 120) * 1000,
  );
});
