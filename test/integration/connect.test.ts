/** `vhost-pci net A --connect B` as processes: two devices, two peers, one of which is killed and stopped. */
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Child, checkout, fdCount, start, vhostPci } from '../support/process.js';
import { Rig } from '../support/rig.js';
import { Scope, until } from '../support/scope.js';

const MIB = 8;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

/** A device with its socket, and the peer that goes with it. */
class Half {
  readonly rig = new Rig(scope);
  readonly memory = join(scope.folder(), 'memory');
  readonly name = `vfio-user:${this.rig.vfioUser}`;

  device(): Promise<Child> {
    return this.rig.device({ window: { file: this.memory, mib: MIB } });
  }

  peer(): Child {
    const program = join(checkout, 'test/support/net-peer.mjs');
    const args = [program, this.rig.vhostUser, this.memory, String(MIB << 20)];
    return start(scope, 'peer', process.execPath, args);
  }
}

/** Waits until the peer has intact frames of the other, after the first `from` of its events. */
async function served(peer: Child): Promise<void> {
  const from = peer.events().length;
  const event = await peer.event('frames of the other', 15_000, (e) => e.event === 'echoed', from);
  // Numbers start anew with each connection of the other, and what found no room is lost.
  expect(event).toMatchObject({ altered: 0, foreign: 0 });
}

describe('vhost-pci net with --connect', () => {
  it('joins the peers of two devices, and goes on for one when the other is killed or stands still', async () => {
    const [left, right] = [new Half(), new Half()];
    await left.device();
    await right.device();
    const args = ['net', left.name, '--connect', right.name, '--interrupt', '--json', '--stats', '1'];
    const net = vhostPci(scope, args);
    const on = (half: Half, from = 0): Promise<unknown> =>
      net.event(
        `the peer of ${half.name}`,
        15_000,
        (e) => e.event === 'connection' && e.state === 'on' && e.device === half.name,
        from,
      );
    const one = left.peer();
    let two = right.peer();
    await Promise.all([on(left), on(right)]);
    await Promise.all([served(one), served(two)]);
    const fds = fdCount(net.pid);

    for (let round = 1; round <= 3; round++) {
      const at = net.events().length;
      await two.kill();
      await net.event(
        'its end',
        15_000,
        (e) => e.event === 'connection' && e.state === 'off' && e.device === right.name,
        at,
      );
      two = right.peer();
      await on(right, at);
      await Promise.all([served(one), served(two)]);
    }
    await until('nothing is left of them', 5000, () => fdCount(net.pid) <= fds);

    // Its ring fills up; what it does not take is dropped, and the other's queue does not stand still.
    two.signal('SIGSTOP');
    const sent = (): number | undefined => {
      const stats = net.events().findLast((e) => e.event === 'stats' && e.device === left.name);
      return (stats?.queues as { receive: { packets: number } }[] | undefined)?.[0]?.receive.packets;
    };
    const before = await until('statistics', 10_000, sent);
    await until('the other sends on', 15_000, () => sent()! > before + 5000);
    two.signal('SIGCONT');
    await Promise.all([served(one), served(two)]);

    expect(net.events().filter((e) => e.event === 'error')).toEqual([]);
    expect((await net.stop('SIGTERM')).code).toBe(0);
    const last = (half: Half) =>
      net.events().findLast((e) => e.event === 'stats' && e.device === half.name) as unknown as {
        connected: boolean;
        undelivered: { packets: number };
        queues: { receive: { packets: number }; send: { packets: number; drops: number } }[];
      };
    // What the one transmitted was put into the other's ring, dropped there, or came while there was no other.
    const [a, b] = [last(left), last(right)];
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      const { packets, drops } = to.queues[0]!.send;
      expect(packets + drops + from.undelivered.packets).toBe(from.queues[0]!.receive.packets);
    }
    expect([a.connected, b.connected, a.undelivered.packets > 0]).toEqual([false, false, true]);
  }, 240_000);
});
