/**
 * Child program of the benchmarks: many peers on one worker. Each peer is a pair of rings in memory of its own; all their
 * drivers are on one worker, all their device sides on another one that copies every packet into a sink. Prints the packets a
 * second of all peers together, and how long a worker waited for its CPU. Usage: peers-program.js PEERS FRAME MILLISECONDS
 */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { native, type SinkQueue } from '#build/sys/native.js';
import { bits } from '#build/util/flags.js';
import { FEATURE } from '#build/virtio/features.js';
import { NET_FEATURE } from '#build/virtio-net/features.js';
import { BACK_CPU, FRONT_CPU } from './testpmd.js';
import { runDelays, threadTimes } from './threads.js';

const [peers = 1, bytes = 64, ms = 200] = process.argv.slice(2).map(Number);
const features = bits(FEATURE.VERSION_1, FEATURE.EVENT_IDX, FEATURE.INDIRECT_DESC, NET_FEATURE.MRG_RXBUF);
const SIZE = 256;
const BUFFER_BYTES = 2048;
const ADDRESS = 0x4000_0000n;
const total = native.DriverQueue.bytes(SIZE, BUFFER_BYTES);

const front = new native.Worker({ mode: 'poll', cpu: FRONT_CPU, name: 'front-end' });
const back = new native.Worker({ mode: 'poll', cpu: BACK_CPU, name: 'back-end' });
const sinks: SinkQueue[] = [];
for (let i = 0; i < peers; i++) {
  const fd = native.memfdCreate('peer', total);
  // Two mappings of one file, as driver and device have them in two processes.
  const mine = new native.Mapping(fd, 0, total, true);
  const theirs = new native.Mapping(fd, 0, total, true);
  closeSync(fd);
  const driver = new native.DriverQueue({
    mapping: mine,
    offset: 0,
    address: ADDRESS,
    size: SIZE,
    bufferBytes: BUFFER_BYTES,
    features,
  });
  const table = new native.RegionTable([{ address: ADDRESS, size: total, mapping: theirs, offset: 0 }]);
  const ring = { nextAvail: 0, enabled: true };
  const peer = new native.PeerQueue({
    table,
    features,
    transmit: { ...driver.transmitq, ...ring },
    receive: { ...driver.receiveq, ...ring },
  });
  const sink = new native.SinkQueue();
  sinks.push(sink);
  const source = new native.SourceQueue({
    bytes,
    destination: Buffer.alloc(6, 0xff),
    source: Buffer.alloc(6, 2),
  });
  await back.connect(peer, sink, 'hold');
  await front.connect(source, driver, 'hold');
}
const taken = (): number => sinks.reduce((sum, sink) => sum + sink.stats().send.packets, 0);
await sleep(50);
const times = threadTimes(process.pid);
const begin = performance.now();
const before = taken();
await sleep(ms);
const after = taken();
const rate = ((after - before) / (performance.now() - begin)) * 1000;
// The two workers are the busiest threads.
const delay = Math.max(...runDelays(times, threadTimes(process.pid)).slice(0, 2));
await front.stop();
await back.stop();
console.log(JSON.stringify({ peers, bytes, rate, delay }));
process.exit(0);
