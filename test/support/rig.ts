/** Our two commands as processes, joined by their sockets in one folder, for tests against real peers. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Netns } from './netns.js';
import { type Child, type NetEvent, type StartOptions, start, vhostPci, vhostPciArgv } from './process.js';
import { type Scope, until } from './scope.js';

export interface DeviceOptions extends StartOptions {
  /** Window mode: the file, which the process creates, and its size. Without it, adopt mode. */
  readonly window?: { readonly file: string; readonly mib: number };
  readonly queuePairs?: number;
  /** The connected vhost-user socket, instead of a listening path; given to the child as descriptor 3. */
  readonly vhostUserFd?: number;
  readonly interrupts?: 'msix' | 'msi';
  /** Adopt mode: the VM that the device is plugged into. */
  readonly receiver?: { readonly qmp: string; readonly bus: string };
}

/** Tells a file from another that has taken its place. */
function identity(path: string): string | undefined {
  const stats = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stats && `${stats.ino} ${stats.ctimeNs}`;
}

export class Rig {
  /** Sockets: the peer's front-end connects to the first, the driver to the second. */
  readonly vhostUser: string;
  readonly vfioUser: string;
  readonly #scope: Scope;

  constructor(scope: Scope) {
    this.#scope = scope;
    const folder = scope.folder();
    this.vhostUser = join(folder, 'vhost-user');
    this.vfioUser = join(folder, 'vfio-user');
  }

  /** Starts the device process and waits until a front-end can connect. */
  async device(options: DeviceOptions = {}): Promise<Child> {
    const { window, queuePairs, vhostUserFd, interrupts, receiver, ...rest } = options;
    const args = [
      'device',
      ...(vhostUserFd === undefined ? ['--socket-path', this.vhostUser] : ['--fd', '3']),
      '--vfio-user',
      this.vfioUser,
      ...(window ? ['--peer-memory', window.file, '--peer-memory-size', `${window.mib}M`] : []),
      ...(queuePairs ? ['--queue-pairs', String(queuePairs)] : []),
      ...(interrupts ? ['--interrupts', interrupts] : []),
      ...(receiver ? ['--receiver-qmp', receiver.qmp, '--receiver-bus', receiver.bus] : []),
      '--log-level',
      'debug',
    ];
    const fds = vhostUserFd === undefined ? [] : [vhostUserFd];
    // One that was killed leaves its socket behind.
    const left = identity(this.vhostUser);
    const device = vhostPci(this.#scope, args, { ...rest, fds });
    if (vhostUserFd === undefined)
      await device.until(
        'its vhost-user socket',
        30_000,
        () => ![undefined, left].includes(identity(this.vhostUser)),
      );
    return device;
  }

  /** Waits until a driver can connect: at once in window mode, when the peer has given its memory in adopt mode. */
  async served(device: Child, ms = 30_000): Promise<void> {
    await device.until('its vfio-user socket', ms, () => existsSync(this.vfioUser));
  }

  /** Starts the driver, in a network namespace if one is given. */
  net(args: readonly string[], netns?: Netns): Driver {
    const all = [
      'net',
      `vfio-user:${this.vfioUser}`,
      ...args,
      '--stats',
      '1',
      '--json',
      '--log-level',
      'debug',
    ];
    if (!netns) return new Driver(vhostPci(this.#scope, all));
    const [program, ...rest] = netns.argv(vhostPciArgv(all));
    return new Driver(start(this.#scope, 'vhost-pci net', program!, rest));
  }
}

/** Sums over the queues of one `stats` event. `receive` is what the peer sent. */
export interface Totals {
  readonly receive: DirectionTotals;
  readonly send: DirectionTotals;
  /** Packets of each queue, `[receive, send]`. */
  readonly queues: readonly (readonly [number, number])[];
}

export interface DirectionTotals {
  packets: number;
  bytes: number;
  drops: number;
}

interface QueueJson {
  receive: DirectionTotals & { broken?: string };
  send: DirectionTotals & { broken?: string };
}

export class Driver {
  readonly child: Child;

  constructor(child: Child) {
    this.child = child;
  }

  /** Events so far; the number is a starting point for `connection`. */
  mark(): number {
    return this.child.events().length;
  }

  connection(state: 'on' | 'off', ms = 60_000, from = 0): Promise<NetEvent> {
    return this.child.event(
      `connection ${state}`,
      ms,
      (e) => e.event === 'connection' && e.state === state,
      from,
    );
  }

  /** The newest statistics; undefined before the first. */
  totals(): Totals | undefined {
    const event = this.child.events().findLast((e) => e.event === 'stats');
    if (!event) return undefined;
    const queues = event.queues as QueueJson[];
    const broken = queues
      .flatMap((q) => [q.receive.broken, q.send.broken])
      .find((cause) => cause !== undefined);
    if (broken !== undefined) throw new Error(`a ring is broken: ${broken}${this.child.tail()}`);
    const sum = (of: (q: QueueJson) => DirectionTotals): DirectionTotals =>
      queues
        .map(of)
        .reduce(
          (a, b) => ({ packets: a.packets + b.packets, bytes: a.bytes + b.bytes, drops: a.drops + b.drops }),
          { packets: 0, bytes: 0, drops: 0 },
        );
    return {
      receive: sum((q) => q.receive),
      send: sum((q) => q.send),
      queues: queues.map((q) => [q.receive.packets, q.send.packets] as const),
    };
  }

  /** Waits for statistics that `accept` likes. */
  until(what: string, ms: number, accept: (totals: Totals) => boolean): Promise<Totals> {
    return until(
      `vhost-pci net: ${what}`,
      ms,
      () => {
        const totals = this.totals();
        return totals && accept(totals) && totals;
      },
      () => `\n${JSON.stringify(this.totals())}${this.child.tail()}`,
    );
  }

  /** Ends it by SIGTERM; returns its last statistics. */
  async stop(): Promise<Totals> {
    const exit = await this.child.stop('SIGTERM');
    const totals = this.totals();
    if (exit.code !== 0 || !totals) throw new Error(`it did not end in order${this.child.tail()}`);
    return totals;
  }
}
