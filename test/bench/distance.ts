/**
 * How far apart the two CPUs are, by native/test/pingpong.cc, which is built when it is not there. Cores move under a virtual
 * machine: a sample counts only when the distance before it and after it is of the same class.
 */
import { existsSync, mkdirSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Child, checkout, run, start } from '../support/process.js';
import type { Scope } from '../support/scope.js';

/** Upper ends, in nanoseconds, of the classes: same complex, same chip, same package, another package. */
const CLASSES = [85, 180, 350];

export function distanceClass(nanoseconds: number): number {
  const i = CLASSES.findIndex((end) => nanoseconds < end);
  return i < 0 ? CLASSES.length : i;
}

/** What the classes are called in reports. */
export const CLASS_NAMES = ['< 85 ns', '85-180 ns', '180-350 ns', '> 350 ns'] as const;

/** Path of the program. */
export async function pingpong(): Promise<string> {
  const source = `${checkout}native/test/pingpong.cc`;
  const program = `${checkout}native/build/bench/pingpong`;
  if (!existsSync(program) || statSync(program).mtimeMs < statSync(source).mtimeMs) {
    mkdirSync(dirname(program), { recursive: true });
    await run(process.env.CXX ?? 'g++', ['-std=c++20', '-O2', source, '-o', program], { ms: 120_000 });
  }
  return program;
}

export class Distance {
  readonly #child: Child;

  private constructor(child: Child) {
    this.#child = child;
  }

  static async start(scope: Scope, cpus: readonly [number, number]): Promise<Distance> {
    return new Distance(start(scope, 'pingpong', await pingpong(), cpus.map(String)));
  }

  /** Nanoseconds of a cache line's way there and back. Takes some milliseconds; both CPUs must have nothing to do. */
  line(): Promise<number> {
    return this.#ask('line');
  }

  /** Microseconds from the signal of an eventfd to the wake-up of a process that sleeps on it. */
  wake(): Promise<number> {
    return this.#ask('wake');
  }

  async #ask(word: string): Promise<number> {
    const from = this.#child.stdout.length;
    this.#child.write(`${word}\n`);
    const answer = await this.#child.until(`its answer to ${word}`, 20_000, () => this.#child.stdout[from]);
    if (!(Number(answer) > 0)) throw new Error(`pingpong ${word}: ${answer}`);
    return Number(answer);
  }
}
