/**
 * Stock QEMU with a stock Linux guest, as a peer. QEMU comes from PATH when it is new enough, or from the cache
 * folder; KVM is used only when a probe shows that it runs a guest. Nothing here is patched, and nothing here knows
 * our own commands.
 */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type GuestResult, GuestShell } from './guest.js';
import { fetchSet, type Program, programIn, runScript } from './packages.js';
import { type Child, start } from './process.js';
import { Qmp } from './qmp.js';
import { type Availability, Scope, until } from './scope.js';

/** 10.1.1 is the first with a usable vfio-user client. */
const OLDEST = [10, 1, 1];
const BOOT_MS = 60_000;

export interface Qemu extends Program {
  readonly version: string;
  readonly kernel: string;
  readonly initramfs: string;
  readonly accel: 'kvm' | 'tcg';
}

let found: Promise<Availability<Qemu>> | undefined;

/** QEMU, a kernel and an initramfs, fetched and built at the first call. */
export function qemu(): Promise<Availability<Qemu>> {
  found ??= findQemu();
  return found;
}

async function findQemu(): Promise<Availability<Qemu>> {
  if (process.arch !== 'x64')
    return { missing: `the guests of the tests are x86-64; this host is ${process.arch}` };
  const program = programOnPath() ?? fetchedProgram();
  if ('missing' in program) return program;
  const version = versionOf(program.ok);
  if (!version) return { missing: 'the QEMU that was fetched does not run' };
  const built = runScript('guest/build.sh', [], 600_000);
  if ('missing' in built) return built;
  const [kernel, initramfs] = built.ok;
  const tcg: Qemu = { ...program.ok, version, kernel: kernel!, initramfs: initramfs!, accel: 'tcg' };
  return { ok: (await kvmRuns(tcg)) ? { ...tcg, accel: 'kvm' } : tcg };
}

function programOnPath(): Availability<Program> | undefined {
  const program: Program = { command: 'qemu-system-x86_64', prefix: [], env: {} };
  const version = versionOf(program)?.split('.').map(Number);
  if (!version) return undefined;
  const differing = OLDEST.findIndex((n, i) => n !== version[i]);
  return differing < 0 || version[differing]! > OLDEST[differing]! ? { ok: program } : undefined;
}

function fetchedProgram(): Availability<Program> {
  const set = fetchSet('qemu');
  if ('missing' in set) return set;
  const share = `${set.ok}/usr/share`;
  const program = programIn(set.ok, 'usr/bin/qemu-system-x86_64');
  const firmware = ['-L', `${share}/qemu`, '-L', `${share}/seabios`];
  return {
    ok: {
      ...program,
      prefix: [...program.prefix, ...firmware],
      env: { QEMU_MODULE_DIR: `${set.ok}/usr/lib/x86_64-linux-gnu/qemu` },
    },
  };
}

function versionOf(program: Program): string | undefined {
  const done = spawnSync(program.command, [...program.prefix, '--version'], {
    encoding: 'utf8',
    env: { ...process.env, ...program.env },
    timeout: 20_000,
  });
  return /version (\d+\.\d+\.\d+)/.exec(done.stdout ?? '')?.[1];
}

/** /dev/kvm may be there and still run nothing: a guest has to come up. VHOST_PCI_ACCEL=tcg|kvm overrides. */
async function kvmRuns(tcg: Qemu): Promise<boolean> {
  if (process.env.VHOST_PCI_ACCEL) return process.env.VHOST_PCI_ACCEL === 'kvm';
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return false;
  }
  await using scope = new Scope();
  const guest = await Guest.start(scope, { ...tcg, accel: 'kvm' }, { memory: { kind: 'private', mib: 128 } });
  return guest.ready(15_000).then(
    () => true,
    () => false,
  );
}

export type GuestMemory =
  /** `window`: a file that the device process owns. `adopt`: a memfd of QEMU's own. */
  | { readonly kind: 'window'; readonly file: string; readonly mib: number }
  | { readonly kind: 'adopt'; readonly mib: number }
  | { readonly kind: 'private'; readonly mib: number }
  /** `args`: QEMU's own words for all of it, backends and nodes; for memory that no peer should have. */
  | { readonly kind: 'args'; readonly mib: number; readonly args: readonly string[] };

export interface GuestOptions {
  readonly memory: GuestMemory;
  /** Path of the back-end's vhost-user socket; QEMU connects, again and again when it goes. */
  readonly vhostUser?: string;
  /** QEMU listens instead, and the back-end connects. */
  readonly vhostUserServer?: boolean;
  readonly queuePairs?: number;
  readonly packed?: boolean;
  readonly cpus?: number;
  readonly mac?: string;
  /** Address of the guest's interface, such as `10.0.0.2/24`. */
  readonly ip?: string;
  readonly modules?: readonly string[];
  /** More arguments of QEMU's. */
  readonly extra?: readonly string[];
  /** Called with QEMU's process before anything of it is waited for. */
  readonly onStart?: (child: Child) => void;
}

export class Guest {
  readonly child: Child;
  readonly qmp: Qmp;
  readonly #shell: GuestShell;
  readonly #console: string;

  private constructor(child: Child, qmp: Qmp, shell: GuestShell, consoleLog: string) {
    this.child = child;
    this.qmp = qmp;
    this.#shell = shell;
    this.#console = consoleLog;
  }

  /**
   * Starts QEMU; the guest boots in the background, see `ready`. The back-end has to be there already: QEMU waits
   * for its first connection before it does anything else.
   */
  static async start(scope: Scope, qemuProgram: Qemu, options: GuestOptions): Promise<Guest> {
    const folder = scope.folder();
    const child = start(
      scope,
      'qemu',
      qemuProgram.command,
      [...qemuProgram.prefix, ...qemuArgs(qemuProgram, options, folder)],
      { env: qemuProgram.env },
    );
    options.onStart?.(child);
    const early = child.exited.then(() => {
      throw new Error(`QEMU did not start${child.tail()}`);
    });
    early.catch(() => {});
    const shell = await Promise.race([GuestShell.connect(join(folder, 'shell')), early]);
    scope.defer(() => shell.close());
    const qmp = await Promise.race([Qmp.connect(join(folder, 'qmp'), 60_000), early]);
    scope.defer(() => qmp.close());
    return new Guest(child, qmp, shell, join(folder, 'console'));
  }

  /** Waits until the guest serves commands, for the `boots`-th time. */
  ready(ms = BOOT_MS, boots = 1): Promise<void> {
    return this.#shell.ready(boots, ms, () => this.tail());
  }

  /** Runs a shell command in the guest. */
  run(command: string, ms = 60_000): Promise<GuestResult> {
    return this.#shell.run(command, ms);
  }

  /** Runs a shell command that has to succeed; returns its output. */
  async ok(command: string, ms = 60_000): Promise<string> {
    const { output, status } = await this.run(command, ms);
    if (status !== 0)
      throw new Error(`in the guest, '${command}' ended with ${status}:\n${output}${this.tail()}`);
    return output;
  }

  /** Resets the machine by QMP and waits until the guest is up again. */
  async reset(ms = BOOT_MS): Promise<void> {
    const boots = this.#shell.boots;
    await this.qmp.run('system_reset');
    await this.ready(ms, boots + 1);
  }

  /** Link state as QEMU shows it: the carrier of the guest's interface. */
  async carrier(up: boolean, ms = 60_000): Promise<void> {
    await until(
      `the guest's link is ${up ? 'up' : 'down'}`,
      ms,
      async () => (await this.run('cat /sys/class/net/$NIC/carrier')).output === (up ? '1' : '0'),
      () => this.tail(),
    );
  }

  tail(): string {
    const log = existsSync(this.#console) ? readFileSync(this.#console, 'utf8') : '';
    return `${this.child.tail()}\n--- guest console:\n${log.split('\n').slice(-30).join('\n')}`;
  }
}

function memoryArgs(memory: GuestMemory): string[] {
  const size = `${memory.mib}M`;
  if (memory.kind === 'args') return ['-M', 'q35', '-m', size, ...memory.args];
  const object = {
    window: () =>
      `memory-backend-file,id=ram,size=${size},mem-path=${(memory as { file: string }).file},share=on`,
    adopt: () => `memory-backend-memfd,id=ram,size=${size},share=on`,
    private: () => `memory-backend-ram,id=ram,size=${size}`,
  }[memory.kind]();
  return ['-M', 'q35,memory-backend=ram', '-object', object, '-m', size];
}

function qemuArgs(program: Qemu, options: GuestOptions, folder: string): string[] {
  const pairs = options.queuePairs ?? 1;
  const nic = options.vhostUser
    ? [
        '-chardev',
        `socket,id=vu,path=${options.vhostUser},${options.vhostUserServer ? 'server=on,wait=off' : 'reconnect-ms=200'}`,
        '-netdev',
        `vhost-user,id=net,chardev=vu,queues=${pairs}`,
        '-device',
        `virtio-net-pci,netdev=net,mac=${options.mac ?? '52:54:00:00:00:02'},romfile=` +
          (pairs > 1 ? `,mq=on,vectors=${2 * pairs + 2}` : '') +
          (options.packed ? ',packed=on' : ''),
      ]
    : [];
  const append = [
    'console=ttyS0 quiet panic=-1',
    `vp.modules=${(options.modules ?? ['virtio_net']).join(',')}`,
    ...(options.ip ? [`vp.ip=${options.ip}`] : []),
  ];
  return [
    '-nodefaults',
    '-no-user-config',
    '-display',
    'none',
    '-accel',
    program.accel,
    '-cpu',
    program.accel === 'kvm' ? 'host' : 'max',
    '-smp',
    String(options.cpus ?? pairs),
    ...memoryArgs(options.memory),
    '-kernel',
    program.kernel,
    '-initrd',
    program.initramfs,
    '-append',
    append.join(' '),
    '-serial',
    `file:${join(folder, 'console')}`,
    '-chardev',
    `socket,id=shell,path=${join(folder, 'shell')},server=on,wait=off`,
    '-serial',
    'chardev:shell',
    '-qmp',
    `unix:${join(folder, 'qmp')},server=on,wait=off`,
    ...nic,
    ...(options.extra ?? []),
  ];
}
