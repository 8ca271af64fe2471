/**
 * DPDK's testpmd with its virtio_user port as a real vhost-user front-end (or its net_vhost port as a back-end, to
 * try the rig itself). Controlled through its interactive prompt. One forwarding core, on CPU 1 when there is one.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { fetchSet, type Program, programIn } from './packages.js';
import { type Child, onPath, start } from './process.js';
import { type Availability, type Scope, until } from './scope.js';

const HUGEPAGES = '/proc/sys/vm/nr_hugepages';
/** Pages of 2 MiB for one testpmd. */
const PAGES = 192;

let counter = 0;
let found: Availability<Program> | undefined;

/** testpmd from PATH, or unpacked aside. */
export function testpmd(): Availability<Program> {
  found ??= findTestpmd();
  return found;
}

function findTestpmd(): Availability<Program> {
  if (process.arch !== 'x64' && !onPath('dpdk-testpmd')) return { missing: 'dpdk-testpmd is not installed' };
  if (cpus().length < 2) return { missing: 'dpdk-testpmd needs two CPUs' };
  if (onPath('dpdk-testpmd')) return { ok: { command: 'dpdk-testpmd', prefix: [], env: {} } };
  const set = fetchSet('dpdk');
  if ('missing' in set) return set;
  const program = programIn(set.ok, 'usr/bin/dpdk-testpmd');
  const lib = `${set.ok}/usr/lib/x86_64-linux-gnu/dpdk`;
  const plugins = existsSync(lib) ? readdirSync(lib).find((name) => name.startsWith('pmds-')) : undefined;
  if (!plugins) return { missing: 'the DPDK package has no drivers where they are expected' };
  return { ok: { ...program, prefix: [...program.prefix, '-d', `${lib}/${plugins}`] } };
}

/**
 * Huge pages for the life of the scope, when this user may ask for them; false when there are not enough, and
 * testpmd then uses ordinary shared memory.
 */
function reserveHugepages(scope: Scope): boolean {
  const read = (): number => Number(readFileSync(HUGEPAGES, 'utf8'));
  const free = (): number =>
    Number(/HugePages_Free:\s+(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]);
  if (process.env.VHOST_PCI_HUGEPAGES === '0') return false;
  try {
    const before = read();
    if (free() < PAGES) {
      writeFileSync(HUGEPAGES, String(before + PAGES));
      const set = read();
      // Somebody else may have changed the number meanwhile, and then it is theirs.
      scope.defer(() => {
        if (read() === set) writeFileSync(HUGEPAGES, String(before));
      });
    }
    return free() >= PAGES;
  } catch {
    return false;
  }
}

export interface TestpmdOptions {
  readonly path: string;
  readonly mode: 'txonly' | 'rxonly' | 'io';
  /** Bytes of the frames that txonly makes. */
  readonly frame?: number;
  /** Lengths of the segments of each frame that txonly makes, instead of `frame`. */
  readonly segments?: readonly number[];
  /** Negotiate IN_ORDER when it is offered (default): virtio_user then uses no indirect descriptors. */
  readonly inOrder?: boolean;
  readonly queuePairs?: number;
  readonly mergeable?: boolean;
  readonly packed?: boolean;
  /** virtio_user listens on the path and waits for the back-end to connect; else it connects. */
  readonly server?: boolean;
  /** Entries a ring. */
  readonly queueSize?: number;
  /** Frames up to this many bytes; beyond what one buffer takes only with `mergeable`. */
  readonly maxFrame?: number;
  /** `net_vhost` makes it a back-end. */
  readonly driver?: 'virtio_user' | 'net_vhost';
}

export interface PortStats {
  rxPackets: number;
  rxBytes: number;
  rxErrors: number;
  txPackets: number;
  txBytes: number;
}

export class Testpmd {
  readonly child: Child;
  #sync = 0;

  private constructor(child: Child) {
    this.child = child;
  }

  /** Starts it and waits for the prompt; a virtio_user client has connected and negotiated by then. */
  static async start(scope: Scope, program: Program, options: TestpmdOptions): Promise<Testpmd> {
    const run = async (huge: boolean): Promise<Testpmd> => {
      const child = start(
        scope,
        'testpmd',
        'stdbuf', // its statistics are block-buffered otherwise
        ['-oL', program.command, ...program.prefix, ...ealArgs(options, huge), '--', ...appArgs(options)],
        { env: program.env },
      );
      const testpmd = new Testpmd(child);
      // A virtio_user server sits in accept() until its back-end comes: the caller waits, with `ready`.
      if (!options.server) await testpmd.ready();
      else await child.until('its socket', 30_000, () => existsSync(options.path));
      return testpmd;
    };
    if (!reserveHugepages(scope)) return run(false);
    return run(true).catch((error: Error) => {
      // Huge pages that were free a moment ago are somebody else's now.
      if (/Cannot init memory/.test(error.message)) return run(false);
      throw error;
    });
  }

  /** Waits for the prompt, and sets the frame length. */
  async ready(ms = 30_000): Promise<void> {
    await this.child.until('its prompt', ms, () =>
      this.child.stdout.some((l) => /Configuring Port 0/.test(l)),
    );
    await this.command('');
  }

  /** Runs a command; returns the lines that it printed. */
  async command(text: string, ms = 15_000): Promise<string[]> {
    const from = this.child.stdout.length;
    // The next prompt tells that the command is done: an unknown word, echoed, marks it.
    const mark = `mark-${this.#sync++}`;
    this.child.write(`${text}\n${mark}\n`);
    const at = await this.child.until(`'${text}' is done`, ms, () => {
      const i = this.child.stdout.slice(from).findIndex((l) => l.includes(mark));
      return i < 0 ? undefined : { i };
    });
    return this.child.stdout.slice(from, from + at.i);
  }

  /** Counters of the port since it started. */
  async stats(): Promise<PortStats> {
    const text = (await this.command('show port stats 0')).join('\n');
    const value = (name: string): number => {
      const m = new RegExp(`${name}:\\s+(\\d+)`).exec(text);
      if (!m) throw new Error(`testpmd shows no ${name}:\n${text}${this.child.tail()}`);
      return Number(m[1]);
    };
    return {
      rxPackets: value('RX-packets'),
      rxBytes: value('RX-bytes'),
      rxErrors: value('RX-errors'),
      txPackets: value('TX-packets'),
      txBytes: value('TX-bytes'),
    };
  }

  /** Per-queue packets since `start`, as testpmd prints them at `stop`: `[receive, transmit]` of each queue. */
  async stop(): Promise<void> {
    await this.command('stop');
  }

  async forward(txFirst = false): Promise<void> {
    await this.command(txFirst ? 'start tx_first 32' : 'start');
  }

  /** Waits for the link as virtio_user sees it. */
  async link(up: boolean, ms = 15_000): Promise<void> {
    await until(
      `testpmd's link is ${up ? 'up' : 'down'}`,
      ms,
      async () =>
        (await this.command('show port info 0')).some((l) =>
          l.includes(`Link status: ${up ? 'up' : 'down'}`),
        ),
      () => this.child.tail(),
    );
  }

  /** Waits until `accept` likes the statistics. */
  async until(what: string, ms: number, accept: (stats: PortStats) => boolean): Promise<PortStats> {
    let last: PortStats | undefined;
    return until(
      `testpmd: ${what}`,
      ms,
      async () => {
        last = await this.stats();
        return accept(last) && last;
      },
      () => `\n${JSON.stringify(last)}${this.child.tail()}`,
    );
  }

  async quit(): Promise<void> {
    this.child.write('stop\nquit\n');
    await this.child.stop('SIGCONT', 15_000);
  }
}

function ealArgs(options: TestpmdOptions, huge: boolean): string[] {
  const pairs = options.queuePairs ?? 1;
  const port =
    options.driver === 'net_vhost'
      ? `net_vhost0,iface=${options.path},queues=${pairs}`
      : [
          `virtio_user0,path=${options.path},queues=${pairs}`,
          `queue_size=${options.queueSize ?? 256}`,
          `mrg_rxbuf=${options.mergeable ? 1 : 0}`,
          ...(options.packed ? ['packed_vq=1'] : []),
          ...(options.inOrder === false ? ['in_order=0'] : []),
          ...(options.server ? ['server=1'] : []),
        ].join(',');
  return [
    '-l',
    '0,1',
    '--no-pci',
    '--no-telemetry',
    '--file-prefix',
    `vp-${process.pid}-${counter++}`,
    ...(huge ? ['--in-memory', '--single-file-segments', '-m', '256'] : ['--no-huge', '-m', '256']),
    '--vdev',
    port,
  ];
}

function appArgs(options: TestpmdOptions): string[] {
  const pairs = String(options.queuePairs ?? 1);
  return [
    '-i',
    `--forward-mode=${options.mode}`,
    '--nb-cores=1',
    `--rxq=${pairs}`,
    `--txq=${pairs}`,
    '--total-num-mbufs=16384',
    '--disable-link-check',
    ...(options.frame ? [`--txpkts=${options.frame}`] : []),
    // RTE_ETH_TX_OFFLOAD_MULTI_SEGS
    ...(options.segments ? [`--txpkts=${options.segments.join(',')}`, '--tx-offloads=0x8000'] : []),
    ...(options.maxFrame ? [`--max-pkt-len=${options.maxFrame}`] : []),
  ];
}
