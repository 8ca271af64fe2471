/**
 * The back-ends that are compared on one front-end. Each can be stopped in its tracks and go on, so that it takes no CPU
 * while another one is measured.
 */
import { existsSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import type { Program } from '../support/packages.js';
import { type Child, checkout, start, vhostPci } from '../support/process.js';
import type { Scope } from '../support/scope.js';
import { BACK_CPU, FRONT_CPU, type Mode, Testpmd } from './testpmd.js';

export interface System {
  readonly name: string;
  /** The vhost-user socket that the front-end connects to. */
  readonly path: string;
  /** Starts what needs the front-end's memory; to be called once the front-end is up. */
  connect(): Promise<void>;
  resume(): Promise<void>;
  pause(): Promise<void>;
  /** Processes whose polling thread must not have waited for its CPU. */
  readonly polling: readonly number[];
}

/** What a back-end does, seen from it; `front` is what the front-end does then. */
export const DIRECTIONS = {
  'peer → us': { port: (): string[] => ['--sink'], back: 'rxonly', front: 'txonly', count: 'Tx' },
  'us → peer': {
    port: (frame: number): string[] => ['--source', String(frame)],
    back: 'txonly',
    front: 'rxonly',
    count: 'Rx',
  },
  'there and back': { port: (): string[] => ['--echo'], back: 'io', front: 'io', count: 'Rx' },
} as const satisfies Record<
  string,
  { port: (frame: number) => string[]; back: Mode; front: Mode; count: 'Rx' | 'Tx' }
>;
export type Direction = keyof typeof DIRECTIONS;

export interface DeviceProcess {
  readonly child: Child;
  readonly path: string;
  readonly vfioUser: string;
}

/** `vhost-pci device` in adopt mode, listening. */
export async function startDevice(scope: Scope, extra: readonly string[] = []): Promise<DeviceProcess> {
  const folder = scope.folder();
  const path = join(folder, 'vhost-user');
  const vfioUser = join(folder, 'vfio-user');
  const child = vhostPci(scope, [
    ...['device', '--socket-path', path, '--vfio-user', vfioUser, '--log-level', 'warn'],
    ...extra,
  ]);
  await child.until('its vhost-user socket', 15_000, () => existsSync(path));
  return { child, path, vfioUser };
}

/** Our two processes: the device, and a driver that `launch` starts on it. */
class Ours implements System {
  readonly name: string;
  readonly #device: DeviceProcess;
  readonly #launch: (vfioUser: string) => Child;
  readonly #watch: boolean;
  #driver: Child | undefined;

  constructor(name: string, device: DeviceProcess, launch: (vfioUser: string) => Child, watch: boolean) {
    this.name = name;
    this.#device = device;
    this.#launch = launch;
    this.#watch = watch;
  }

  get path(): string {
    return this.#device.path;
  }

  get polling(): readonly number[] {
    return this.#watch && this.#driver ? [this.#driver.pid] : [];
  }

  async connect(): Promise<void> {
    const { child, vfioUser } = this.#device;
    await child.until('its vfio-user socket', 15_000, () => existsSync(vfioUser));
    this.#driver = this.#launch(vfioUser);
    await this.#driver.event('connection on', 15_000, (e) => e.event === 'connection' && e.state === 'on');
    await this.pause();
  }

  async resume(): Promise<void> {
    this.#driver?.signal('SIGCONT');
  }

  async pause(): Promise<void> {
    this.#driver?.signal('SIGSTOP');
  }
}

/** The product path: device process and `vhost-pci net … --poll`, with every check and statistics on. */
export async function ours(scope: Scope, port: readonly string[]): Promise<System> {
  const launch = (vfioUser: string): Child =>
    vhostPci(scope, [
      ...['net', `vfio-user:${vfioUser}`, ...port, '--poll', '--cpu', String(BACK_CPU)],
      ...['--json', '--log-level', 'warn'],
    ]);
  return new Ours('vhost-pci', await startDevice(scope), launch, true);
}

/**
 * The device process with a program of the TypeScript API (callback-program.ts) as the driver. Its threads may use every CPU
 * but the front-end's, which a polling thread has to itself.
 */
export async function callback(scope: Scope, args: readonly string[]): Promise<System> {
  const cpuList = cpus()
    .map((_, i) => i)
    .filter((i) => i !== FRONT_CPU)
    .join();
  const launch = (vfioUser: string): Child =>
    start(scope, 'packet API', 'taskset', [
      ...['-c', cpuList, process.execPath, program('callback-program'), `vfio-user:${vfioUser}`],
      ...args,
    ]);
  return new Ours('JavaScript callback', await startDevice(scope), launch, false);
}

/** One of the benchmark's own child programs. */
export function program(name: string): string {
  return `${checkout}dist/bench/bench/${name}.js`;
}

/** DPDK's vhost PMD. */
export async function dpdk(scope: Scope, testpmd: Program, mode: Mode, frame: number): Promise<System> {
  const path = join(scope.folder(), 'vhost-user');
  const back = await Testpmd.back(scope, testpmd, path, mode, frame);
  return {
    name: 'DPDK vhost',
    path,
    polling: [back.child.pid],
    connect: async () => {},
    resume: async () => {
      await back.command('start');
    },
    pause: async () => {
      await back.stop();
    },
  };
}
