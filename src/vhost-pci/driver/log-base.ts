/**
 * Where the device wants the dirty bits (SET_LOG_BASE, docs/protocol.md, P5): checks that this is the bitmap of the shared
 * pages as they are mapped here. A log anywhere else would be one that nobody reads, and the migration would lose pages.
 */
import type { DirtyLog } from '../../sys/native.js';
import { VhostPciError } from '../../util/errors.js';
import { PAGE } from '../identity.js';
import type { InitialisedDevice, MappedBar } from './initialise.js';

/** Of the message: an address in the PCI address space of the machine that the driver runs in, and bytes. */
export interface LogBase {
  readonly gpa: bigint;
  readonly size: bigint;
}

/** Throws `EBADMSG` (scope device) when it is not the bitmap, or not one of all the memory. */
export async function dirtyLogAt(
  device: InitialisedDevice,
  base: LogBase | undefined,
  memory: MappedBar,
): Promise<DirtyLog> {
  // Bit 0 is that of the BAR's first page (P6), and the engine counts from the first that is mapped.
  if (memory.area.offset !== 0)
    throw bad(
      `a dirty log of memory that can be mapped from ${hex(BigInt(memory.area.offset))} of its BAR on`,
    );
  const { bitmapOffset, bitmapBytes } = device.layout;
  const size = base?.size ?? 0n;
  const needed = Math.ceil(memory.mapping.size / PAGE / 8);
  if (!base || size > BigInt(bitmapBytes) || size < BigInt(needed))
    throw bad(
      `a dirty log of ${size} bytes: the peer's memory needs ${needed}, the bitmap in BAR 4 has ${bitmapBytes}`,
    );
  const shared = await device.sharedAddress();
  const end = shared + BigInt(device.pages.size);
  if (base.gpa < shared || base.gpa + size > end)
    throw bad(
      `a dirty log at ${hex(base.gpa)}, which is outside of the shared pages in BAR 4, ${hex(shared)} to ${hex(end)}`,
    );
  if (base.gpa - shared !== BigInt(bitmapOffset))
    throw bad(
      `a dirty log at ${hex(base.gpa)}: the bitmap in BAR 4 is at ${hex(shared + BigInt(bitmapOffset))}`,
    );
  return { mapping: device.pages, offset: bitmapOffset, bytes: bitmapBytes };
}

const hex = (n: bigint): string => `0x${n.toString(16)}`;

function bad(what: string): VhostPciError {
  return new VhostPciError(
    'device',
    'EBADMSG',
    `the device asks for ${what}. Nothing is logged there, and the device is not told that it is: the peer cannot be migrated`,
  );
}
