/**
 * TCP in both directions at once between a guest and the TAP's side, for as long as it is wanted. What it moves is
 * thrown away; connections that die are made again. Counts nothing: the driver's statistics do.
 */
import type { Child } from './process.js';
import type { Guest } from './qemu.js';
import type { Driver } from './rig.js';
import { GUEST_IP, type VmPeer } from './vm-peer.js';

/** Long enough for a few connections a second at most, small enough for the guest's memory. */
const FILE_MIB = 32;
/** Packets each way that count as traffic. */
const PACKETS = 100;

export class Load {
  readonly #vm: VmPeer;
  #server: Awaited<ReturnType<VmPeer['serve']>> | undefined;
  #client: Child | undefined;

  constructor(vm: VmPeer) {
    this.#vm = vm;
  }

  /** Both directions. The guest has to be up, and loses its part when it is reset. */
  async start(guest: Guest): Promise<void> {
    this.#server ??= await this.#vm.serve(FILE_MIB);
    const again = (wget: string, url: string): string =>
      `while :; do ${wget} -q -T 5 -O /dev/null ${url} || sleep 0.2; done`;
    await guest.ok(`mkdir -p /tmp/load && head -c ${FILE_MIB << 20} /dev/zero >/tmp/load/file`);
    await guest.ok('httpd -p 81 -h /tmp/load');
    await guest.ok(
      `(${again('wget', this.#server.url)}) >/dev/null 2>&1 </dev/null & echo $! >/tmp/load/pid`,
    );
    const { busybox, netns } = this.#vm;
    this.#client ??= netns.start('wget', [
      busybox,
      'sh',
      '-c',
      again(`${busybox} wget`, `http://${GUEST_IP}:81/file`),
    ]);
  }

  /** Ends it; `guest` is left out when its part is gone already. */
  async stop(guest?: Guest): Promise<void> {
    await this.#client?.kill();
    await this.#server?.server.kill();
    this.#client = undefined;
    this.#server = undefined;
    await guest?.run('kill -9 $(cat /tmp/load/pid); killall -9 wget httpd; rm -rf /tmp/load');
  }
}

/** Waits until the statistics that come from now on show packets in both directions. */
export async function flowing(net: Driver, ms = 60_000): Promise<void> {
  const from = net.mark();
  let base: { receive: number; send: number } | undefined;
  await net.child.event(
    'packets in both directions',
    ms,
    (event) => {
      if (event.event !== 'stats') return false;
      const totals = net.totals();
      if (!totals) return false;
      const now = { receive: totals.receive.packets, send: totals.send.packets };
      base ??= now;
      return now.receive >= base.receive + PACKETS && now.send >= base.send + PACKETS;
    },
    from,
  );
}
