/** Traffic between two guests, in both directions, all of which has to arrive. Knows no vhost-pci. */
import type { Guest } from './qemu.js';

/** A guest and the address that the other one has it by. */
export interface End {
  readonly guest: Guest;
  readonly ip: string;
}

/** After one packet that may be lost while the addresses are asked for. */
export async function pingBothWays(one: End, other: End): Promise<void> {
  await one.guest.ok(`ping -c 1 -w 30 ${other.ip}`);
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    const said = await from.guest.ok(`ping -c 3 -i 0.2 -W 5 ${to.ip}`);
    if (!/ 0% packet loss/.test(said)) throw new Error(`packets were lost:\n${said}`);
  }
}

/** A file of random bytes each way by TCP. */
export async function transferBothWays(one: End, other: End, mib: number): Promise<void> {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    await from.guest.ok(`mkdir -p /tmp/www && head -c ${mib << 20} /dev/urandom >/tmp/www/file`);
    await from.guest.ok('httpd -p 80 -h /tmp/www');
    const sent = (await from.guest.ok('sha256sum /tmp/www/file')).slice(0, 64);
    const got = await to.guest.ok(`wget -q -T 60 -O - http://${from.ip}/file | sha256sum`, 120_000);
    if (got.slice(0, 64) !== sent) throw new Error(`a file of ${mib} MiB was altered: ${sent}, then ${got}`);
    await from.guest.ok('killall httpd; rm -r /tmp/www');
  }
}
