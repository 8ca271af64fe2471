/**
 * Network namespaces for tests: one per test, with a TAP that is made in it. The TAP stands for the receiving
 * side's network; commands run inside. Needs root and iproute2.
 */
import { type Child, onPath, run, start } from './process.js';
import type { Availability, Scope } from './scope.js';

/** The same in every namespace: a guest that migrates from one to another keeps what it knows. */
const TAP_MAC = '02:00:00:00:00:01';

let counter = 0;

export function netnsAvailable(): Availability<true> {
  if (process.getuid?.() !== 0) return { missing: 'network namespaces need root' };
  if (!onPath('ip')) return { missing: 'ip (package iproute2) is not installed' };
  return { ok: true };
}

export class Netns {
  readonly name: string;
  readonly #scope: Scope;

  private constructor(scope: Scope, name: string) {
    this.#scope = scope;
    this.name = name;
  }

  static async create(scope: Scope): Promise<Netns> {
    const name = `vp-${process.pid}-${counter++}`;
    await run('ip', ['netns', 'add', name]);
    scope.defer(async () => {
      // Children of what was started inside, such as those of a server, outlive it.
      for (const pid of (await run('ip', ['netns', 'pids', name])).split('\n').map(Number)) {
        try {
          if (pid > 0) process.kill(pid, 'SIGKILL');
        } catch {
          // It has ended meanwhile.
        }
      }
      await run('ip', ['netns', 'del', name]);
    });
    const ns = new Netns(scope, name);
    await ns.run(['ip', 'link', 'set', 'lo', 'up']);
    return ns;
  }

  /** The command line that runs `command` inside. */
  argv(command: readonly string[]): string[] {
    return ['ip', 'netns', 'exec', this.name, ...command];
  }

  /** Runs to the end; returns stdout; throws when it fails. */
  run(command: readonly string[], ms = 30_000): Promise<string> {
    const [program, ...args] = this.argv(command);
    return run(program!, args, { ms });
  }

  /** Starts in the background, until the end of the scope. */
  start(name: string, command: readonly string[]): Child {
    const [program, ...args] = this.argv(command);
    return start(this.#scope, name, program!, args);
  }

  /**
   * A TAP with an address that stays when nobody has it open, such as `10.0.0.1/24`. `queues` above 1 makes it
   * multi-queue.
   */
  async tap(name: string, address: string, queues = 1): Promise<void> {
    await this.run([
      'ip',
      'tuntap',
      'add',
      'dev',
      name,
      'mode',
      'tap',
      'vnet_hdr',
      ...(queues > 1 ? ['multi_queue'] : []),
    ]);
    await this.run(['ip', 'link', 'set', name, 'address', TAP_MAC]);
    await this.run(['ip', 'addr', 'add', address, 'dev', name]);
    await this.run(['ip', 'link', 'set', name, 'up']);
  }
}
