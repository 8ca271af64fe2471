/**
 * The reply to RING_EVENTFDS (docs/protocol.md, P7): the peer's own eventfds, ring by ring. Encodes for the server and
 * decodes, distrusting every number, for the client.
 */
import type { RingEventfds } from '../pci/handle.js';
import { isEventfd } from '../sys/eventfd.js';
import { connectionError, RingEventfdsHeader, RingEventfdsRow } from './protocol.js';

/** Index of an eventfd that a ring has not. */
const NONE = 0xffff_ffff;
/** Descriptors that a ring may have. */
const EACH = 2;

/** How many rings fit a reply of `argsz` bytes with `maxFds` descriptors. */
export function ringsInReply(argsz: number, maxFds: number): number {
  const rows = Math.floor((argsz - RingEventfdsHeader.size) / RingEventfdsRow.size);
  return Math.min(rows, Math.floor(maxFds / EACH));
}

export function encodeRingEventfds(
  first: number,
  rings: readonly RingEventfds[],
): { payload: Buffer; fds: number[] } {
  const fds: number[] = [];
  const index = (fd: number | undefined): number => (fd === undefined ? NONE : fds.push(fd) - 1);
  const rows = rings.map(({ kick, call }) =>
    RingEventfdsRow.encode({ kick: index(kick), call: index(call) }),
  );
  const argsz = RingEventfdsHeader.size + rows.length * RingEventfdsRow.size;
  const header = RingEventfdsHeader.encode({ argsz, first, count: rows.length });
  return { payload: Buffer.concat([header, ...rows]), fds };
}

/** Decodes a reply that came with `fds`, each of which it names once. They stay the caller's. Throws (scope `connection`). */
export function decodeRingEventfds(payload: Buffer, first: number, fds: readonly number[]): RingEventfds[] {
  const h = RingEventfdsHeader.decode(payload);
  if (h.first !== first || h.count > (payload.length - RingEventfdsHeader.size) / RingEventfdsRow.size)
    throw connectionError('EPROTO', 'eventfds of rings that do not fit their message');
  if (!fds.every(isEventfd)) throw connectionError('EPROTO', 'a ring has a descriptor that is no eventfd');
  const left = new Set(fds.keys());
  const take = (index: number): number | undefined => {
    if (index === NONE) return undefined;
    if (!left.delete(index)) throw connectionError('EPROTO', `eventfd ${index} of ${fds.length}, or twice`);
    return fds[index];
  };
  const rings = Array.from({ length: h.count }, (_, i) => {
    const row = RingEventfdsRow.decode(payload, RingEventfdsHeader.size + i * RingEventfdsRow.size);
    const kick = take(row.kick);
    const call = take(row.call);
    return { ...(kick !== undefined && { kick }), ...(call !== undefined && { call }) };
  });
  if (left.size > 0) throw connectionError('EPROTO', `${left.size} eventfds that belong to no ring`);
  return rings;
}
