/**
 * A receiving VM: a stock guest kernel on stock QEMU with vfio-user-pci devices, an emulated IOMMU, and this package
 * with the node of this machine inside. Commands run in it as in any other test guest.
 */
import type { GuestResult } from './guest.js';
import { runScript } from './packages.js';
import { Guest, type Qemu, qemu } from './qemu.js';
import { type Availability, type Scope, until } from './scope.js';

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
  /** More arguments of QEMU's. */
  readonly extra?: readonly string[];
}

/** Device number of the first vfio-user-pci device on the root bus. */
const FIRST_SLOT = 0x10;
const MODULES = ['vfio-pci', 'vfio_iommu_type1', 'tun'];

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
  ];
  const devices = options.vfioUser.map((path, n) => ({
    driver: 'vfio-user-pci',
    id: `vhost-pci-${n}`,
    addr: (FIRST_SLOT + n).toString(16),
    socket: { type: 'unix', path },
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
export async function guestVhostPci(guest: Guest, args: string, ms = 30_000): Promise<GuestResult> {
  return guest.run(
    `vhost-pci ${args} >/tmp/output 2>&1 </dev/null; status=$?; cat /tmp/output; exit $status`,
    ms,
  );
}

/** `vhost-pci net` in a receiving guest; its output goes to files there. */
export class GuestDriver {
  readonly #guest: Guest;
  readonly #pid: string;
  readonly #files: string;
  /** What it wrote, as it was last seen. */
  last = '';

  private constructor(guest: Guest, pid: string, files: string) {
    this.#guest = guest;
    this.#pid = pid;
    this.#files = files;
  }

  static async start(guest: Guest, args: string): Promise<GuestDriver> {
    const files = (await guest.ok('mktemp /tmp/net.XXXXXX')).trim();
    const pid = await guest.ok(
      `vhost-pci net ${args} --json --stats 1 --log-level debug >${files} 2>${files}.log </dev/null & echo $!`,
    );
    return new GuestDriver(guest, pid.trim(), files);
  }

  async output(): Promise<string> {
    this.last = (await this.#guest.run(`cat ${this.#files} ${this.#files}.log`)).output;
    return this.last;
  }

  /** The JSON lines so far. */
  async events(): Promise<Record<string, unknown>[]> {
    const { output } = await this.#guest.run(`grep '^{' ${this.#files}`);
    return output
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  /** Waits until the newest of the connection events has this state, and as many of them were seen. */
  async connection(state: 'on' | 'off', ms: number, times = 1): Promise<void> {
    await until(`vhost-pci net in the receiving guest: connection ${state}`, ms, async () => {
      const states = (await this.events()).filter((e) => e.event === 'connection').map((e) => e.state);
      return states.at(-1) === state && states.filter((s) => s === state).length >= times;
    }).finally(() => this.output());
  }

  /** Waits for a line of its output or its log. */
  async says(pattern: RegExp, ms: number): Promise<void> {
    await until(`vhost-pci net in the receiving guest says ${pattern}`, ms, async () =>
      pattern.test(await this.output()),
    );
  }

  async running(): Promise<boolean> {
    return (await this.#guest.run(`kill -0 ${this.#pid}`)).status === 0;
  }

  /** SIGTERM, and wait; resolves to what it wrote. */
  async stop(signal = 'TERM', ms = 20_000): Promise<string> {
    await this.#guest.run(`kill -${signal} ${this.#pid}`);
    await until('vhost-pci net ends in the receiving guest', ms, async () => !(await this.running()));
    return this.output();
  }
}
