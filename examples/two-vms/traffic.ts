/** Traffic between two guests, and whether all of it arrived: ping, TCP with checksums. Knows no vhost-pci. */
import type { Guest } from '../../test/support/qemu.js';
import { round } from './run.js';

export interface End {
  readonly name: string;
  readonly guest: Guest;
  readonly ip: string;
}

export interface Ping {
  readonly sent: number;
  readonly received: number;
  readonly rtt_ms: { readonly min: number; readonly avg: number; readonly max: number };
}

/** After one packet that may be lost while the addresses are asked for, `count` of which none may. */
export async function ping({ guest }: End, to: End, count: number): Promise<Ping> {
  await guest.ok(`ping -c 1 -w 20 ${to.ip}`);
  const { output } = await guest.run(`ping -c ${count} -i 0.2 -W 5 ${to.ip}`);
  const packets = /(\d+) packets transmitted, (\d+) packets received/.exec(output);
  const times = /min\/avg\/max = ([\d.]+)\/([\d.]+)\/([\d.]+) ms/.exec(output);
  if (!packets) throw new Error(`ping said: ${output}`);
  const [min, avg, max] = (times?.slice(1) ?? []).map(Number);
  return {
    sent: Number(packets[1]),
    received: Number(packets[2]),
    rtt_ms: { min: min ?? 0, avg: avg ?? 0, max: max ?? 0 },
  };
}

export interface Tcp {
  readonly bytes: number;
  readonly seconds: number;
  readonly mbit_per_s: number;
  readonly sha256_sent: string;
  readonly sha256_received: string;
  readonly intact: boolean;
}

/** A file of random bytes by HTTP. The time is that of the transfer; the checksums are made before and after. */
export async function tcp(from: End, to: End, mib: number): Promise<Tcp> {
  const bytes = mib << 20;
  const sum = async ({ guest }: End, file: string): Promise<string> =>
    (await guest.ok(`sha256sum ${file}`, 60_000)).slice(0, 64);
  await from.guest.ok(`mkdir -p /tmp/www && head -c ${bytes} /dev/urandom >/tmp/www/file`, 60_000);
  await from.guest.ok('httpd -p 80 -h /tmp/www');
  const sent = await sum(from, '/tmp/www/file');
  const uptime = 'cut -d " " -f 1 /proc/uptime';
  const times = await to.guest.ok(
    `${uptime}; wget -q -T 60 -O /tmp/got http://${from.ip}/file || exit; ${uptime}`,
    100_000,
  );
  const [begin, end] = times.split('\n').map(Number);
  const received = await sum(to, '/tmp/got');
  await from.guest.ok('killall httpd; rm -r /tmp/www');
  await to.guest.ok('rm /tmp/got');
  const seconds = Math.max(end! - begin!, 0.01);
  return {
    bytes,
    seconds: round(seconds),
    mbit_per_s: round((bytes * 8) / seconds / 1e6),
    sha256_sent: sent,
    sha256_received: received,
    intact: sent === received && sent.length === 64,
  };
}
