/**
 * Child processes of the tests: output kept by lines, waiting with deadlines, an end that is certain. Also what
 * /proc tells about a process. Knows our commands by name only.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { PATIENCE_MS, type Scope, sleep, until } from './scope.js';

/** The nearest folder above that has a package.json: this file runs from the sources and, for the benchmarks, compiled. */
function findCheckout(): string {
  let folder = new URL('..', import.meta.url);
  while (!existsSync(new URL('package.json', folder))) {
    const above = new URL('..', folder);
    if (above.href === folder.href) throw new Error('no package.json above the tests');
    folder = above;
  }
  return fileURLToPath(folder);
}

export const checkout = findCheckout();
const cli = `${checkout}dist/cli/main.js`;

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A line of `net --json`. */
export interface NetEvent {
  readonly event: string;
  readonly [field: string]: unknown;
}

/** Output of a chatty child that is kept; older lines go. */
const KEEP_LINES = 20_000;

/** How long the output of a process that has ended is waited for, at least: so many looks with this between them. */
const DRAIN_MS = 100;
const DRAIN_LOOKS = 10;

const alive = new Set<Child>();
process.on('exit', () => {
  for (const child of alive) child.signal('SIGKILL');
});

/** A test runner that is killed takes its children with it (PR_SET_PDEATHSIG); the pid stays the program's. */
const dieWithUs = onPath('setpriv') ? ['setpriv', '--pdeathsig', 'KILL', '--'] : [];

export interface StartOptions {
  readonly env?: NodeJS.ProcessEnv;
  /** Descriptors that the child gets as 3, 4, … */
  readonly fds?: readonly number[];
}

export class Child {
  readonly name: string;
  readonly stdout: string[] = [];
  readonly stderr: string[] = [];
  /** Resolves when the process has ended and its output is complete. */
  readonly exited: Promise<Exit>;
  exit: Exit | undefined;
  readonly #process: ChildProcessByStdio<Writable, Readable, Readable>;

  constructor(name: string, command: string, args: readonly string[], options: StartOptions = {}) {
    this.name = name;
    const [program, ...rest] = [...dieWithUs, command, ...args];
    this.#process = spawn(program!, rest, {
      stdio: ['pipe', 'pipe', 'pipe', ...(options.fds ?? [])],
      env: { ...process.env, ...options.env },
    }) as ChildProcessByStdio<Writable, Readable, Readable>;
    alive.add(this);
    keepLines(this.#process.stdout, this.stdout);
    keepLines(this.#process.stderr, this.stderr);
    this.#process.stdin.on('error', () => {}); // EPIPE: it ended; `exit` tells
    this.exited = new Promise((resolve) => {
      const end = (exit: Exit): void => {
        if (this.exit) return;
        alive.delete(this);
        this.exit = exit;
        resolve(exit);
      };
      this.#process.on('error', (error) => {
        this.stderr.push(String(error));
        end({ code: 127, signal: null });
      });
      this.#process.on('close', (code, signal) => end({ code, signal }));
      // Its own children may hold the pipes open for ever. Each look is a turn of the event loop, in which output is
      // read: a single timer could be over, on a machine that stood still, before any was.
      this.#process.on('exit', (code, signal) => {
        const look = (n: number): void => {
          if (n === 0) end({ code, signal });
          else if (!this.exit) setTimeout(look, DRAIN_MS, n - 1);
        };
        look(DRAIN_LOOKS);
      });
    });
  }

  get pid(): number {
    return this.#process.pid ?? -1;
  }

  write(text: string): void {
    this.#process.stdin.write(text);
  }

  /** Closes its stdin. */
  end(): void {
    this.#process.stdin.end();
  }

  /** Nobody reads its output any more. */
  closeStdout(): void {
    this.#process.stdout.destroy();
  }

  signal(name: NodeJS.Signals): void {
    if (this.exit === undefined && this.#process.pid !== undefined) this.#process.kill(name);
  }

  /** The last output, for messages. */
  tail(lines = 30): string {
    const part = (title: string, text: string[]): string =>
      text.length === 0 ? '' : `\n--- ${this.name}, ${title}:\n${text.slice(-lines).join('\n')}`;
    const end = this.exit ? `\n--- ${this.name} ended: ${this.exit.signal ?? this.exit.code}` : '';
    return part('stdout', this.stdout) + part('stderr', this.stderr) + end;
  }

  /** Waits for `probe` to return something; fails early when the process ends first. */
  async until<T>(what: string, ms: number, probe: () => T | undefined | false): Promise<T> {
    return until(
      `${this.name}: ${what}`,
      ms,
      () => {
        const value = probe();
        if ((value === undefined || value === false) && this.exit)
          throw new Error(`${this.name} ended before: ${what}${this.tail()}`);
        return value;
      },
      () => this.tail(),
    );
  }

  /** Waits for a line of stdout or stderr; `from` is an index into the lines, to skip earlier ones. */
  line(pattern: RegExp, ms: number, stream: 'stdout' | 'stderr' = 'stdout', from = 0): Promise<string> {
    return this.until(`a line like ${pattern}`, ms, () =>
      this[stream].slice(from).find((l) => pattern.test(l)),
    );
  }

  /** The JSON objects on stdout so far. */
  events(): NetEvent[] {
    return this.stdout.filter((l) => l.startsWith('{')).map((l) => JSON.parse(l) as NetEvent);
  }

  /** Waits for an event after the first `from` ones that `match` accepts. */
  event(what: string, ms: number, match: (event: NetEvent) => boolean, from = 0): Promise<NetEvent> {
    return this.until(what, ms, () => this.events().slice(from).find(match));
  }

  /** Asks it to end, and makes it end. */
  async stop(signal: NodeJS.Signals = 'SIGTERM', ms = 10_000): Promise<Exit> {
    this.signal(signal);
    const limit = Math.max(ms, PATIENCE_MS);
    const ended = await Promise.race([this.exited, sleep(limit)]);
    if (ended) return ended;
    this.signal('SIGKILL');
    const exit = await this.exited;
    throw new Error(
      `${this.name} did not end within ${limit} ms of ${signal}${this.tail()} (${exit.signal})`,
    );
  }

  /** SIGKILL, and wait. */
  async kill(): Promise<void> {
    this.signal('SIGKILL');
    await this.exited;
  }
}

function keepLines(stream: Readable, lines: string[]): void {
  let rest = '';
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    const parts = (rest + text).split('\n');
    rest = parts.pop() ?? '';
    lines.push(...parts.map((l) => l.replace(/\r$/, '')));
    if (lines.length > KEEP_LINES) lines.splice(0, lines.length - KEEP_LINES);
  });
  stream.on('end', () => {
    if (rest !== '') lines.push(rest);
    rest = '';
  });
}

/** Starts a program that is killed at the end of `scope`. */
export function start(
  scope: Scope,
  name: string,
  command: string,
  args: readonly string[],
  options: StartOptions = {},
): Child {
  const child = new Child(name, command, args, options);
  scope.defer(() => child.kill());
  scope.onFailure(() => child.tail());
  return child;
}

/** Runs a program to its end and returns its output; throws when it fails. */
export async function run(
  command: string,
  args: readonly string[],
  options: StartOptions & { ms?: number; input?: string } = {},
): Promise<string> {
  const child = new Child(command.split('/').pop() ?? command, command, args, options);
  if (options.input !== undefined) child.write(options.input);
  child.end();
  const exit = await Promise.race([child.exited, sleep(options.ms ?? 30_000)]);
  if (!exit) await child.kill();
  if (exit?.code !== 0) throw new Error(`${command} ${args.join(' ')} failed${child.tail()}`);
  return child.stdout.join('\n');
}

/** The command line of `vhost-pci …` from the build. */
export function vhostPciArgv(args: readonly string[]): string[] {
  if (!existsSync(cli)) throw new Error('dist/cli/main.js is not there; run npm run build:ts');
  return [process.execPath, cli, ...args];
}

/** Starts `vhost-pci …`. */
export function vhostPci(scope: Scope, args: readonly string[], options: StartOptions = {}): Child {
  const [program, ...rest] = vhostPciArgv(args);
  return start(scope, `vhost-pci ${args[0] ?? ''}`, program!, rest, options);
}

/** Open descriptors of a process. */
export function fdCount(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** Lines of /proc/PID/maps that `pattern` matches. */
export function mappings(pid: number, pattern: RegExp): string[] {
  return readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .filter((line) => pattern.test(line));
}

/** Resident memory in KiB. */
export function residentKiB(pid: number): number {
  const line = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(line?.[1] ?? 0);
}

/** True when the program is on PATH. */
export function onPath(program: string): boolean {
  const folders = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin'];
  return folders.some((folder) => folder !== '' && existsSync(`${folder}/${program}`));
}
