/** A peer of this tree against device process and driver, each a process of its own that can be paused. */
import { existsSync } from 'node:fs';
import { type Child, start, vhostPciArgv } from '../support/process.js';
import type { Scope } from '../support/scope.js';
import type { LogTurns, PeerTask } from './peer-program.js';
import type { PingTask } from './ping-program.js';
import { program, startDevice } from './systems.js';

export interface Window {
  readonly ms: number;
  readonly received: number;
  readonly sent: number;
}

type InNetns = (command: readonly string[]) => string[];
const here: InNetns = (command) => [...command];

export interface InTreeOptions {
  /** Options of `vhost-pci net`, or another program and its arguments behind the device's name. */
  readonly net: readonly string[] | { readonly program: string; readonly args: readonly string[] };
  /** What peer-program.ts or, to wake the driver with single packets, ping-program.ts is to do. */
  readonly peer: Omit<PeerTask, 'socketPath'> | Omit<PingTask, 'socketPath'>;
  /** Wrap the command lines so that they run in a network namespace. */
  readonly netIn?: InNetns;
  readonly peerIn?: InNetns;
}

export class InTree {
  readonly device: Child;
  readonly driver: Child;
  readonly peer: Child;

  private constructor(device: Child, driver: Child, peer: Child) {
    this.device = device;
    this.driver = driver;
    this.peer = peer;
  }

  /** Resolves when the link is up and the peer does what it is to do. */
  static async start(scope: Scope, options: InTreeOptions): Promise<InTree> {
    const { child: device, path, vfioUser } = await startDevice(scope);
    const peerProgram = program(options.peer.task === 'ping' ? 'ping-program' : 'peer-program');
    const launch = (name: string, argv: readonly string[]): Child =>
      start(scope, name, argv[0]!, argv.slice(1));
    const peer = launch(
      'in-tree peer',
      (options.peerIn ?? here)([
        process.execPath,
        peerProgram,
        JSON.stringify({ ...options.peer, socketPath: path }),
      ]),
    );
    await peer.event('ready', 15_000, (e) => e.event === 'ready');
    await device.until('its vfio-user socket', 15_000, () => existsSync(vfioUser));
    const name = `vfio-user:${vfioUser}`;
    const argv =
      'program' in options.net
        ? [process.execPath, program(options.net.program), name, ...options.net.args]
        : vhostPciArgv(['net', name, ...options.net, '--json', '--log-level', 'warn']);
    const driver = launch('vhost-pci net', (options.netIn ?? here)(argv));
    await driver.event('connection on', 15_000, (e) => e.event === 'connection' && e.state === 'on');
    return new InTree(device, driver, peer);
  }

  /** Packets of the peer over a time. */
  async window(ms: number): Promise<Window> {
    return (await this.command(`window ${ms}`)) as unknown as Window;
  }

  /** What the peer received while dirty logging was on and while it was off, `turns` times `ms` each. */
  async logInTurns(turns: number, ms: number, mostDelay: number): Promise<LogTurns> {
    return (await this.command(`log-turns ${turns} ${ms} ${this.driver.pid} ${mostDelay}`)) as LogTurns;
  }

  /** Gives the peer a command and waits for its answer. */
  async command(line: string): Promise<object> {
    const from = this.peer.events().length;
    this.peer.write(`${line}\n`);
    return this.peer.event(`the answer to ${line}`, 20_000, () => true, from);
  }

  pause(): void {
    for (const child of [this.driver, this.peer]) child.signal('SIGSTOP');
  }

  resume(): void {
    for (const child of [this.driver, this.peer]) child.signal('SIGCONT');
  }
}
