import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type AnyRow, MESSAGES } from '../../../src/vhost-user/messages.js';
import {
  encodeMessage,
  FLAG,
  HEADER,
  MEMORY_TABLE,
  REPLY_FRAMING,
  REQUEST,
  requestName,
} from '../../../src/vhost-user/protocol.js';

const u32 = fc.nat({ max: 0xffffffff });
const u64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
const region = { gpa: u64, size: u64, userAddress: u64, fileOffset: u64 };

/** Values of each payload of the table, by its name. */
const VALUES: Record<string, fc.Arbitrary<unknown>> = {
  nothing: fc.constant(undefined),
  u64,
  'vring state': fc.record({ index: u32, num: u32 }),
  'vring address': fc.record({
    index: u32,
    flags: u32,
    descriptor: u64,
    used: u64,
    available: u64,
    log: u64,
  }),
  'memory regions': fc.array(fc.record(region), { maxLength: 8 }),
  'single memory region': fc.record({ padding: u64, ...region }),
  log: fc.record({ size: u64, offset: u64 }),
  rarp: fc.record({
    mac: fc.uint8Array({ minLength: 6, maxLength: 6 }).map((b) => Buffer.from(b)),
    padding: fc.nat({ max: 0xffff }),
  }),
};

const valuesOf = (row: AnyRow): fc.Arbitrary<unknown> => {
  const values = VALUES[row.payload.name];
  if (!values) throw new Error(`no values for ${row.payload.name}`);
  return values;
};

describe('the message table', () => {
  it('names every request once, under the number of the protocol', () => {
    const numbers = MESSAGES.map((row) => row.request);
    expect(new Set(numbers).size).toBe(numbers.length);
    for (const row of MESSAGES) expect(row.request).toBe(REQUEST[row.name]);
  });

  for (const row of MESSAGES) {
    it(`gives the payload of ${row.name} back as it was encoded`, () => {
      fc.assert(
        fc.property(valuesOf(row), (value) => {
          const bytes = row.payload.encode(value);
          expect(row.payload.sizeOf(bytes)).toBe(bytes.length);
          expect(row.payload.decode(bytes)).toEqual(value);
        }),
        { numRuns: 50 },
      );
    });

    it(`takes no payload of ${row.name} that is cut or has a tail`, () => {
      fc.assert(
        fc.property(valuesOf(row), (value) => {
          const bytes = row.payload.encode(value);
          for (let n = 0; n < bytes.length; n++) expect(row.payload.sizeOf(bytes.subarray(0, n))).not.toBe(n);
          const longer = Buffer.concat([bytes, Buffer.alloc(1)]);
          expect(row.payload.sizeOf(longer)).not.toBe(longer.length);
        }),
        { numRuns: 10 },
      );
    });
  }
});

describe('the layouts', () => {
  it('are those of QEMU for a kick, a memory table and an address message', () => {
    const table = MEMORY_TABLE.encode([{ gpa: 1n, size: 2n, userAddress: 3n, fileOffset: 4n }]);
    expect(encodeMessage(REQUEST.SET_MEM_TABLE, FLAG.VERSION | FLAG.NEED_REPLY, table).toString('hex')).toBe(
      '050000000900000028000000' + // SET_MEM_TABLE, version 1 and need_reply, 40 bytes
        '0100000000000000' + // one region, padding
        '0100000000000000020000000000000003000000000000000400000000000000',
    );
    const address = MESSAGES.find((row) => row.name === 'SET_VRING_ADDR')!;
    const payload = { index: 1, flags: 1, descriptor: 2n, used: 3n, available: 4n, log: 5n };
    expect(address.payload.encode(payload).toString('hex')).toBe(
      '0100000001000000' + '0200000000000000' + '0300000000000000' + '0400000000000000' + '0500000000000000',
    );
  });

  it('let a request have a name for messages', () => {
    expect(requestName(5)).toBe('SET_MEM_TABLE');
    expect(requestName(77)).toBe('request 77');
  });

  it('refuse replies without the reply bit', () => {
    const header = HEADER.encode({ request: 1, flags: 1, size: 8 });
    expect(() => REPLY_FRAMING.totalBytes(header)).toThrow(/reply bit/);
    expect(REPLY_FRAMING.totalBytes(HEADER.encode({ request: 1, flags: 5, size: 8 }))).toBe(20);
  });
});
