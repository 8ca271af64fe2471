import { closeSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { type Mapping, native } from '../../../src/sys/native.js';
import type { VhostPciError } from '../../../src/util/errors.js';
import { PAGE } from '../../../src/vhost-pci/identity.js';
import { MAX_VIRTQS } from '../../../src/vhost-pci/messages.js';
import {
  doorbellOffset,
  readHeader,
  SLEEP_OFFSET,
  sharedPagesLayout,
  writeHeader,
} from '../../../src/vhost-pci/shared-pages.js';

const open: (() => void)[] = [];
afterEach(() => {
  for (const close of open.splice(0)) close();
});

function pagesOf(bytes: number): Mapping {
  const fd = native.memfdCreate('pages', bytes);
  const pages = new native.Mapping(fd, 0, bytes, true);
  open.push(() => {
    pages.close();
    closeSync(fd);
  });
  return pages;
}

const HEADER_BYTES = 32;

describe('the shared page set', () => {
  it('has a bit for every page of the peer memory, in a set whose size is a power of two', () => {
    const sizes = fc.oneof(
      fc.integer({ min: 1, max: 2 ** 30 / PAGE }).map((pages) => pages * PAGE),
      fc.integer({ min: 12, max: 46 }).map((n) => 2 ** n),
      fc.constantFrom(PAGE, 63 * PAGE, 64 * PAGE, 65 * PAGE, 3 * 2 ** 30, 2 ** 40 + PAGE),
    );
    fc.assert(
      fc.property(sizes, (bytes) => {
        const { size, bitmapOffset, bitmapBytes } = sharedPagesLayout(bytes);
        expect(Number.isInteger(Math.log2(size))).toBe(true);
        expect(bitmapBytes * 8 * PAGE).toBeGreaterThanOrEqual(bytes);
        // Not a word more than is needed.
        expect((bitmapBytes - 8) * 8 * PAGE).toBeLessThan(bytes);
        expect(bitmapBytes % 8).toBe(0);
        expect(bitmapOffset % PAGE).toBe(0);
        expect(bitmapOffset + bitmapBytes).toBeLessThanOrEqual(size);
        expect(size).toBeLessThan(2 * (bitmapOffset + bitmapBytes));
      }),
    );
  });

  it('keeps header, sleep word, doorbells and bitmap apart', () => {
    const { bitmapOffset } = sharedPagesLayout(PAGE);
    const words = [SLEEP_OFFSET, ...Array.from({ length: MAX_VIRTQS }, (_, ring) => doorbellOffset(ring))];
    for (const at of words) {
      expect(at).toBeGreaterThanOrEqual(HEADER_BYTES);
      expect(at + 4).toBeLessThanOrEqual(bitmapOffset);
    }
    expect(new Set(words.map((at) => Math.floor(at / 64))).size).toBe(words.length);
  });

  it('is read as it was written', () => {
    for (const bytes of [PAGE, 4 << 20, 5 * 2 ** 30]) {
      const layout = sharedPagesLayout(bytes);
      const pages = pagesOf(layout.size);
      writeHeader(pages, layout);
      expect(readHeader(pages)).toEqual(layout);
    }
  });

  it('is refused when a word of its header is not ours', () => {
    const layout = sharedPagesLayout(4 << 20);
    const pages = pagesOf(layout.size);
    const refused = (write: (header: Buffer) => void): VhostPciError => {
      writeHeader(pages, layout);
      const header = pages.read(0, HEADER_BYTES);
      write(header);
      pages.write(0, header);
      try {
        readHeader(pages);
      } catch (error) {
        return error as VhostPciError;
      }
      throw new Error(`${header.toString('hex')} was taken`);
    };
    for (const [write, words] of [
      [(h: Buffer) => h.writeUInt32LE(0, 0), /no "vpci" mark/],
      [(h: Buffer) => h.writeUInt32LE(2, 4), /version 2/],
      [(h: Buffer) => h.writeUInt32LE(MAX_VIRTQS + 1, 8), /doorbells/],
      [(h: Buffer) => h.writeUInt32LE(128, 12), /doorbells/],
      [(h: Buffer) => h.writeBigUInt64LE(BigInt(layout.size), 16), /bitmap/],
      [(h: Buffer) => h.writeBigUInt64LE(2n ** 64n - 8n, 16), /bitmap/],
      [(h: Buffer) => h.writeBigUInt64LE(BigInt(layout.size), 24), /bitmap/],
      [(h: Buffer) => h.writeBigUInt64LE(2n ** 64n - 1n, 24), /bitmap/],
      [(h: Buffer) => h.writeBigUInt64LE(0n, 16), /bitmap/],
      [(h: Buffer) => h.writeBigUInt64LE(0x8001n, 16), /bitmap/],
    ] as const) {
      const error = refused(write);
      expect(error.scope).toBe('device');
      expect(error.message).toMatch(words);
    }
  });
});
