/** What is measured, section by section, and the targets. */
import { spawnSync } from 'node:child_process';
import type { Program } from '../support/packages.js';
import type { Scope } from '../support/scope.js';
import { testpmd } from '../support/testpmd.js';
import type { Distance } from './distance.js';
import { footprint } from './footprint.js';
import { pollTurn, wakeUp } from './latency.js';
import type { Labels } from './report.js';
import type { Comparison } from './samples.js';
import { dirtyLogging, manyPeers } from './scale.js';
import { callback, DIRECTIONS, type Direction, ours } from './systems.js';
import { iperf3, tcp } from './tcp.js';
import { reserveHugepages } from './testpmd.js';
import { againstDpdk, compareSystems, type Effort } from './throughput.js';

export interface Bench {
  readonly scope: Scope;
  readonly distance: Distance;
  readonly frames: readonly number[];
  readonly quick: boolean;
  readonly effort: Effort;
  /** Version, once it was needed. */
  dpdk?: string;
  program?: Program;
}

type Tell = (labels: Labels, result: Comparison | number) => void;

interface Section {
  readonly title: string;
  readonly quick: boolean;
  run(bench: Bench, tell: Tell): Promise<void>;
}

const MEGA = 1e-6;
const GIGA = 1e-9;

/** Ratio to DPDK, by frame size. */
const TARGETS: Record<Direction, Record<number, number>> = {
  'peer → us': { 64: 1.0, 256: 1.0, 512: 1.0, 1024: 1.4, 1518: 1.5 },
  'us → peer': { 64: 2.0, 256: 2.2, 512: 2.3, 1024: 1.9, 1518: 1.6 },
  'there and back': { 64: 1.3, 256: 1.6, 512: 1.8, 1024: 2.3, 1518: 2.4 },
};

/** testpmd and its huge pages, or an error that says what is missing. */
async function needDpdk(bench: Bench): Promise<Program> {
  if (bench.program) return bench.program;
  const found = testpmd();
  if ('missing' in found) throw new Error(`no dpdk-testpmd: ${found.missing}`);
  reserveHugepages(bench.scope, 2);
  const { command, prefix, env } = found.ok;
  // EAL writes it to stderr.
  const said = spawnSync(command, [...prefix, '-v', '--help'], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  bench.dpdk = /DPDK [\d.]+/.exec(`${said.stderr}${said.stdout}`)?.[0] ?? 'DPDK';
  bench.program = found.ok;
  return found.ok;
}

function throughput(mergeable: boolean, packed: boolean): Section['run'] {
  return async (bench, tell) => {
    const program = await needDpdk(bench);
    for (const direction of Object.keys(DIRECTIONS) as Direction[])
      for (const frame of bench.frames) {
        const cell = { direction, frame, mergeable, packed };
        // The targets are those of split rings.
        const atLeast = packed ? undefined : TARGETS[direction][frame];
        tell(
          {
            name: `${direction}, ${frame} bytes`,
            unit: 'Mpps',
            reference: 'Mpps DPDK',
            scale: MEGA,
            ...(atLeast !== undefined && { target: { atLeast } }),
          },
          await againstDpdk(program, bench.distance, cell, bench.effort),
        );
      }
  };
}

export const SECTIONS = {
  plain: {
    title: 'Against DPDK vhost, split rings, mergeable buffers off',
    quick: true,
    run: throughput(false, false),
  },
  mergeable: {
    title: 'Against DPDK vhost, split rings, mergeable buffers on',
    quick: false,
    run: throughput(true, false),
  },
  packed: {
    title: 'Against DPDK vhost, packed rings, mergeable buffers on',
    quick: false,
    run: throughput(true, true),
  },
  callback: {
    title: 'Packets to a JavaScript callback against the native sink',
    quick: true,
    run: async (bench, tell) => {
      const program = await needDpdk(bench);
      for (const frame of bench.frames.filter((n) => n === 64 || n === 1518)) {
        const cell = { direction: 'peer → us', frame, mergeable: false } as const;
        const result = await compareSystems(program, bench.distance, cell, bench.effort, [
          (scope) => callback(scope, ['adaptive']),
          (scope) => ours(scope, ['--sink']),
        ]);
        const target = frame === 64 ? { target: { atLeast: 0.6 } } : {};
        tell(
          { name: `${frame} bytes`, unit: 'Mpps', reference: 'Mpps sink', scale: MEGA, ...target },
          result,
        );
      }
    },
  },
  wake: {
    title: 'Latency',
    quick: true,
    run: async ({ distance, effort }, tell) => {
      for (const [name, signals, atMost] of [
        ["idle wake-up, the peer's own eventfds", 'direct', 1.15],
        ['idle wake-up, through the relay', 'relay', 2.2],
      ] as const)
        tell(
          { name, unit: 'µs', reference: 'µs eventfd', target: { atMost } },
          await wakeUp(distance, effort, signals),
        );
      tell(
        { name: 'turn, both ends polling', unit: 'µs', reference: 'µs line' },
        await pollTurn(distance, effort),
      );
    },
  },
  tcp: {
    title: 'TCP, one stream from TAP to TAP, against a veth pair',
    quick: false,
    run: async ({ distance, quick, effort }, tell) => {
      const iperf = iperf3();
      if ('missing' in iperf) throw new Error(iperf.missing);
      const labels = { unit: 'Gbit/s', reference: 'Gbit/s veth', scale: GIGA };
      const seconds = quick ? 1 : 3;
      tell(
        { name: 'the product', ...labels, target: { atLeast: 0.8 } },
        await tcp('product', iperf.ok, distance, seconds, effort.pairs),
      );
      tell(
        { name: 'reads and writes alone', ...labels },
        await tcp('loop', iperf.ok, distance, seconds, effort.pairs),
      );
    },
  },
  peers: {
    title: 'Peers on one worker, 64 bytes, total against one peer',
    quick: false,
    run: async ({ distance, effort }, tell) => {
      for (const peers of [2, 4, 8, 16])
        tell(
          {
            name: `${peers} peers`,
            unit: 'Mpps',
            reference: 'Mpps one',
            scale: MEGA,
            ...(peers === 16 && { target: { atLeast: 0.9 } }),
          },
          await manyPeers(distance, peers, 64, effort),
        );
    },
  },
  logging: {
    title: 'Dirty logging on against off, us → peer',
    quick: false,
    run: async ({ distance, effort, frames }, tell) => {
      for (const frame of frames.filter((n) => n === 64 || n === 1518))
        tell(
          {
            name: `${frame} bytes`,
            unit: 'Mpps',
            reference: 'Mpps off',
            scale: MEGA,
            target: { atLeast: frame === 64 ? 0.9 : 0.98 },
          },
          await dirtyLogging(distance, frame, effort),
        );
    },
  },
  footprint: {
    title: 'CPU, wake-ups and memory of the two processes',
    quick: false,
    run: async ({ quick }, tell) => {
      for (const f of await footprint(quick ? 1 : 5)) {
        const of = (what: string): string => `${f.process}, ${f.state}: ${what}`;
        const still =
          f.process === 'device' && f.state === 'idle, interrupt' ? { target: { atMost: 0 } } : {};
        tell({ name: of('CPU'), unit: '% of one' }, f.cpu * 100);
        tell({ name: of('wake-ups'), unit: 'a second', ...still }, f.wakeups);
        tell({ name: of('RSS'), unit: 'MiB', target: { atMost: 80 } }, f.rssMiB);
        tell({ name: of('RSS growth'), unit: 'MiB' }, f.growthMiB);
      }
    },
  },
} as const satisfies Record<string, Section>;

export type SectionName = keyof typeof SECTIONS;
