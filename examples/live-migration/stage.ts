/**
 * Two hosts on one: a device process, a driver with a TAP and a QEMU each, the TAPs on one bridge, and a stock guest that
 * starts on the first and can be migrated to the second. What it starts belongs to a scope. Used by the demo and by the tests.
 */
import { join } from 'node:path';
import { Netns, netnsAvailable } from '../../test/support/netns.js';
import { fetchSet } from '../../test/support/packages.js';
import type { Child } from '../../test/support/process.js';
import { Guest, type Qemu, qemu } from '../../test/support/qemu.js';
import { type Driver, Rig } from '../../test/support/rig.js';
import { type Availability, type Scope, sleep } from '../../test/support/scope.js';
import { startStream } from './stream.js';

export const GUEST_IP = '10.0.0.2';
export const HOST_IP = '10.0.0.1';
const MIB = 256;
/** Bytes a second: slow enough that a guest with little memory takes several passes. */
const BANDWIDTH = 40 << 20;
/** Between two looks at a migration. */
const LOOK_MS = 100;

export interface StageProps {
  readonly qemu: Qemu;
  readonly busybox: string;
}

/** What the stage needs, or why this machine has not got it. The first call fetches and builds. */
export async function stageProps(): Promise<Availability<StageProps>> {
  const netns = netnsAvailable();
  if ('missing' in netns) return netns;
  const program = await qemu();
  if ('missing' in program) return program;
  const set = fetchSet('busybox');
  if ('missing' in set) return set;
  return { ok: { qemu: program.ok, busybox: `${set.ok}/usr/bin/busybox` } };
}

export interface Host {
  readonly name: 'source' | 'destination';
  device: Child;
  readonly net: Driver;
  /** The file that is the guest's memory while it is here. */
  readonly memoryFile: string;
  /** QEMU, with the guest or ready to receive it. */
  guest: Guest;
  /** Starts another QEMU here, in place of one that has ended. */
  restart(extra: readonly string[]): Promise<void>;
  /** Starts another device process here, in place of one that has ended. */
  restartDevice(): Promise<void>;
}

/** A migration as QMP tells it. Bytes, milliseconds, pages. */
export interface Progress {
  readonly status: string;
  readonly ms: number;
  /** Passes over the dirty pages. */
  readonly iteration: number;
  readonly transferred: number;
  readonly remaining: number;
  readonly dirtyPagesPerSecond: number;
  readonly downtime: number;
  readonly error?: string;
}

interface QueryMigrate {
  readonly status?: string;
  readonly 'total-time'?: number;
  readonly downtime?: number;
  readonly 'expected-downtime'?: number;
  readonly 'error-desc'?: string;
  readonly ram?: Record<string, number>;
}

export interface StageOptions {
  /** The destination waits for `cont`, so that both memories can be compared. */
  readonly compare?: boolean;
  /** Environment of the drivers. */
  readonly env?: NodeJS.ProcessEnv;
}

export class Stage {
  /** Where the guest is, and where it can be migrated to. */
  source: Host;
  destination: Host;
  readonly netns: Netns;
  /** A folder that the receiving sides' network serves at `url`. */
  readonly folder: string;
  readonly url = `http://${HOST_IP}`;
  readonly #busybox: string;
  readonly #sockets: Sockets;

  private constructor(
    netns: Netns,
    source: Host,
    destination: Host,
    sockets: Sockets,
    served: { folder: string; busybox: string },
  ) {
    this.folder = served.folder;
    this.#busybox = served.busybox;
    this.netns = netns;
    this.source = source;
    this.destination = destination;
    this.#sockets = sockets;
  }

  /** The guest is up on the source and its network works; the destination listens. */
  static async create(
    scope: Scope,
    props: StageProps,
    options: StageOptions = {},
    say: (line: string) => void = () => {},
  ): Promise<Stage> {
    const netns = await Netns.create(scope);
    await netns.run(['ip', 'link', 'add', 'br0', 'type', 'bridge']);
    await netns.run(['ip', 'addr', 'add', `${HOST_IP}/24`, 'dev', 'br0']);
    await netns.run(['ip', 'link', 'set', 'br0', 'up']);
    const folder = scope.folder();
    const host = async (name: Host['name'], extra: readonly string[]): Promise<Host> => {
      const tap = `vp-${name}`;
      await netns.run(['ip', 'tuntap', 'add', 'dev', tap, 'mode', 'tap', 'vnet_hdr']);
      await netns.run(['ip', 'link', 'set', tap, 'master', 'br0', 'up']);
      const rig = new Rig(scope);
      const memoryFile = join(scope.folder('/dev/shm'), 'peer');
      say(`${name}: device process, driver and QEMU`);
      const startDevice = (): Promise<Child> => rig.device({ window: { file: memoryFile, mib: MIB } });
      const device = await startDevice();
      const net = withEnv(options.env, () => rig.net(['--tap', tap], netns));
      const boot = (more: readonly string[]): Promise<Guest> =>
        Guest.start(scope, props.qemu, {
          memory: { kind: 'window', file: memoryFile, mib: MIB },
          vhostUser: rig.vhostUser,
          ip: `${GUEST_IP}/24`,
          extra: more,
        });
      const made: Host = {
        name,
        device,
        net,
        memoryFile,
        guest: await boot(extra),
        restart: async (more) => {
          made.guest = await boot(more);
        },
        restartDevice: async () => {
          made.device = await startDevice();
        },
      };
      return made;
    };
    const source = await host('source', []);
    const sockets = { folder, number: 0, more: options.compare ? ['-S'] : [] };
    const destination = await host('destination', incoming(sockets));
    await source.net.connection('on', 90_000);
    await source.guest.ready(120_000);
    await source.guest.ok(`ping -c 1 -w 20 ${HOST_IP}`);
    netns.start('httpd', [props.busybox, 'httpd', '-f', '-p', `${HOST_IP}:80`, '-h', folder]);
    return new Stage(netns, source, destination, sockets, { folder, busybox: props.busybox });
  }

  /** Runs a program in the network of the receiving sides, until the end of the scope. */
  start(name: string, command: readonly string[]): Child {
    return this.netns.start(name, command);
  }

  /** Starts a stream of numbered datagrams to the guest; `endStream` tells what became of it. */
  stream(rate: number): Promise<Child> {
    const { folder, url } = this;
    const start = (command: readonly string[]): Child => this.start('stream', command);
    return startStream(this.source.guest, { folder, url, address: GUEST_IP, rate, start });
  }

  /**
   * Load in both directions until the guest ends: it fetches a file again and again, and so does the other side from it.
   */
  async load(): Promise<void> {
    const file = `head -c ${8 << 20} /dev/urandom`;
    await this.netns.run(['sh', '-c', `${file} >${this.folder}/file`]);
    const { guest } = this.source;
    await guest.ok(`mkdir -p /tmp/www && ${file} >/tmp/www/file && httpd -p 80 -h /tmp/www`);
    await guest.ok(
      `(while :; do wget -q -T 5 -O /dev/null ${this.url}/file || sleep 1; done) >/dev/null 2>&1 &`,
    );
    const fetch = `while :; do ${this.#busybox} wget -q -T 5 -O /dev/null http://${GUEST_IP}/file || sleep 1; done`;
    this.start('fetch', ['sh', '-c', fetch]);
    const before = this.source.net.totals();
    await this.source.net.until('traffic in both directions', 60_000, ({ send, receive }) =>
      [send.bytes - (before?.send.bytes ?? 0), receive.bytes - (before?.receive.bytes ?? 0)].every(
        (n) => n > 2 << 20,
      ),
    );
  }

  /** Migrates from the source to the destination; resolves with the last state, whatever it is. */
  async migrate(watch: (progress: Progress) => void = () => {}, limitMs = 180_000): Promise<Progress> {
    const { qmp } = this.source.guest;
    await qmp.run('migrate-set-parameters', { 'max-bandwidth': BANDWIDTH });
    const begin = performance.now();
    await qmp.run('migrate', { uri: uriOf(this.#sockets) });
    for (;;) {
      await sleep(LOOK_MS);
      const progress = await this.#look(performance.now() - begin);
      watch(progress);
      if (['completed', 'failed', 'cancelled'].includes(progress.status)) return progress;
      if (progress.ms > limitMs) throw new Error(`the migration has not ended within ${limitMs / 1000} s`);
    }
  }

  /** After a migration: the guest's old place becomes ready to receive it, for the way back. */
  async turn(): Promise<void> {
    await this.source.guest.child.kill();
    [this.source, this.destination] = [this.destination, this.source];
    this.#sockets.number++;
    await this.destination.restart(incoming(this.#sockets));
  }

  async #look(ms: number): Promise<Progress> {
    const m = (await this.source.guest.qmp.run('query-migrate')) as QueryMigrate;
    const ram = m.ram ?? {};
    return {
      status: m.status ?? 'none',
      ms: m['total-time'] ?? Math.round(ms),
      iteration: ram['dirty-sync-count'] ?? 0,
      transferred: ram.transferred ?? 0,
      remaining: ram.remaining ?? 0,
      dirtyPagesPerSecond: ram['dirty-pages-rate'] ?? 0,
      downtime: m.downtime ?? m['expected-downtime'] ?? 0,
      ...(m['error-desc'] !== undefined && { error: m['error-desc'] }),
    };
  }

  /** What every program said last, for a person who has to find out. */
  logs(): string {
    return [this.source, this.destination]
      .map((h) => `==== ${h.name}\n${h.device.tail(200)}${h.net.child.tail(200)}${h.guest.tail()}`)
      .join('\n');
  }
}

/** Where the destinations listen, one after the other, and what else their QEMU is told. */
interface Sockets {
  readonly folder: string;
  readonly more: readonly string[];
  number: number;
}

const uriOf = ({ folder, number }: Sockets): string => `unix:${join(folder, `migration-${number}`)}`;
const incoming = (sockets: Sockets): string[] => ['-incoming', uriOf(sockets), ...sockets.more];

/** Children inherit the environment of this process. */
function withEnv<T>(env: NodeJS.ProcessEnv | undefined, run: () => T): T {
  const before = Object.fromEntries(Object.keys(env ?? {}).map((name) => [name, process.env[name]]));
  Object.assign(process.env, env);
  try {
    return run();
  } finally {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
}
