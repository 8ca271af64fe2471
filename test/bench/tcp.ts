/**
 * TCP between two network namespaces, one stream, by three ways: through two TAP interfaces that are joined by the product (the
 * peer's end is the in-tree peer), through two that one thread joins by reads and writes alone (tap-loop-program.ts), and through
 * a veth pair. Needs root and iproute2; iperf3 is fetched when it is not on PATH.
 */
import { Netns, netnsAvailable } from '../support/netns.js';
import { fetchSet, programIn } from '../support/packages.js';
import { onPath, run } from '../support/process.js';
import { type Availability, Scope } from '../support/scope.js';
import type { Distance } from './distance.js';
import { InTree } from './in-tree.js';
import { type Comparison, compare, type Sample, sample } from './samples.js';
import { program } from './systems.js';

/** The command line of iperf3, once everything is there. */
export function iperf3(): Availability<readonly string[]> {
  const netns = netnsAvailable();
  if ('missing' in netns) return netns;
  if (onPath('iperf3')) return { ok: ['iperf3'] };
  const set = fetchSet('iperf3');
  if ('missing' in set) return set;
  const { command, prefix } = programIn(set.ok, 'usr/bin/iperf3');
  return { ok: [command, ...prefix] };
}

const SERVER = '10.99.0.1';
const CLIENT = '10.99.0.2';

/** Bits a second from one namespace to the other. */
async function transfer(client: Netns, iperf: readonly string[], seconds: number): Promise<number> {
  const text = await client.run([...iperf, '-c', SERVER, '-t', String(seconds), '-J'], (seconds + 20) * 1000);
  const result = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
  return result.end.sum_received.bits_per_second;
}

/** Two namespaces that `join` joins, a server in one of them. Returns the other one. */
async function between(
  scope: Scope,
  iperf: readonly string[],
  join: (server: Netns, client: Netns) => Promise<readonly [string, string]>,
): Promise<Netns> {
  const [server, client] = [await Netns.create(scope), await Netns.create(scope)];
  const devices = await join(server, client);
  for (const [netns, address, device] of [
    [server, SERVER, devices[0]],
    [client, CLIENT, devices[1]],
  ] as const) {
    await netns.run(['ip', 'addr', 'add', `${address}/24`, 'dev', device]);
    await netns.run(['ip', 'link', 'set', device, 'up']);
  }
  const child = server.start('iperf3', [...iperf, '-s', '--forceflush']);
  await child.line(/listening/, 10_000);
  return client;
}

const PATHS = {
  /** TAP, driver, device, peer, TAP. */
  product: (scope: Scope, iperf: readonly string[]) =>
    between(scope, iperf, async (server, client) => {
      await InTree.start(scope, {
        net: ['--tap', 'tap0', '--adaptive'],
        netIn: (command) => server.argv(command),
        peer: { task: 'tap', tap: 'tap0', mode: 'adaptive' },
        peerIn: (command) => client.argv(command),
      });
      return ['tap0', 'tap0'];
    }),
  loop: (scope: Scope, iperf: readonly string[]) =>
    between(scope, iperf, async (server, client) => {
      const command = [process.execPath, program('tap-loop-program'), 'tap0', 'tap1'];
      const child = server.start('tap loop', command);
      await child.event('ready', 15_000, (e) => e.event === 'ready');
      await server.run(['ip', 'link', 'set', 'tap1', 'netns', client.name]);
      return ['tap0', 'tap1'];
    }),
  veth: (scope: Scope, iperf: readonly string[]) =>
    between(scope, iperf, async (server, client) => {
      const ends = [server, client].map(({ name }) => ['name', 'veth0', 'netns', name]);
      await run('ip', ['link', 'add', ...ends[0]!, 'type', 'veth', 'peer', ...ends[1]!]);
      return ['veth0', 'veth0'];
    }),
} as const;

/** Bits a second by `path` against those through a veth pair, in turns. */
export async function tcp(
  path: 'product' | 'loop',
  iperf: readonly string[],
  distance: Distance,
  seconds: number,
  pairs: number,
): Promise<Comparison> {
  await using scope = new Scope();
  const [client, reference] = [await PATHS[path](scope, iperf), await PATHS.veth(scope, iperf)];
  const take = (from: Netns) => (): Promise<Sample> =>
    sample(distance, (window) => window([], () => transfer(from, iperf, seconds)));
  return await compare(pairs, take(client), take(reference));
}
