/**
 * Child program of the benchmarks: an in-tree peer (NetPeer) that does one thing, and is asked for its rate through stdin.
 *
 *     peer-program.js '{"socketPath": …, "task": "bounce", "mode": "interrupt", "cpu": 1}'
 *
 * Tasks: `bounce` sends one packet, and from then on sends back what comes; `send` sends and takes as fast as it can, `take`
 * only takes, `idle` does nothing; `tap` joins the peer to the TAP interface `tap`. Commands, one a line: `window MS` answers
 * with the packets that came and went in that time, `log-turns N MS DRIVER DELAY` with the rates while dirty logging is on and
 * while it is off, in N turns of each; the end of stdin ends it.
 */
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { native, type PortQueue } from '#build/sys/native.js';
import type { Tap } from '#build/sys/tap.js';
import { bits } from '#build/util/flags.js';
import { FEATURE } from '#build/virtio/features.js';
import { NET_FEATURE } from '#build/virtio-net/features.js';
import { NetPeer } from '#build/virtio-net/peer.js';
import { openTap } from './open-tap.js';
import { type ProcessTimes, runDelays, threadTimes } from './threads.js';

export interface PeerTask {
  readonly socketPath: string;
  readonly task: 'bounce' | 'send' | 'take' | 'idle' | 'tap';
  readonly mode: 'poll' | 'interrupt' | 'adaptive';
  readonly cpu?: number;
  readonly frame?: number;
  readonly tap?: string;
}

/** Packets a second in a turn with dirty logging and in the one beside it without, the middle one of such pairs by its ratio. */
export interface LogTurns {
  readonly on: number;
  readonly off: number;
  /** How many pairs count: a polling thread of the peer or of the driver waited too long for its CPU in the others. */
  readonly turns: number;
}

const FEATURES = bits(
  FEATURE.VERSION_1,
  FEATURE.EVENT_IDX,
  FEATURE.INDIRECT_DESC,
  NET_FEATURE.MRG_RXBUF,
  NET_FEATURE.CSUM,
  NET_FEATURE.GUEST_CSUM,
  NET_FEATURE.HOST_TSO4,
  NET_FEATURE.HOST_TSO6,
  NET_FEATURE.GUEST_TSO4,
  NET_FEATURE.GUEST_TSO6,
);
const MEMORY_BYTES = 64 << 20;
const LOG_BYTES = 1 << 20;
/** After a switch of dirty logging, which takes the peer, the device process and the driver some messages. */
const SETTLE_MS = 3;
const MAC = Buffer.from([2, 0, 0, 0, 0, 1]);

const options = JSON.parse(process.argv[2] ?? '') as PeerTask;
const { task, mode, cpu } = options;
await using peer = await NetPeer.connect({
  socketPath: options.socketPath,
  memoryBytes: MEMORY_BYTES,
  ringSize: task === 'tap' ? 1024 : 256,
  features: FEATURES,
});
await peer.start();
const queue = peer.queues[0]!;
const worker = new native.Worker({ mode, name: 'peer', ...(cpu !== undefined && { cpu }) });
const others: PortQueue[] = [];
const own = <Q extends PortQueue>(made: Q): Q => {
  others.push(made);
  return made;
};
const source = (count?: number): PortQueue =>
  own(
    new native.SourceQueue({
      bytes: options.frame ?? 64,
      destination: Buffer.alloc(6, 0xff),
      source: MAC,
      ...(count !== undefined && { count }),
    }),
  );

let tap: Tap | undefined;
if (task === 'bounce') {
  await worker.connect(queue, queue, 'hold');
  await worker.connect(source(1), queue, 'hold');
} else if (task === 'send') {
  await worker.connect(queue, own(new native.SinkQueue()), 'hold');
  await worker.connect(source(), queue, 'hold');
} else if (task === 'take') {
  await worker.connect(queue, own(new native.SinkQueue()), 'hold');
} else if (task === 'tap') {
  tap = openTap(options.tap ?? 'tap0');
  const tapQueue = own(new native.TapQueue({ fd: tap.queueFd(0) }));
  await worker.connect(queue, tapQueue, 'hold');
  await worker.connect(tapQueue, queue, 'hold');
}
console.log(JSON.stringify({ event: 'ready', features: `0x${peer.features.toString(16)}` }));

const logFd = native.memfdCreate('log', LOG_BYTES);
const log = (on: boolean): Promise<void> =>
  on ? peer.frontEnd.startLogging({ fd: logFd, size: LOG_BYTES, offset: 0 }) : peer.frontEnd.stopLogging();

async function window(ms: number): Promise<{ ms: number; received: number; sent: number }> {
  const before = queue.stats();
  const begin = performance.now();
  await sleep(ms);
  const after = queue.stats();
  return {
    ms: performance.now() - begin,
    received: after.receive.packets - before.receive.packets,
    sent: after.send.packets - before.send.packets,
  };
}

/** The part of the time between two looks that the polling thread of each process waited for its CPU; the longest one. */
function delayOf(pids: readonly number[], before: readonly ProcessTimes[]): number {
  return Math.max(...pids.map((pid, i) => runDelays(before[i]!, threadTimes(pid))[0] ?? 1));
}

async function logInTurns(turns: number, ms: number, driver: number, mostDelay: number): Promise<LogTurns> {
  const pids = [process.pid, driver];
  const rate = async (on: boolean): Promise<number> => {
    await log(on);
    await sleep(SETTLE_MS);
    const before = pids.map(threadTimes);
    const took = await window(ms);
    return delayOf(pids, before) > mostDelay ? Number.NaN : (took.received / took.ms) * 1000;
  };
  const neighbours: { on: number; off: number }[] = [];
  for (let i = 0; i < turns; i++) {
    // On, off, off, on, …: what only grows does not favour one of them.
    const first = await rate(i % 2 === 0);
    const second = await rate(i % 2 === 1);
    const pair = i % 2 === 0 ? { on: first, off: second } : { on: second, off: first };
    if (pair.on > 0 && pair.off > 0) neighbours.push(pair);
  }
  await log(false);
  // The machine changes its pace in the middle of a sample, too: such a pair of turns comes to lie at an end.
  neighbours.sort((x, y) => x.on / x.off - y.on / y.off);
  const { on, off } = neighbours[(neighbours.length - 1) >> 1] ?? { on: 0, off: 0 };
  return { on, off, turns: neighbours.length };
}

async function run(command: string, args: readonly number[]): Promise<object> {
  const [turns = 1, ms = 10, driver = process.pid, mostDelay = 1] = args;
  if (command === 'log-turns')
    return { event: 'logging', ...(await logInTurns(turns, ms, driver, mostDelay)) };
  return { event: 'window', ...(await window(args[0] ?? 100)) };
}

try {
  for await (const line of createInterface({ input: process.stdin })) {
    const [command = '', ...args] = line.split(' ');
    console.log(JSON.stringify(await run(command, args.map(Number))));
  }
} finally {
  await worker.stop();
  for (const other of others) other.close();
  tap?.[Symbol.dispose]();
}
