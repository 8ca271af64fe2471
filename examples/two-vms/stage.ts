/**
 * The three programs of the link, as a user would start them: the device process on the host, a receiving VM with the
 * driver in it, a peer VM that has nothing of ours. Starts and ends them in order; moves no traffic.
 */
import { join } from 'node:path';
import type { Child } from '../../test/support/process.js';
import { Guest } from '../../test/support/qemu.js';
import {
  GuestDriver,
  guestVhostPci,
  type ReceiverProgram,
  receiverAddress,
  startReceiver,
} from '../../test/support/receiver-guest.js';
import { Rig } from '../../test/support/rig.js';
import { sleep, until } from '../../test/support/scope.js';
import { type Run, round } from './run.js';

export const RECEIVER_IP = '10.0.0.1';
export const PEER_IP = '10.0.0.2';
export const TAP = 'vp0';
const PEER_MIB = 192;
const RECEIVER_MIB = 256;
const BOOT_MS = 120_000;
const END_MS = 30_000;
/** Between two questions whether the driver has its peer. */
const ASK_MS = 500;

export interface HandshakeStep {
  /** Seconds since the start of the demo. */
  readonly at_s: number;
  readonly step: string;
}

export type Say = (line: string) => void;

export class TwoVms {
  readonly handshake: HandshakeStep[] = [];
  readonly #run: Run;
  readonly #program: ReceiverProgram;
  readonly #say: Say;
  readonly #rig: Rig;
  readonly #window: { readonly file: string; readonly mib: number };
  #device!: Child;
  /** Rejects when the device process ends before it was told to. */
  #deviceGone: Promise<never> = new Promise(() => {});
  #net!: GuestDriver;
  receiver!: Guest;
  peer!: Guest;

  constructor(run: Run, program: ReceiverProgram, say: Say) {
    this.#run = run;
    this.#program = program;
    this.#say = say;
    this.#rig = new Rig(run);
    this.#window = { file: join(run.folder('/dev/shm'), 'peer'), mib: PEER_MIB };
  }

  /** The device process makes the file of the peer's memory; the receiving VM may start before the peer. */
  async startDevice(): Promise<void> {
    this.#say(`host$ vhost-pci device … --peer-memory ${this.#window.file} --peer-memory-size ${PEER_MIB}M`);
    this.#device = await this.#rig.device({ window: this.#window });
    this.#run.keepOutput('device.log', this.#device);
    this.#deviceGone = this.#device.exited.then(({ code, signal }) => {
      throw new Error(`the device process ended by itself: ${signal ?? code}`);
    });
    this.#deviceGone.catch(() => {});
    this.#run.follow(this.#device.stderr, (line) => this.#follow(line));
    await this.#rig.served(this.#device);
  }

  /** Boots the receiving VM and starts the driver in it. */
  async startReceiver(): Promise<void> {
    const address = receiverAddress();
    this.#say(
      `host$ ${QEMU} … -device intel-iommu,… -device '{"driver":"vfio-user-pci",…}'   (the receiving VM)`,
    );
    this.receiver = await this.#run.guest('receiver', () =>
      startReceiver(this.#run, this.#program, { vfioUser: [this.#rig.vfioUser], mib: RECEIVER_MIB }),
    );
    this.#run.keepOutput('receiver-qemu.log', this.receiver.child);
    await this.#waiting('the receiving VM boots', this.receiver.ready(BOOT_MS));
    this.#say(`  the receiving VM is up: ${await this.receiver.ok('uname -sr')}`);
    await this.#vhostPci('status');
    await this.#vhostPci(`bind ${address}`);
    const args = `${address} --tap ${TAP} --address ${RECEIVER_IP}/24`;
    this.#say(`receiver# vhost-pci net ${args} &`);
    this.#net = await GuestDriver.start(this.receiver, args);
    this.#run.keep('driver.log', () => this.#net.last);
  }

  /** Boots the peer; returns when the driver says that it is connected and the peer is up. */
  async startPeer(): Promise<void> {
    this.#say(`host$ ${QEMU} … -netdev vhost-user,… -device virtio-net-pci,…   (the peer VM)`);
    this.peer = await this.#run.guest('peer', () =>
      Guest.start(this.#run, this.#program.peer, {
        memory: { kind: 'window', ...this.#window },
        vhostUser: this.#rig.vhostUser,
        ip: `${PEER_IP}/24`,
      }),
    );
    this.#run.keepOutput('peer-qemu.log', this.peer.child);
    const both = Promise.all([this.#connected(BOOT_MS), this.peer.ready(BOOT_MS)]);
    const [on] = await this.#waiting('the peer boots', both);
    this.#say(`  driver: peer connected, ${on.pairs} queue pair(s), features ${on.features}, MAC ${on.mac}`);
    this.#say(`  ${TAP} of the receiver: ${await this.receiver.ok(`ip -o link show ${TAP}`)}`);
  }

  /** Waits for `work`, unless the device process ends before it: nothing goes on without it. */
  during<T>(work: Promise<T>): Promise<T> {
    work.catch(() => {});
    return Promise.race([work, this.#deviceGone]);
  }

  /** The driver's word that it serves the peer. */
  async #connected(ms: number): Promise<Record<string, unknown>> {
    return until('the driver says that the peer is connected', ms, async () => {
      const on = (await this.events()).find((e) => e.event === 'connection' && e.state === 'on');
      if (!on && !(await this.#net.running()))
        throw new Error(`vhost-pci net ended in the receiving VM: ${await this.#net.output()}`);
      // Each question costs the receiving VM a process, and both VMs share this machine.
      if (!on) await sleep(ASK_MS);
      return on;
    });
  }

  /** What the driver has printed so far. */
  events(): Promise<Record<string, unknown>[]> {
    return this.#net.events();
  }

  /** Everything the driver said, for the logs of a failure. */
  async lastWords(): Promise<void> {
    await this.#net?.output();
  }

  /** In the order in which a user should end them. Throws when one does not end as it should. */
  async end(): Promise<void> {
    this.#say('receiver# kill -TERM %1   (the driver asks for OFF, and waits for it)');
    const said = await this.#net.stop();
    if (!/"event":"connection","state":"off"/.test(said)) throw new Error('the driver did not see OFF');
    const error = /^\{"event":"error".*$/m.exec(said)?.[0];
    if (error !== undefined) throw new Error(`the driver had an error: ${error}`);
    await this.peer.carrier(false);
    this.#say("  the peer's link is down, the peer goes on");
    await this.#vhostPci(`unbind ${receiverAddress()}`);
    for (const [name, guest] of [
      ['peer', this.peer],
      ['receiver', this.receiver],
    ] as const) {
      this.#say(`${name}# poweroff`);
      await guest.ok('(sleep 0.3; poweroff -f) >/dev/null 2>&1 &');
      const exit = await Promise.race([guest.child.exited, sleep(END_MS)]);
      if (exit?.code !== 0)
        throw new Error(`the ${name}'s QEMU ended with ${exit ? (exit.signal ?? exit.code) : 'nothing yet'}`);
    }
    const { code } = await this.#device.stop();
    if (code !== 0) throw new Error(`the device process ended with ${code}`);
    this.#say('  the device process has ended');
  }

  #waiting<T>(what: string, work: Promise<T>): Promise<T> {
    return this.#run.waiting(what, work, this.#say);
  }

  async #vhostPci(args: string): Promise<void> {
    this.#say(`receiver# vhost-pci ${args}`);
    const { output, status } = await guestVhostPci(this.receiver, args);
    for (const line of output.split('\n')) this.#say(`  ${line}`);
    if (status !== 0)
      throw new Error(`in the receiving VM, vhost-pci ${args} ended with ${status}: ${output}`);
  }

  /** The device process tells the control messages and the states of the link in its log. */
  #follow(line: string): void {
    const entry = parse(line);
    const step = entry && stepOf(entry);
    if (step !== undefined) {
      this.handshake.push({ at_s: round(this.#run.elapsed), step });
      this.#say(`  ${step}`);
    } else if (!entry || entry.level >= 30) this.#say(`  device: ${entry?.msg ?? line}`);
  }
}

const QEMU = 'qemu-system-x86_64';

interface LogEntry {
  readonly level: number;
  readonly msg: string;
  readonly message?: string;
  readonly on?: boolean;
}

function parse(line: string): LogEntry | undefined {
  try {
    return JSON.parse(line) as LogEntry;
  } catch {
    return undefined;
  }
}

/** The line of the handshake that a log entry is, if it is one. */
function stepOf({ msg, message, on }: LogEntry): string | undefined {
  if (message !== undefined) {
    const arrow = msg === 'to the driver' ? 'device → driver' : 'driver → device';
    return `${arrow}: ${message}${on === undefined ? '' : on ? ' ON' : ' OFF'}`;
  }
  if (/^(peer (dis)?connected|link: |the peer's device status)/.test(msg)) return `device: ${msg}`;
  return undefined;
}
