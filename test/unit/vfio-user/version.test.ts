import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DEFAULTS, encodeCapabilities, parseCapabilities } from '../../../src/vfio-user/version.js';

const parse = (value: unknown) => parseCapabilities(Buffer.from(`${JSON.stringify(value)}\0`));

describe('capabilities', () => {
  it('are the defaults of the specification when nothing is said', () => {
    for (const nothing of [Buffer.alloc(0), Buffer.from('{}\0'), Buffer.from('{"capabilities":{}}\0')]) {
      const { named: _, ...caps } = parseCapabilities(nothing);
      expect(caps).toEqual({
        maxMessageFds: 1,
        maxDataTransfer: 1048576,
        maxDmaMaps: 65535,
        pageSizes: 4096,
        writeMultiple: false,
      });
    }
  });

  it('are read as they are given, with no more fds than a message may carry', () => {
    const caps = parse({ capabilities: { max_msg_fds: 99, max_data_xfer_size: 512, write_multiple: true } });
    expect(caps).toMatchObject({ maxMessageFds: 16, maxDataTransfer: 512, writeMultiple: true });
  });

  it('may come with names that we do not know', () => {
    expect(parse({ capabilities: { something_new: [1, { a: null }] }, other: 1 }).maxMessageFds).toBe(1);
    expect(parse({ capabilities: { toString: 1, __proto__: 2 } })).toMatchObject({ maxMessageFds: 1 });
  });

  it('survive the way there and back', () => {
    expect(parseCapabilities(encodeCapabilities())).toMatchObject({
      maxMessageFds: 16,
      maxDataTransfer: 1 << 20,
      maxDmaMaps: 4096,
      pageSizes: 4096,
      writeMultiple: true,
    });
  });

  it('of a reply are a subset of those proposed', () => {
    const asked = parse({ capabilities: { pgsizes: 4096, migration: {}, unknown: 1 } });
    expect(encodeCapabilities(asked).toString()).toBe('{"capabilities":{"pgsizes":4096}}\0');
    expect(encodeCapabilities(DEFAULTS).toString()).toBe('{"capabilities":{}}\0');
  });

  it('allow braces inside strings, and nesting that is not deep', () => {
    expect(parse({ capabilities: {}, text: `${'{'.repeat(100)}"\\"[` })).toBeDefined();
    expect(parse({ capabilities: {}, a: [[[[[[[[1]]]]]]]] })).toBeDefined();
  });

  it('are either read or refused with an error of the connection, whatever the bytes', () => {
    const check = (bytes: Uint8Array) => {
      try {
        const caps = parseCapabilities(bytes);
        expect(caps.maxMessageFds).toBeLessThanOrEqual(16);
        expect(Number.isSafeInteger(caps.maxDataTransfer)).toBe(true);
      } catch (error) {
        expect(error).toMatchObject({ scope: 'connection', code: 'EINVAL' });
      }
    };
    fc.assert(fc.property(fc.uint8Array({ maxLength: 64 }), check));
    fc.assert(
      fc.property(fc.json({ maxDepth: 20 }), (text) => check(Buffer.from(`{"capabilities":${text}}\0`))),
    );
    const name = fc.constantFrom(
      'max_msg_fds',
      'max_data_xfer_size',
      'pgsizes',
      'max_dma_maps',
      'write_multiple',
    );
    fc.assert(
      fc.property(fc.dictionary(name, fc.jsonValue()), (capabilities) =>
        check(Buffer.from(`${JSON.stringify({ capabilities })}\0`)),
      ),
    );
  });
});
