/**
 * A stock Linux guest on stock QEMU as the peer, our two commands, and a TAP in a network namespace as the
 * receiving side: 10.0.0.2 is the guest, 10.0.0.1 the TAP.
 */
import { join } from 'node:path';
import { Netns, netnsAvailable } from './netns.js';
import { fetchSet } from './packages.js';
import type { Child } from './process.js';
import { Guest, type GuestMemory, type GuestOptions, type Qemu, qemu } from './qemu.js';
import { type Driver, Rig } from './rig.js';
import { need, type Scope } from './scope.js';

export const GUEST_IP = '10.0.0.2';
export const TAP_IP = '10.0.0.1';
const MIB = 256;

export interface VmPeerOptions {
  readonly mode?: 'window' | 'adopt';
  /** The guest's memory. */
  readonly mib?: number;
  /** Window mode: the folder of the memory file; a new one in /dev/shm by default. */
  readonly folder?: string;
  readonly queuePairs?: number;
  /** More of `vhost-pci net`'s options. */
  readonly net?: readonly string[];
  readonly guest?: Partial<GuestOptions>;
}

export class VmPeer {
  readonly rig: Rig;
  readonly netns: Netns;
  readonly busybox: string;
  readonly #scope: Scope;
  readonly #qemu: Qemu;
  readonly #memory: GuestMemory;
  readonly #options: VmPeerOptions;

  private constructor(scope: Scope, program: Qemu, netns: Netns, busybox: string, options: VmPeerOptions) {
    this.rig = new Rig(scope);
    this.netns = netns;
    this.busybox = busybox;
    this.#scope = scope;
    this.#qemu = program;
    this.#options = options;
    const mib = options.mib ?? MIB;
    this.#memory =
      options.mode === 'adopt'
        ? { kind: 'adopt', mib }
        : { kind: 'window', file: join(options.folder ?? scope.folder('/dev/shm'), 'peer'), mib };
  }

  /** The namespace and its TAP; nothing else runs yet. Skips the test where something cannot be had. */
  static async create(
    context: { skip: (note?: string) => never },
    scope: Scope,
    options: VmPeerOptions = {},
  ): Promise<VmPeer> {
    need(context, netnsAvailable());
    const program = need(context, await qemu());
    const busybox = `${need(context, fetchSet('busybox'))}/usr/bin/busybox`;
    const netns = await Netns.create(scope);
    await netns.tap('vp0', `${TAP_IP}/24`, options.queuePairs ?? 1);
    return new VmPeer(scope, program, netns, busybox, options);
  }

  startDevice(): Promise<Child> {
    const { queuePairs } = this.#options;
    return this.rig.device({
      ...(queuePairs && { queuePairs }),
      ...(this.#memory.kind === 'window' && { window: this.#memory }),
    });
  }

  /** QEMU, which waits for the device process before it does anything else. `memory` may be another than is right. */
  startGuest(memory: GuestMemory = this.#memory): Promise<Guest> {
    const { queuePairs, guest } = this.#options;
    return Guest.start(this.#scope, this.#qemu, {
      memory,
      vhostUser: this.rig.vhostUser,
      ip: `${GUEST_IP}/24`,
      ...(queuePairs && { queuePairs }),
      ...guest,
    });
  }

  /** Window mode: the file that is the guest's memory. */
  get memoryFile(): string {
    if (this.#memory.kind !== 'window') throw new Error('the memory of this guest has no path');
    return this.#memory.file;
  }

  startNet(options: readonly string[] = this.#options.net ?? []): Driver {
    return this.rig.net(['--tap', 'vp0', ...options], this.netns);
  }

  /** Pings in both directions; every packet has to come back. */
  async ping(guest: Guest, count = 3): Promise<void> {
    await guest.ok(`ping -c 1 -w 10 ${TAP_IP}`);
    const there = await guest.ok(`ping -c ${count} -i 0.2 -W 3 ${TAP_IP}`);
    const back = await this.netns.run([
      this.busybox,
      'ping',
      '-c',
      String(count),
      '-i',
      '0.2',
      '-W',
      '3',
      GUEST_IP,
    ]);
    for (const output of [there, back])
      if (!/ 0% packet loss/.test(output)) throw new Error(`packets were lost:\n${output}`);
  }

  /** Serves a file of random bytes on the TAP's side. */
  async serve(mib: number): Promise<{ url: string; sum: string; server: Child }> {
    const folder = this.#scope.folder();
    await this.netns.run(['sh', '-c', `head -c ${mib << 20} /dev/urandom >${folder}/file`]);
    const sum = checksum(await this.netns.run(['sha256sum', `${folder}/file`]));
    const server = this.netns.start('httpd', [
      this.busybox,
      'httpd',
      '-f',
      '-p',
      `${TAP_IP}:80`,
      '-h',
      folder,
    ]);
    return { url: `http://${TAP_IP}/file`, sum, server };
  }

  /** A file of random bytes each way by TCP, which has to arrive as it was. */
  async transfer(guest: Guest, mib: number): Promise<void> {
    const bytes = mib << 20;

    await guest.ok(
      `mkdir -p /tmp/www && head -c ${bytes} /dev/urandom >/tmp/www/file && httpd -p 80 -h /tmp/www`,
    );
    const sent = checksum(await guest.ok('sha256sum /tmp/www/file'));
    const fetched = await this.netns.run(
      ['sh', '-c', `${this.busybox} wget -q -T 60 -O - http://${GUEST_IP}/file | sha256sum`],
      60_000,
    );

    const served = await this.serve(mib);
    const got = await guest.ok(`wget -q -T 60 -O - ${served.url} | sha256sum`, 60_000);
    await served.server.kill();
    await guest.ok('killall httpd; rm -f /tmp/www/file');
    for (const [before, after] of [
      [sent, checksum(fetched)],
      [served.sum, checksum(got)],
    ])
      if (before !== after) throw new Error(`a file of ${mib} MiB was altered: ${before}, then ${after}`);
  }

  /** A driver for a guest that has lost the one before: its link comes up and carries packets. */
  async nextNet(guest: Guest): Promise<Driver> {
    const net = this.startNet();
    await net.connection('on');
    await guest.carrier(true);
    await this.ping(guest);
    return net;
  }

  /** Kills the driver, then the device process with the next driver; the guest finds its network again each time. */
  async outlives(guest: Guest, net: Driver, device: Child): Promise<void> {
    await net.child.kill();
    await guest.carrier(false);
    const second = await this.nextNet(guest);
    await device.kill();
    await second.child.kill();
    await guest.carrier(false);
    await this.rig.served(await this.startDevice());
    await this.nextNet(guest);
  }
}

/** The checksum in the output of sha256sum; the output itself when there is none. */
function checksum(output: string): string {
  return /^[0-9a-f]{64}/m.exec(output)?.[0] ?? output;
}
