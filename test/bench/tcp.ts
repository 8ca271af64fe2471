/**
 * TCP between two network namespaces: through two TAP interfaces that are joined by the product (the peer's end is the in-tree
 * peer), and through a veth pair, in turns. Needs root and iproute2; iperf3 is fetched when it is not on PATH.
 */
import { Netns, netnsAvailable } from '../support/netns.js';
import { fetchSet, programIn } from '../support/packages.js';
import { onPath, run } from '../support/process.js';
import { type Availability, Scope } from '../support/scope.js';
import type { Distance } from './distance.js';
import { InTree } from './in-tree.js';
import { type Comparison, compare, type Sample, sample } from './samples.js';

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

async function serve(server: Netns, iperf: readonly string[]): Promise<void> {
  const child = server.start('iperf3', [...iperf, '-s', '--forceflush']);
  await child.line(/listening/, 10_000);
}

export async function tcp(
  iperf: readonly string[],
  distance: Distance,
  seconds: number,
  pairs: number,
): Promise<Comparison> {
  await using scope = new Scope();
  const [a, b, c, d] = [
    await Netns.create(scope),
    await Netns.create(scope),
    await Netns.create(scope),
    await Netns.create(scope),
  ];
  // The product's path: TAP in a, driver, device, peer, TAP in b.
  await InTree.start(scope, {
    net: ['--tap', 'tap0', '--adaptive'],
    netIn: (command) => a.argv(command),
    peer: { task: 'tap', tap: 'tap0', mode: 'adaptive' },
    peerIn: (command) => b.argv(command),
  });
  for (const [netns, address] of [
    [a, SERVER],
    [b, CLIENT],
  ] as const)
    await netns.run(['ip', 'addr', 'add', `${address}/24`, 'dev', 'tap0']);
  await run('ip', [
    'link',
    'add',
    'veth0',
    'netns',
    c.name,
    'type',
    'veth',
    'peer',
    'name',
    'veth0',
    'netns',
    d.name,
  ]);
  for (const [netns, address] of [
    [c, SERVER],
    [d, CLIENT],
  ] as const) {
    await netns.run(['ip', 'addr', 'add', `${address}/24`, 'dev', 'veth0']);
    await netns.run(['ip', 'link', 'set', 'veth0', 'up']);
  }
  await serve(a, iperf);
  await serve(c, iperf);
  const take = (client: Netns) => (): Promise<Sample> =>
    sample(distance, (window) => window([], () => transfer(client, iperf, seconds)));
  return await compare(pairs, take(b), take(d));
}
