/** What a test started and has to end, in reverse order, whatever happened. Knows nothing about what it is. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

type Undo = () => void | Promise<void>;

export class Scope implements AsyncDisposable {
  #undo: Undo[] = [];
  #describe: (() => string)[] = [];

  /** Runs `undo` at the end, before what was deferred earlier. */
  defer(undo: Undo): void {
    this.#undo.push(undo);
  }

  /** Text that is shown when the test has failed. */
  onFailure(describe: () => string): void {
    this.#describe.push(describe);
  }

  /** A folder of its own with a short path (Unix socket paths end at 107 bytes), removed at the end. */
  folder(parent = shortTmp()): string {
    const path = mkdtempSync(join(parent, 'vp-'));
    this.defer(() => rmSync(path, { recursive: true, force: true }));
    return path;
  }

  /**
   * Ends everything; the first failure is thrown after all were tried. Idempotent. Given the context of a test that
   * failed, shows what its programs said.
   */
  async end(context?: { readonly task: { readonly result?: { readonly state: string } } }): Promise<void> {
    if (context?.task.result?.state === 'fail')
      for (const describe of this.#describe) console.error(describe());
    this.#describe = [];
    const failures: unknown[] = [];
    for (let undo = this.#undo.pop(); undo; undo = this.#undo.pop()) {
      try {
        await undo();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.end();
  }
}

/** $TMPDIR, unless a socket's path would not fit behind it. */
export function shortTmp(): string {
  return Buffer.byteLength(tmpdir()) > 70 ? '/tmp' : tmpdir();
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * No wait is given up before this, whatever its own limit says: a limit is for an idle machine, and a busy one is ten
 * times slower. It costs time only where a test fails anyway.
 */
export const PATIENCE_MS = 30_000;

/** Calls `probe` until it returns something other than undefined or false; throws after `ms`, naming `what`. */
export async function until<T>(
  what: string,
  ms: number,
  probe: () => T | undefined | false | Promise<T | undefined | false>,
  detail: () => string = () => '',
): Promise<T> {
  const limit = Math.max(ms, PATIENCE_MS);
  const end = Date.now() + limit;
  for (;;) {
    // A look that began in time counts: the process may have stood still since the last one.
    const late = Date.now() > end;
    const value = await probe();
    if (value !== undefined && value !== false) return value;
    if (late) throw new Error(`not within ${limit} ms: ${what}${detail()}`);
    await sleep(20);
  }
}

/** Either a thing that tests need, or why this machine has none. */
export type Availability<T> = { readonly ok: T } | { readonly missing: string };

/** What a test needs, or the end of the test as skipped, with the reason. */
export function need<T>(context: { skip: (note?: string) => never }, availability: Availability<T>): T {
  if ('missing' in availability) context.skip(availability.missing);
  else return availability.ok;
  throw new Error('skip() returned');
}
