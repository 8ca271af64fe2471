/**
 * A receiving VM: a stock guest kernel on stock QEMU with vfio-user-pci devices, an emulated IOMMU, and this package
 * with the node of this machine inside. Commands run in it as in any other test guest.
 */
import type { GuestResult } from './guest.js';
import { runScript } from './packages.js';
import { Guest, type Qemu, qemu } from './qemu.js';
import { type Availability, type Scope, sleep, until } from './scope.js';

export interface ReceiverProgram extends Qemu {
  /** The image of the disk that has node and its libraries. */
  readonly disk: string;
  /** The same QEMU with the image of the other guests. */
  readonly peer: Qemu;
}

export interface ReceiverOptions {
  /** Sockets of device processes; each becomes a vfio-user-pci device, at 0000:00:10.0 and up. */
  readonly vfioUser: readonly string[];
  readonly iommu?: 'intel' | 'virtio' | 'none';
  readonly mib?: number;
  readonly cpus?: number;
  /** Arguments of `vhost-pci net`, which the guest starts by itself and starts again whenever it ends: see GuestDriver.of. */
  readonly net?: readonly string[];
  /** How long QEMU waits for an answer of the device process; its default is 5 s. */
  readonly messageTimeoutMs?: number;
  /** More arguments of QEMU's. */
  readonly extra?: readonly string[];
}

/** Device number of the first vfio-user-pci device on the root bus. */
const FIRST_SLOT = 0x10;
const MODULES = ['vfio-pci', 'vfio_iommu_type1', 'tun'];
/** How the driver in the guest tells what it does. */
const REPORT = ['--json', '--stats', '1', '--log-level', 'debug'];
/** Pause between two questions to the guest, each of which costs it a process. */
const ASK_MS = 300;
/** Packets each way that count as traffic. */
const PACKETS = 100;

/** QEMU, the kernel and the images, built from the current build of this package. */
export async function receiverProgram(): Promise<Availability<ReceiverProgram>> {
  const program = await qemu();
  if ('missing' in program) return program;
  const built = runScript('guest/receiver.sh', [], 600_000);
  if ('missing' in built) return built;
  const [kernel, initramfs, disk] = built.ok;
  return { ok: { ...program.ok, kernel: kernel!, initramfs: initramfs!, disk: disk!, peer: program.ok } };
}

/** Where the receiving guest has its n-th vfio-user-pci device. */
export function receiverAddress(n = 0): string {
  return `0000:00:${(FIRST_SLOT + n).toString(16)}.0`;
}

/** Starts the VM; it boots in the background, see Guest.ready. The device processes have to be there. */
export function startReceiver(
  scope: Scope,
  program: ReceiverProgram,
  options: ReceiverOptions,
): Promise<Guest> {
  const iommu = options.iommu ?? 'intel';
  const append = [
    'console=ttyS0 quiet panic=-1 rdinit=/receiver-init',
    ...(iommu === 'intel' ? ['intel_iommu=on'] : []),
    `vp.modules=${MODULES.join(',')}`,
    ...(options.net ? [`vp.net=${[...options.net, ...REPORT].join(',')}`] : []),
  ];
  const devices = options.vfioUser.map((path, n) => ({
    driver: 'vfio-user-pci',
    id: `vhost-pci-${n}`,
    addr: (FIRST_SLOT + n).toString(16),
    socket: { type: 'unix', path },
    ...(options.messageTimeoutMs !== undefined && { 'x-msg-timeout': options.messageTimeoutMs }),
  }));
  return Guest.start(scope, program, {
    // Shared: the device process reads the control queues in it.
    memory: { kind: 'adopt', mib: options.mib ?? 256 },
    cpus: options.cpus ?? 1,
    extra: [
      '-M',
      'kernel-irqchip=split',
      // The IOMMU comes first: a device that is there before it would not be behind it.
      ...(iommu === 'intel' ? ['-device', 'intel-iommu,intremap=on,caching-mode=on'] : []),
      ...(iommu === 'virtio' ? ['-device', 'virtio-iommu-pci'] : []),
      '-drive',
      `file=${program.disk},if=none,id=disk,format=raw,readonly=on`,
      '-device',
      'virtio-blk-pci,drive=disk',
      ...devices.flatMap((device) => ['-device', JSON.stringify(device)]),
      '-append',
      append.join(' '),
      ...(options.extra ?? []),
    ],
  });
}

/**
 * Runs `vhost-pci …` in a receiving guest to its end. Its output takes the way through a file: node resets a terminal when
 * it ends, and the serial port of the guest's shell would lose what it has just received.
 */
export async function guestVhostPci(guest: Guest, args: string, ms = 60_000): Promise<GuestResult> {
  return guest.run(
    `vhost-pci ${args} >/tmp/output 2>&1 </dev/null; status=$?; cat /tmp/output; exit $status`,
    ms,
  );
}

/** `vhost-pci net` in a receiving guest; its output goes to files there. */
export class GuestDriver {
  readonly #guest: Guest;
  readonly #files: string;
  /** What it wrote, as it was last seen. */
  last = '';

  private constructor(guest: Guest, files: string) {
    this.#guest = guest;
    this.#files = files;
  }

  static async start(guest: Guest, args: string): Promise<GuestDriver> {
    const files = (await guest.ok('mktemp /tmp/net.XXXXXX')).trim();
    await guest.ok(
      `vhost-pci net ${args} ${REPORT.join(' ')} >${files} 2>${files}.log </dev/null & echo $! >${files}.pid`,
    );
    return new GuestDriver(guest, files);
  }

  /** The one that the guest itself starts (ReceiverOptions.net). The files of all its lives are the same. */
  static of(guest: Guest): GuestDriver {
    return new GuestDriver(guest, '/tmp/net');
  }

  /** All but the statistics, of which the newest are enough. */
  async output(): Promise<string> {
    const stats = `'"event":"stats"' ${this.#files}`;
    const { output } = await this.#guest.run(
      `grep -v ${stats}; grep ${stats} | tail -n 2; cat ${this.#files}.log`,
    );
    this.last = output;
    return output;
  }

  /** The JSON lines so far, or those of one kind. */
  async events(kind = ''): Promise<Record<string, unknown>[]> {
    const { output } = await this.#guest.run(`grep '^{"event":"${kind}' ${this.#files}`);
    return output
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  /** The states of the connection so far, in all its lives. */
  async states(): Promise<unknown[]> {
    return (await this.events('connection')).map((e) => e.state);
  }

  /** Waits until the newest of the connection events has this state, and as many of them were seen. */
  async connection(state: 'on' | 'off', ms: number, times = 1): Promise<void> {
    await this.#until(`connection ${state}`, ms, async () => {
      const states = await this.states();
      return states.at(-1) === state && states.filter((s) => s === state).length >= times;
    });
  }

  /** Waits for a line of its output or its log. */
  async says(pattern: RegExp, ms: number): Promise<void> {
    await this.#until(`says ${pattern}`, ms, async () => pattern.test(await this.output()));
  }

  /** Waits until statistics that come from now on show packets in both directions. */
  async flowing(ms = 120_000): Promise<void> {
    let base: Packets | undefined;
    await this.#until('has packets in both directions', ms, async () => {
      const now = await this.#packets();
      // A driver that was started again counts from 0.
      if (now && (!base || now.receive < base.receive || now.send < base.send)) base = now;
      return (
        now !== undefined &&
        base !== undefined &&
        now.receive >= base.receive + PACKETS &&
        now.send >= base.send + PACKETS
      );
    });
  }

  async #until(what: string, ms: number, probe: () => Promise<boolean>): Promise<void> {
    const paced = async (): Promise<boolean> => {
      const yes = await probe();
      if (!yes) await sleep(ASK_MS);
      return yes;
    };
    await until(`vhost-pci net in the receiving guest ${what}`, ms, paced).finally(() => this.output());
  }

  /** The newest statistics; undefined before the first. */
  async stats(): Promise<GuestStats | undefined> {
    const { output } = await this.#guest.run(`grep '^{"event":"stats".*}$' ${this.#files} | tail -n 1`);
    return output.startsWith('{') ? (JSON.parse(output) as GuestStats) : undefined;
  }

  /** Sums over the queues in the newest statistics. */
  async #packets(): Promise<Packets | undefined> {
    const queues = (await this.stats())?.queues;
    if (!queues) return undefined;
    const broken = queues
      .flatMap((q) => [q.receive.broken, q.send.broken])
      .find((cause) => cause !== undefined);
    if (broken !== undefined) throw new Error(`a ring of the peer is broken: ${broken}`);
    const sum = (of: (q: GuestStats['queues'][0]) => number): number => queues.reduce((n, q) => n + of(q), 0);
    return { receive: sum((q) => q.receive.packets), send: sum((q) => q.send.packets) };
  }

  async running(): Promise<boolean> {
    return (await this.#guest.run(`kill -0 ${this.#pid}`)).status === 0;
  }

  /** Its process in the guest; of the present life, when there are several. */
  async pid(): Promise<string> {
    return this.#guest.ok(`echo ${this.#pid}`);
  }

  /** Sends a signal and goes on. */
  async signal(name: string): Promise<void> {
    await this.#guest.ok(`kill -${name} ${this.#pid}`);
  }

  /** SIGTERM, and wait; resolves to what it wrote. Not for one that is started again. */
  async stop(signal = 'TERM', ms = 60_000): Promise<string> {
    await this.#guest.run(`kill -${signal} ${this.#pid}`);
    await until('vhost-pci net ends in the receiving guest', ms, async () => !(await this.running()));
    return this.output();
  }

  /** For a shell in the guest. */
  get #pid(): string {
    return `$(cat ${this.#files}.pid)`;
  }
}

/** As far as tests look at them. */
export interface GuestStats {
  readonly queues: readonly { readonly receive: Direction; readonly send: Direction }[];
  readonly workers: readonly { readonly wakeups: number; readonly busy_rounds: number }[];
}

interface Packets {
  /** What the peer sent. */
  readonly receive: number;
  readonly send: number;
}

interface Direction {
  readonly packets: number;
  readonly bytes: number;
  readonly drops: number;
  readonly broken?: string;
}
