/**
 * The link as its users run it, for tests: a device process in window mode, a receiving VM with the driver in it, and a peer VM
 * that has nothing of ours. The receiving VM is 10.0.0.1, the peer 10.0.0.2.
 */
import { join } from 'node:path';
import { type End, pingBothWays, transferBothWays } from './guest-traffic.js';
import type { Child } from './process.js';
import { Guest, type GuestOptions } from './qemu.js';
import {
  GuestDriver,
  guestVhostPci,
  type ReceiverOptions,
  type ReceiverProgram,
  receiverAddress,
  receiverProgram,
  startReceiver,
} from './receiver-guest.js';
import { type DeviceOptions, Rig } from './rig.js';
import { need, type Scope } from './scope.js';

export const RECEIVER_IP = '10.0.0.1';
export const PEER_IP = '10.0.0.2';
/** Some ten seconds without KVM; a machine with other work takes ten times as long. */
export const BOOT_MS = 300_000;
const PEER_MIB = 256;

export interface TwoVmsOptions {
  readonly device?: DeviceOptions;
  readonly receiver?: Partial<ReceiverOptions>;
  readonly peer?: Partial<GuestOptions>;
  /** The peer's memory. */
  readonly mib?: number;
  /** The folder of its file; a new one in /dev/shm by default. */
  readonly folder?: string;
}

export class TwoVms {
  readonly rig: Rig;
  readonly program: ReceiverProgram;
  readonly window: { readonly file: string; readonly mib: number };
  readonly #scope: Scope;
  readonly #options: TwoVmsOptions;
  device!: Child;
  receiver!: Guest;
  #own: { readonly guest: Guest; readonly net: GuestDriver } | undefined;

  private constructor(scope: Scope, program: ReceiverProgram, options: TwoVmsOptions) {
    this.#scope = scope;
    this.program = program;
    this.#options = options;
    this.rig = new Rig(scope);
    const folder = options.folder ?? scope.folder('/dev/shm');
    this.window = { file: join(folder, 'peer'), mib: options.mib ?? PEER_MIB };
  }

  /** The device process and the receiving VM; the peer comes when it is started. Skips the test where no VM can be had. */
  static async create(
    context: { skip: (note?: string) => never },
    scope: Scope,
    options: TwoVmsOptions = {},
  ): Promise<TwoVms> {
    const vms = new TwoVms(scope, need(context, await receiverProgram()), options);
    await vms.startDevice();
    await vms.startReceiver();
    return vms;
  }

  async startDevice(): Promise<void> {
    this.device = await this.rig.device({ window: this.window, ...this.#options.device });
  }

  /** `more` is for this life of it only. */
  async startReceiver(more: Partial<ReceiverOptions> = {}): Promise<void> {
    this.receiver = await startReceiver(this.#scope, this.program, {
      vfioUser: [this.rig.vfioUser],
      ...this.#options.receiver,
      ...more,
    });
    await this.receiver.ready(BOOT_MS);
  }

  startPeer(): Promise<Guest> {
    return Guest.start(this.#scope, this.program.peer, {
      memory: { kind: 'window', ...this.window },
      vhostUser: this.rig.vhostUser,
      ip: `${PEER_IP}/24`,
      ...this.#options.peer,
    });
  }

  async startNet(address: string, args = ''): Promise<GuestDriver> {
    const net = await GuestDriver.start(
      this.receiver,
      `${address} ${tapArguments(...args.split(' ')).join(' ')}`,
    );
    this.#scope.onFailure(() => net.last);
    return net;
  }

  /** The driver that the receiving VM starts by itself, with `receiver: { net: selfStarted() }`. */
  ownNet(): GuestDriver {
    if (this.#own?.guest !== this.receiver) {
      const net = GuestDriver.of(this.receiver);
      this.#own = { guest: this.receiver, net };
      this.#scope.onFailure(() => net.last);
    }
    return this.#own.net;
  }

  async bind(address: string): Promise<void> {
    const { output, status } = await guestVhostPci(this.receiver, `bind ${address}`);
    if (status !== 0 || output !== `${address} is now bound to vfio-pci`)
      throw new Error(`vhost-pci bind ended with ${status}: ${output}`);
  }

  /** Both ways; every packet has to come back. */
  ping(peer: Guest): Promise<void> {
    return pingBothWays(...this.#ends(peer));
  }

  /** A file of random bytes each way by TCP, which has to arrive as it was. */
  transfer(peer: Guest, mib: number): Promise<void> {
    return transferBothWays(...this.#ends(peer), mib);
  }

  #ends(peer: Guest): [End, End] {
    return [
      { guest: peer, ip: PEER_IP },
      { guest: this.receiver, ip: RECEIVER_IP },
    ];
  }
}

const tapArguments = (...more: string[]): string[] => [
  '--tap',
  'vp0',
  '--address',
  `${RECEIVER_IP}/24`,
  ...more,
];

/** Arguments of the driver that the receiving VM starts by itself. */
export function selfStarted(...more: string[]): string[] {
  return [receiverAddress(), ...tapArguments(...more)];
}

/** TCP into a guest and out of it, for as long as it is wanted; connections that die are made again. */
export async function startLoad(guest: Guest, other: string): Promise<void> {
  const get = `wget -q -T 5 -O /dev/null http://${other}:81/file || sleep 0.5`;
  await guest.ok('mkdir -p /tmp/load && head -c 16777216 /dev/zero >/tmp/load/file');
  await guest.ok('httpd -p 81 -h /tmp/load');
  await guest.ok(`(while :; do ${get}; done) >/dev/null 2>&1 </dev/null & echo $! >/tmp/load/pid`);
}

export async function stopLoad(guest: Guest): Promise<void> {
  await guest.run('kill -9 $(cat /tmp/load/pid); killall -9 wget httpd; rm -rf /tmp/load');
}
