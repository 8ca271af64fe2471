import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { VhostPciError } from '../../../src/util/errors.js';
import { CONTROL_BUFFER_BYTES } from '../../../src/vhost-pci/identity.js';
import {
  decodeMessage,
  encodeMessage,
  MAX_REGIONS,
  MAX_VIRTQS,
  MESSAGES,
  type Message,
  type MessageKind,
  STRUCTS,
} from '../../../src/vhost-pci/messages.js';

const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const virtq = fc.record({
  next_avail: u16,
  flags: u16,
  enable: u32,
  num: u32,
  reserved: u32,
  desc: u64,
  avail: u64,
  used: u64,
});
const region = fc.record({ gpa: u64, size: u64, bar_offset: u64 });

/** Any message of a kind. */
const ANY: { readonly [K in MessageKind]: fc.Arbitrary<Extract<Message, { kind: K }>> } = {
  connection: fc.record({ kind: fc.constant('connection' as const), on: fc.boolean() }),
  'mem-info-bar': fc.record({
    kind: fc.constant('mem-info-bar' as const),
    bar: fc.integer({ min: 0, max: 5 }),
    features: u64,
    mtu: u32,
    regions: fc.array(region, { minLength: 1, maxLength: 8 }),
  }),
  'mem-info-gva': fc.record({ kind: fc.constant('mem-info-gva' as const), address: u64 }),
  'virtq-info': fc.record({
    kind: fc.constant('virtq-info' as const),
    virtqs: fc.array(fc.tuple(virtq, virtq), { minLength: 1, maxLength: 4 }).map((pairs) => pairs.flat()),
  }),
  logging: fc.record({ kind: fc.constant('logging' as const), on: fc.boolean() }),
  'log-base': fc.record({ kind: fc.constant('log-base' as const), gpa: u64, size: u64 }),
  announce: fc.record({
    kind: fc.constant('announce' as const),
    mac: fc.uint8Array({ minLength: 6, maxLength: 6 }).map((m) => Buffer.from(m)),
  }),
  mtu: fc.record({ kind: fc.constant('mtu' as const), mtu: u16 }),
  broken: fc.record({ kind: fc.constant('broken' as const), ring: u16 }),
};

const anyMessage: fc.Arbitrary<Message> = fc.oneof(...Object.values(ANY));

function refusal(chain: Buffer): VhostPciError {
  try {
    decodeMessage(chain);
  } catch (error) {
    expect(error).toBeInstanceOf(VhostPciError);
    expect((error as VhostPciError).scope).toBe('message');
    return error as VhostPciError;
  }
  throw new Error(`${chain.toString('hex')} was decoded`);
}

/** A message with `virtq_num` as given and room for `present` rings. */
function virtqInfo(num: number, present: number): Buffer {
  const head = STRUCTS.virtqInfo.encode({ virtq_num: num });
  return Buffer.concat([Buffer.of(2, 0), head, Buffer.alloc(present * STRUCTS.virtq.size)]);
}

function memInfo(bar: bigint, count: number, present: number): Buffer {
  return Buffer.concat([
    Buffer.of(1, 0),
    STRUCTS.peerMemInfo.encode({ peer_mem: bar }),
    STRUCTS.otherMemInfo.encode({ region_count: count }),
    Buffer.alloc(present * STRUCTS.memRegion.size),
  ]);
}

describe('the table of control messages', () => {
  it('has the numbers of the seed, and class 128 for our own', () => {
    const numbers = MESSAGES.map((r) => `${r.class}.${r.command} ${r.kind}`);
    expect(numbers).toEqual([
      '0.0 connection',
      '0.1 connection',
      '1.0 mem-info-bar',
      '1.1 mem-info-gva',
      '2.0 virtq-info',
      '3.0 logging',
      '3.1 logging',
      '3.2 log-base',
      '128.0 announce',
      '128.1 mtu',
      '128.2 broken',
    ]);
  });

  for (const row of MESSAGES) {
    const name = `class ${row.class} command ${row.command} (${row.kind})`;
    const any = (ANY[row.kind] as fc.Arbitrary<Message>).filter(
      (m) => !('on' in m) || Number(m.on) === row.command,
    );

    it(`${name}: what is encoded is decoded again`, () => {
      fc.assert(
        fc.property(any, (message) => {
          const chain = encodeMessage(message);
          expect([...chain.subarray(0, 2)]).toEqual([row.class, row.command]);
          expect(decodeMessage(chain)).toEqual(message);
        }),
        { numRuns: 50 },
      );
    });

    it(`${name}: bytes behind it change nothing, a byte less is refused`, () => {
      fc.assert(
        fc.property(any, fc.uint8Array({ maxLength: 20 }), fc.nat(), (message, more, cut) => {
          const chain = encodeMessage(message);
          expect(decodeMessage(Buffer.concat([chain, more]))).toEqual(message);
          expect(refusal(chain.subarray(0, cut % chain.length)).code).toBe('ETRUNCATED');
        }),
        { numRuns: 50 },
      );
    });
  }

  it('refuses a class or command that is in no row', () => {
    const known = new Set(MESSAGES.map((r) => (r.class << 8) | r.command));
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 0xffff }), fc.uint8Array({ maxLength: 64 }), (id, data) => {
        fc.pre(!known.has(id));
        expect(refusal(Buffer.concat([Buffer.of(id >> 8, id & 0xff), data])).code).toBe('ENOMSG');
      }),
    );
  });

  it('refuses rings that are none, odd in number, too many, or not all there', () => {
    for (const num of [0, 1, 3, 255, MAX_VIRTQS + 2, 0xffff_fffe, 0xffff_ffff])
      expect(refusal(virtqInfo(num, 300)).code).toBe('EBADMSG');
    for (const num of [2, 4, MAX_VIRTQS]) {
      expect(refusal(virtqInfo(num, num - 1)).code).toBe('ETRUNCATED');
      expect(decodeMessage(virtqInfo(num, num))).toMatchObject({ kind: 'virtq-info' });
    }
  });

  it('refuses regions that are none, too many, or not all there, and a BAR that no device has', () => {
    for (const count of [0, MAX_REGIONS + 1, 0xffff_ffff])
      expect(refusal(memInfo(2n, count, 600)).code).toBe('EBADMSG');
    expect(refusal(memInfo(2n, 3, 2)).code).toBe('ETRUNCATED');
    for (const bar of [6n, 1n << 32n, 2n ** 64n - 1n])
      expect(refusal(memInfo(bar, 1, 1)).code).toBe('EBADMSG');
    expect(decodeMessage(memInfo(5n, MAX_REGIONS, MAX_REGIONS))).toMatchObject({ bar: 5 });
  });

  it('refuses whatever bytes it is given with an error of scope message, or decodes them', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (bytes, seeded) => {
        const chain = Buffer.from(bytes);
        // Half of the runs get past the table.
        const row = MESSAGES[(bytes[0] ?? 0) % MESSAGES.length]!;
        if (seeded && chain.length >= 2) chain.set([row.class, row.command]);
        try {
          decodeMessage(chain);
        } catch (error) {
          expect((error as VhostPciError).scope).toBe('message');
        }
      }),
      { numRuns: 500 },
    );
  });

  it('has no message that does not fit the buffers of the control receiveq', () => {
    const largest = Math.max(
      virtqInfo(MAX_VIRTQS, MAX_VIRTQS).length,
      memInfo(2n, MAX_REGIONS, MAX_REGIONS).length,
    );
    expect(largest).toBeLessThanOrEqual(CONTROL_BUFFER_BYTES);
    fc.assert(
      fc.property(anyMessage, (message) => encodeMessage(message).length <= CONTROL_BUFFER_BYTES),
      { numRuns: 50 },
    );
  });
});
