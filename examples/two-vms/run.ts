/**
 * What a run of the demo leaves behind: nothing when all went well, a folder with every log when not. Also the clock of
 * the run, and the follower that shows lines of a running program as they come.
 */
import { appendFileSync, copyFileSync, existsSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Child } from '../../test/support/process.js';
import { Scope } from '../../test/support/scope.js';

/** Between two looks at a program's output. */
const LOOK_MS = 40;
/** Between two words that something is still going on. */
const TICK_MS = 5000;

export const round = (n: number): number => Math.round(n * 1000) / 1000;

/** A scope that remembers where its programs keep their files. */
export class Run extends Scope {
  readonly #begin = performance.now();
  readonly #files: { readonly name: string; readonly path: string }[] = [];
  readonly #texts: { readonly name: string; readonly text: () => string }[] = [];
  /** Seconds of each step, in the order in which they were done. */
  readonly timings: Record<string, number> = {};
  #newest = '';

  /** Seconds since the start. */
  get elapsed(): number {
    return (performance.now() - this.#begin) / 1000;
  }

  override folder(parent?: string): string {
    this.#newest = super.folder(parent);
    return this.#newest;
  }

  /** What the programs said last goes into the logs too. */
  override onFailure(describe: () => string): void {
    this.keep('programs.log', describe);
  }

  /** Times a step. */
  async step<T>(name: string, work: () => T | Promise<T>): Promise<T> {
    const begin = performance.now();
    try {
      return await work();
    } finally {
      this.timings[name] = round((performance.now() - begin) / 1000);
    }
  }

  /** Waits, and says so as long as it takes. */
  async waiting<T>(what: string, work: Promise<T>, say: (line: string) => void): Promise<T> {
    const begin = performance.now();
    const tick = (): void => say(`  … ${what} (${Math.round((performance.now() - begin) / 1000)} s)`);
    const timer = setInterval(tick, TICK_MS);
    try {
      return await work;
    } finally {
      clearInterval(timer);
    }
  }

  /** Starts a guest, whose console log is kept after a failure. */
  async guest<T>(name: string, start: () => Promise<T>): Promise<T> {
    const started = start();
    // Guest.start makes the folder of the guest before it does anything that takes time.
    this.#files.push({ name: `${name}-console.log`, path: join(this.#newest, 'console') });
    return started;
  }

  /** Text that is kept after a failure. */
  keep(name: string, text: () => string): void {
    this.#texts.push({ name, text });
  }

  keepOutput(name: string, child: Child): void {
    this.keep(name, () => [...child.stdout, ...child.stderr, child.exit ? 'ended' : 'running'].join('\n'));
  }

  /** Calls `line` with each line of a program's log, as they come. */
  follow(lines: readonly string[], line: (text: string) => void): void {
    let seen = 0;
    const look = (): void => {
      // The list is cut at its head when it becomes long.
      for (seen = Math.min(seen, lines.length); seen < lines.length; seen++) line(lines[seen]!);
    };
    const timer = setInterval(look, LOOK_MS);
    this.defer(() => {
      look();
      clearInterval(timer);
    });
  }

  /** Writes all logs into a folder of their own, and returns it. To be called before the end of the scope. */
  saveLogs(error: unknown): string {
    const folder = mkdtempSync(join(tmpdir(), 'vhost-pci-two-vms-'));
    writeFileSync(join(folder, 'error.log'), `${(error as Error)?.stack ?? error}\n`);
    for (const { name, path } of this.#files) if (existsSync(path)) copyFileSync(path, join(folder, name));
    for (const { name, text } of this.#texts) appendFileSync(join(folder, name), `${text()}\n`);
    return folder;
  }
}
