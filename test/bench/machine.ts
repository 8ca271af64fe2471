/** What a figure depends on and a reader has to know: machine, versions, date. */
import { readFileSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { checkout, onPath, run } from '../support/process.js';

export interface Machine {
  readonly date: string;
  readonly cpu: string;
  readonly cpus: number;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly node: string;
  readonly project: string;
  readonly commit: string;
  readonly dpdk: string;
  readonly mostRunDelay: string;
  readonly load: number;
}

async function said(command: string, args: readonly string[]): Promise<string> {
  if (!onPath(command)) return 'unknown';
  return run(command, args).then(
    (text) => text.trim(),
    () => 'unknown',
  );
}

export async function machine(dpdk: string, mostDelay: number): Promise<Machine> {
  const { version } = JSON.parse(readFileSync(`${checkout}package.json`, 'utf8')) as { version: string };
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
    project: version,
    commit: await said('git', ['-C', checkout, 'describe', '--always', '--dirty']),
    dpdk,
    mostRunDelay: `${mostDelay * 100} %`,
    load: loadavg()[0] ?? 0,
  };
}
