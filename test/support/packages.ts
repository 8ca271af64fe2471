/** Programs that tests borrow from Debian packages unpacked in the cache folder (see fetch-debian.sh). */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { checkout } from './process.js';
import type { Availability } from './scope.js';

export type PackageSet = 'qemu' | 'kernel' | 'busybox' | 'dpdk' | 'iperf3';

/** The folder that a script prints, or the reason (its last line on stderr) why it cannot. */
export function runScript(path: string, args: readonly string[], ms: number): Availability<string[]> {
  const done = spawnSync(`${checkout}test/support/${path}`, args, { encoding: 'utf8', timeout: ms });
  const lines = (text: string | null): string[] => (text ?? '').split('\n').filter((l) => l !== '');
  if (done.status === 0) return { ok: lines(done.stdout) };
  return { missing: lines(done.stderr).at(-1) ?? `${path} ended with ${done.status ?? done.signal}` };
}

export function fetchSet(set: PackageSet): Availability<string> {
  const got = runScript('fetch-debian.sh', [set], 600_000);
  return 'missing' in got ? got : { ok: got.ok[0]! };
}

export interface Program {
  readonly command: string;
  /** Arguments that come before the program's own. */
  readonly prefix: readonly string[];
  readonly env: NodeJS.ProcessEnv;
}

/** How to start a program of an unpacked set: with the set's own dynamic loader and libraries. */
export function programIn(folder: string, path: string): Program {
  const lib = `${folder}/usr/lib/x86_64-linux-gnu`;
  const libraries = [lib, `${lib}/dpdk/pmds`, `${folder}/usr/lib`].filter(existsSync).join(':');
  return {
    command: `${folder}/usr/lib64/ld-linux-x86-64.so.2`,
    prefix: ['--library-path', libraries, `${folder}/${path}`],
    env: {},
  };
}
