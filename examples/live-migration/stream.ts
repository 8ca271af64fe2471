/**
 * A numbered, checkable stream of UDP datagrams from the receiving side to a guest, and what the guest makes of it. A
 * datagram is 32-bit words: its number, its bytes, and words that number and place determine. Knows no migration.
 */
import { join } from 'node:path';
import { type Child, checkout, run } from '../../test/support/process.js';
import type { Guest } from '../../test/support/qemu.js';

const PORT = 7000;
const DATAGRAM_BYTES = 1000;

/** Runs in the receiving side's network: `node -e SENDER address port datagrams-a-second`. Prints the count on SIGTERM. */
const SENDER = `
const socket = require('node:dgram').createSocket('udp4');
const [address, port, rate] = process.argv.slice(1);
const words = new Uint32Array(${DATAGRAM_BYTES / 4});
const begin = performance.now();
let sent = 0;
const timer = setInterval(() => {
  for (const due = ((performance.now() - begin) / 1000) * rate; sent < due; sent++) {
    words[0] = sent;
    words[1] = words.byteLength;
    for (let i = 2; i < words.length; i++) words[i] = Math.imul(sent + 1, 0x9e3779b1) + Math.imul(i, 0x85ebca6b);
    socket.send(Buffer.from(words.slice().buffer), Number(port), address, () => {});
  }
}, 2);
process.on('SIGTERM', () => {
  clearInterval(timer);
  console.log(sent);
  setTimeout(() => process.exit(0), 200);
});
`;

export interface StreamResult {
  readonly sent: number;
  readonly received: number;
  readonly altered: number;
  /** Twice, or after a later one. */
  readonly again: number;
  readonly lost: number;
  /** Runs of consecutive numbers that are missing. */
  readonly gaps: number;
  /** Of the lost, those that had reached the guest, and for which its socket had no room. */
  readonly guestDropped: number;
}

/** What the guest has to run; into `folder`, which the receiving side serves at `url`. */
export async function startStream(
  guest: Guest,
  options: {
    readonly folder: string;
    readonly url: string;
    readonly address: string;
    readonly rate: number;
    readonly start: (command: readonly string[]) => Child;
  },
): Promise<Child> {
  const { folder, url, address, rate, start } = options;
  const source = join(checkout, 'examples/live-migration/receiver.cc');
  await run('g++', ['-O1', '-static', source, '-o', join(folder, 'receiver')], { ms: 120_000 });
  await guest.ok(`wget -q -O /tmp/receiver ${url}/receiver && chmod +x /tmp/receiver`);
  await guest.ok(`/tmp/receiver ${PORT} >/tmp/stream 2>&1 & sleep 0.2; pidof receiver`);
  return start([process.execPath, '-e', SENDER, address, String(PORT), String(rate)]);
}

/** Ends the sender and asks the guest, wherever it is by now. */
export async function endStream(guest: Guest, sender: Child): Promise<StreamResult> {
  await sender.stop('SIGTERM');
  const sent = Number(sender.stdout.at(-1));
  await guest.ok('sleep 1; killall -TERM receiver; while pidof receiver; do sleep 0.1; done');
  const output = await guest.ok('cat /tmp/stream');
  const numbers = output.split(' ').map(Number);
  const [received, altered, again, missing, gaps, next] = numbers;
  if (numbers.length !== 6) throw new Error(`the guest's receiver said: ${output}`);
  // /proc/net/snmp: RcvbufErrors of UDP is its fifth number.
  const dropped = await guest.ok(`awk '/^Udp: [0-9]/ { print $6 }' /proc/net/snmp`);
  return {
    sent,
    received: received!,
    altered: altered!,
    again: again!,
    lost: missing! + Math.max(0, sent - next!),
    gaps: gaps!,
    guestDropped: Number(dropped),
  };
}
