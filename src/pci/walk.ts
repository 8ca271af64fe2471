/**
 * Driver side of the capability list. Takes one snapshot of the first 256 bytes and walks that, so that a device cannot
 * change the list under the walk or lead it in circles.
 */
import { VhostPciError } from '../util/errors.js';
import { ConfigHeader, FIRST_CAPABILITY, STANDARD_SPACE_SIZE, STATUS_CAP_LIST } from './config-space.js';
import { type PciHandle, REGION } from './handle.js';

export interface FoundCapability {
  readonly id: number;
  /** Where it starts in configuration space. */
  readonly offset: number;
  /** From its first byte to the end of the standard space: its own length is for its reader to check. */
  readonly bytes: Buffer;
}

/** In the order of the list; empty when the function has none. Throws `ECAPLIST` (scope device) when it is broken. */
export async function walkCapabilities(handle: PciHandle): Promise<FoundCapability[]> {
  const space = await handle.read(REGION.CONFIG, 0, STANDARD_SPACE_SIZE);
  const header = ConfigHeader.decode(space);
  if ((header.status & STATUS_CAP_LIST) === 0) return [];
  const found: FoundCapability[] = [];
  const seen = new Set<number>();
  const broken = (what: string): VhostPciError =>
    new VhostPciError('device', 'ECAPLIST', `${handle.name}: the capability list ${what}`);

  // The two low bits of a link are reserved (PCI 3.0, 6.7).
  for (let at = header.capability_list & ~3; at !== 0; at = space[at + 1]! & ~3) {
    if (at < FIRST_CAPABILITY) throw broken(`points into the header, at 0x${at.toString(16)}`);
    if (seen.has(at)) throw broken(`returns to 0x${at.toString(16)}`);
    seen.add(at);
    found.push({ id: space[at]!, offset: at, bytes: space.subarray(at) });
  }
  return found;
}
