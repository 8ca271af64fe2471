/** The RARP frame that tells switches where a MAC address is now (RFC 903), as virtual machine monitors send it. */
import { VhostPciError } from '../util/errors.js';
import { BROADCAST, MAC_BYTES } from './mac.js';

export const ETHERTYPE = { IPV4: 0x0800, ARP: 0x0806, RARP: 0x8035 } as const;
/** Shortest frame on the wire, without the frame check sequence (IEEE 802.3, 4.2.3.3). */
export const MIN_FRAME_BYTES = 60;

const HARDWARE_ETHERNET = 1;
const REQUEST_REVERSE = 3;
const IPV4_BYTES = 4;

/** Network byte order, unlike everything of virtio: hence no `struct()`. */
export function rarpAnnouncement(mac: Uint8Array): Buffer {
  if (mac.length !== MAC_BYTES)
    throw new VhostPciError('bug', 'EBADSIZE', `a MAC address of ${mac.length} bytes`);
  const body = Buffer.alloc(8);
  body.writeUInt16BE(HARDWARE_ETHERNET, 0);
  body.writeUInt16BE(ETHERTYPE.IPV4, 2);
  body[4] = MAC_BYTES;
  body[5] = IPV4_BYTES;
  body.writeUInt16BE(REQUEST_REVERSE, 6);
  const noAddress = Buffer.alloc(IPV4_BYTES);
  return ethernetFrame(BROADCAST, mac, ETHERTYPE.RARP, Buffer.concat([body, mac, noAddress, mac, noAddress]));
}

/** A frame without check sequence, padded to the minimum. */
export function ethernetFrame(to: Uint8Array, from: Uint8Array, type: number, payload: Uint8Array): Buffer {
  const header = Buffer.alloc(2 * MAC_BYTES + 2);
  header.set(to, 0);
  header.set(from, MAC_BYTES);
  header.writeUInt16BE(type, 2 * MAC_BYTES);
  const frame = Buffer.concat([header, payload]);
  return Buffer.concat([frame, Buffer.alloc(Math.max(0, MIN_FRAME_BYTES - frame.length))]);
}
