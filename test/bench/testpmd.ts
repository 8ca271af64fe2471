/**
 * testpmd as the benchmarks use it: a front-end with a virtio_user port for each back-end that is compared, or DPDK's own
 * back-end (vhost PMD). One polling core, told what to do through its prompt. It measures: rates are its own, between two looks
 * at its statistics.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { Program } from '../support/packages.js';
import { type Child, start } from '../support/process.js';
import { type Scope, sleep } from '../support/scope.js';

/** CPU of the polling core; the prompt's thread sleeps on the other one. */
export const FRONT_CPU = 1;
export const BACK_CPU = 0;

const HUGEPAGES = '/proc/sys/vm/nr_hugepages';
/** Pages of 2 MiB for one testpmd. */
const PAGES_EACH = 160;
const MEMORY_MIB = 256;

/** Reserves huge pages for `processes` testpmds until the end of the scope. Throws, in words, when they cannot be had. */
export function reserveHugepages(scope: Scope, processes: number): void {
  const read = (): number => Number(readFileSync(HUGEPAGES, 'utf8'));
  const free = (): number =>
    Number(/HugePages_Free:\s+(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
  if (!existsSync(HUGEPAGES)) throw new Error('this kernel has no huge pages');
  const need = processes * PAGES_EACH;
  // Pages that are free now may be what another program has reserved for itself.
  const before = read();
  const expected = free() + need;
  let restored = false;
  const restore = (): void => {
    if (!restored) writeFileSync(HUGEPAGES, String(Math.max(0, read() - need)));
    restored = true;
  };
  try {
    writeFileSync(HUGEPAGES, String(before + need));
  } catch (error) {
    throw new Error(
      `DPDK needs ${need} huge pages of 2 MiB, and they cannot be reserved here (${(error as Error).message}): ` +
        `run as root where ${HUGEPAGES} can be written`,
    );
  }
  scope.defer(restore);
  process.on('exit', restore);
  const short = expected - free();
  if (short <= 0) return;
  writeFileSync(HUGEPAGES, String(before));
  restored = true;
  throw new Error(
    `DPDK needs ${need} huge pages of 2 MiB, and this machine has no memory for ${short} of them`,
  );
}

export type Mode = 'txonly' | 'rxonly' | 'io';

export interface FrontPort {
  readonly path: string;
  readonly mergeable: boolean;
  readonly packed?: boolean;
}

let counter = 0;

export class Testpmd {
  readonly child: Child;
  #marks = 0;

  private constructor(child: Child) {
    this.child = child;
  }

  /** A front-end whose port i is the virtio_user device of `ports[i]`; the back-ends listen already. */
  static front(
    scope: Scope,
    program: Program,
    ports: readonly FrontPort[],
    mode: Mode,
    frame: number,
  ): Promise<Testpmd> {
    const devices = ports.map(
      ({ path, mergeable, packed }, i) =>
        `virtio_user${i},path=${path},queues=1,queue_size=256,mrg_rxbuf=${mergeable ? 1 : 0}${packed ? ',packed_vq=1' : ''}`,
    );
    return Testpmd.#start(scope, program, 'front-end', BACK_CPU, devices, mode, frame);
  }

  /** DPDK's back-end on a socket of its own. */
  static back(scope: Scope, program: Program, path: string, mode: Mode, frame: number): Promise<Testpmd> {
    return Testpmd.#start(
      scope,
      program,
      'DPDK back-end',
      FRONT_CPU,
      [`net_vhost0,iface=${path},queues=1`],
      mode,
      frame,
    );
  }

  static async #start(
    scope: Scope,
    program: Program,
    name: string,
    mainCpu: number,
    devices: readonly string[],
    mode: Mode,
    frame: number,
  ): Promise<Testpmd> {
    const child = start(
      scope,
      name,
      'stdbuf', // its statistics are block-buffered otherwise
      [
        ...['-oL', program.command, ...program.prefix],
        ...['-l', `${BACK_CPU},${FRONT_CPU}`, '--main-lcore', String(mainCpu)],
        ...['--no-pci', '--no-telemetry', '--in-memory', '--single-file-segments', '-m', String(MEMORY_MIB)],
        ...['--file-prefix', `vp-bench-${process.pid}-${counter++}`],
        ...devices.flatMap((device) => ['--vdev', device]),
        ...['--', '-i', `--forward-mode=${mode}`, '--nb-cores=1', '--rxq=1', '--txq=1'],
        ...['--total-num-mbufs=16384', '--disable-link-check', `--txpkts=${frame}`],
      ],
      { env: program.env },
    );
    const testpmd = new Testpmd(child);
    await testpmd.#until('its ports', 30_000, () =>
      child.stdout.some((line) => /Done|Checking link/.test(line)),
    );
    await testpmd.command('');
    return testpmd;
  }

  /** Runs a command; returns the lines that it printed. */
  async command(text: string): Promise<string[]> {
    const { stdout } = this.child;
    const from = stdout.length;
    // An unknown word, echoed by the prompt, tells that the command before it is done.
    const mark = `mark-${this.#marks++}`;
    this.child.write(`${text}\n${mark}\n`);
    let end = -1;
    await this.#until(`'${text}' is done`, 15_000, () => {
      end = stdout.findIndex((line, i) => i >= from && line.includes(mark));
      return end >= 0;
    });
    return stdout.slice(from, end);
  }

  async forward(port: number, first = false): Promise<void> {
    await this.command(`set portlist ${port}`);
    await this.command(first ? 'start tx_first 32' : 'start');
  }

  stop(): Promise<string[]> {
    return this.command('stop');
  }

  /** Packets a second on a port over the window, as testpmd counts and times them. */
  async rate(port: number, direction: 'Rx' | 'Tx', windowMs: number): Promise<number> {
    await this.command(`show port stats ${port}`);
    await sleep(windowMs);
    const text = (await this.command(`show port stats ${port}`)).join('\n');
    const match = new RegExp(`${direction}-pps:\\s+(\\d+)`).exec(text);
    if (!match) throw new Error(`testpmd shows no rate:\n${text}`);
    return Number(match[1]);
  }

  /** Looks more often than Child.until, whose pauses would be most of a sample. */
  async #until(what: string, ms: number, probe: () => boolean): Promise<void> {
    const end = Date.now() + ms;
    while (!probe()) {
      if (this.child.exit || Date.now() > end)
        throw new Error(`${this.child.name}: not within ${ms} ms: ${what}${this.child.tail()}`);
      await sleep(3);
    }
  }
}
