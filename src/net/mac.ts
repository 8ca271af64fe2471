/** Ethernet addresses: text and bytes. */
import { randomBytes } from 'node:crypto';
import { usageError } from '../util/errors.js';

export const MAC_BYTES = 6;
export const BROADCAST: Uint8Array = new Uint8Array(MAC_BYTES).fill(0xff);

const PATTERN = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i;
const GROUP = 0x01;
const LOCAL = 0x02;

/** Six bytes of `02:00:00:00:00:01`. Throws a usage error for anything else. */
export function parseMac(text: string): Buffer {
  if (!PATTERN.test(text)) throw usageError(`'${text}' is no MAC address; write it as 02:00:00:00:00:01`);
  return Buffer.from(text.replaceAll(':', ''), 'hex');
}

export function formatMac(mac: Uint8Array): string {
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** Not a group address, and not all zero. */
export function isUnicast(mac: Uint8Array): boolean {
  return mac.length === MAC_BYTES && (mac[0]! & GROUP) === 0 && mac.some((byte) => byte !== 0);
}

/** A locally administered unicast address. */
export function randomMac(): Buffer {
  const mac = randomBytes(MAC_BYTES);
  mac[0] = (mac[0]! & ~GROUP) | LOCAL;
  return mac;
}
