/**
 * The shared page set in BAR4: doorbell words, the relay's sleep word and the dirty bitmap. Layout: docs/protocol.md,
 * P6. The device owns the memory; the driver maps it.
 */
import type { Mapping } from '../sys/native.js';
import { VhostPciError } from '../util/errors.js';
import { struct } from '../util/struct.js';
import { nextPowerOfTwo, PAGE } from './identity.js';
import { MAX_VIRTQS } from './messages.js';

const header = struct('vhost_pci_shared', 32, {
  magic: 'u32',
  version: 'u32',
  doorbells: 'u32',
  doorbell_stride: 'u32',
  bitmap_offset: 'u64',
  bitmap_bytes: 'u64',
});

const MAGIC = 0x69637076; // "vpci"
const VERSION = 1;
/** A cache line a word, so that two rings' doorbells do not share one. */
const STRIDE = 64;

export const SLEEP_OFFSET = 0x40;
const DOORBELLS_OFFSET = 0x1000;
const BITMAP_OFFSET = 0x8000;

export interface SharedPagesLayout {
  /** Size of the whole set: a power of two. */
  readonly size: number;
  readonly bitmapOffset: number;
  readonly bitmapBytes: number;
}

/** The layout for a peer memory file of `memoryBytes`. */
export function sharedPagesLayout(memoryBytes: number): SharedPagesLayout {
  // Whole 64-bit words, so that the mover can exchange them.
  const bitmapBytes = Math.ceil(memoryBytes / PAGE / 64) * 8;
  return {
    size: nextPowerOfTwo(BITMAP_OFFSET + bitmapBytes),
    bitmapOffset: BITMAP_OFFSET,
    bitmapBytes,
  };
}

/** Offset of the doorbell word of the peer's ring. */
export function doorbellOffset(ring: number): number {
  return DOORBELLS_OFFSET + ring * STRIDE;
}

export function writeHeader(pages: Mapping, layout: SharedPagesLayout): void {
  pages.write(
    0,
    header.encode({
      magic: MAGIC,
      version: VERSION,
      doorbells: MAX_VIRTQS,
      doorbell_stride: STRIDE,
      bitmap_offset: BigInt(layout.bitmapOffset),
      bitmap_bytes: BigInt(layout.bitmapBytes),
    }),
  );
}

/** Reads and checks the header that the device wrote. Throws (scope `device`) when this is not our layout. */
export function readHeader(pages: Mapping): SharedPagesLayout {
  const h = header.decode(pages.read(0, header.size));
  const fail = (text: string): VhostPciError =>
    new VhostPciError('device', 'EPROTO', `the device's shared page set in BAR4 ${text}`);
  if (h.magic !== MAGIC) throw fail('has no "vpci" mark: this is not a vhost-pci-net device of ours');
  if (h.version !== VERSION) throw fail(`has version ${h.version}; this driver knows ${VERSION}`);
  if (h.doorbell_stride !== STRIDE || h.doorbells > MAX_VIRTQS) throw fail('has impossible doorbells');
  if (h.bitmap_offset < DOORBELLS_OFFSET + MAX_VIRTQS * STRIDE || h.bitmap_offset % 8n !== 0n)
    throw fail('has its dirty bitmap among other things');
  if (h.bitmap_offset + h.bitmap_bytes > BigInt(pages.size)) throw fail('has its dirty bitmap past the end');
  return { size: pages.size, bitmapOffset: Number(h.bitmap_offset), bitmapBytes: Number(h.bitmap_bytes) };
}
