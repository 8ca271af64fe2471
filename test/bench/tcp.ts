/**
 * TCP between two network namespaces: through two TAP interfaces that are joined by the product (the peer's end is the in-tree
 * peer), and through a veth pair, in turns. Needs root, iproute2 and iperf3.
 */
import { Netns, netnsAvailable } from '../support/netns.js';
import { onPath, run } from '../support/process.js';
import { type Availability, Scope } from '../support/scope.js';
import type { Distance } from './distance.js';
import { InTree } from './in-tree.js';
import { type Comparison, compare, type Sample, sample } from './samples.js';

export function tcpAvailable(): Availability<true> {
  const netns = netnsAvailable();
  if ('missing' in netns) return netns;
  if (!onPath('iperf3')) return { missing: 'iperf3 is not installed' };
  return { ok: true };
}

const SERVER = '10.99.0.1';
const CLIENT = '10.99.0.2';

/** Bits a second from one namespace to the other. */
async function transfer(client: Netns, seconds: number): Promise<number> {
  const text = await client.run(['iperf3', '-c', SERVER, '-t', String(seconds), '-J'], (seconds + 20) * 1000);
  const result = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
  return result.end.sum_received.bits_per_second;
}

async function serve(server: Netns): Promise<void> {
  const child = server.start('iperf3', ['iperf3', '-s', '--forceflush']);
  await child.line(/listening/, 10_000);
}

export async function tcp(distance: Distance, seconds: number, pairs: number): Promise<Comparison> {
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
  await serve(a);
  await serve(c);
  const take = (client: Netns) => (): Promise<Sample> =>
    sample(distance, (window) => window([], () => transfer(client, seconds)));
  return await compare(pairs, take(b), take(d));
}
