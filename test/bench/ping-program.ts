/**
 * Child program of the benchmarks: a front-end that wakes the driver with one packet at a time. It makes the link and leaves the
 * packets to native/test/pingpong.cc, which wakes a bare process in the same way.
 *
 *     ping-program.js '{"socketPath": …, "task": "ping", "cpu": 1}'
 *
 * A line of stdin is answered with the microseconds from a kick to the return of the packet, the median; the end of stdin ends it.
 */
import { type StdioOptions, spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { native } from '#build/sys/native.js';
import { bits } from '#build/util/flags.js';
import { FrontEnd } from '#build/vhost-user/front-end.js';
import { PROTOCOL_FEATURE, VHOST_FEATURE } from '#build/vhost-user/protocol.js';
import { FEATURE } from '#build/virtio/features.js';
import { pingpong } from './distance.js';

export interface PingTask {
  readonly socketPath: string;
  readonly task: 'ping';
  readonly cpu: number;
}

const SIZE = 256;
const MEMORY_BYTES = 64 << 10;
const FRAME_BYTES = 64;
const HEADER_BYTES = 12;
const GUEST_ADDRESS = 0x4000_0000n;
/** A page each: descriptors, available and used ring of either ring, and the packet. */
const at = (page: number): number => page * 4096;
const ring = (page: number) => ({
  size: SIZE,
  desc: GUEST_ADDRESS + BigInt(at(page)),
  driver: GUEST_ADDRESS + BigInt(at(page + 1)),
  device: GUEST_ADDRESS + BigInt(at(page + 2)),
});
const RECEIVE = 0;
const TRANSMIT = 3;
const PACKET = 6;

const { socketPath, cpu } = JSON.parse(process.argv[2] ?? '') as PingTask;
const memoryFd = native.memfdCreate('ping', MEMORY_BYTES);
const eventfds = Array.from({ length: 4 }, () => native.eventfd());
const [receiveKick, receiveCall, transmitKick, transmitCall] = eventfds as [number, number, number, number];

// VIRTIO 1.3, 2.7.5: descriptor 0 is the packet, and all that is ever made available is descriptor 0.
const descriptor = Buffer.alloc(16);
descriptor.writeBigUInt64LE(GUEST_ADDRESS + BigInt(at(PACKET)), 0);
descriptor.writeUInt32LE(HEADER_BYTES + FRAME_BYTES, 8);
writeSync(memoryFd, descriptor, 0, descriptor.length, at(TRANSMIT));
// 2.7.6: VIRTQ_AVAIL_F_NO_INTERRUPT, since who waits looks at the used ring.
writeSync(memoryFd, Buffer.of(1, 0), 0, 2, at(TRANSMIT + 1));

await using frontEnd = FrontEnd.connect(socketPath);
const wanted = bits(FEATURE.VERSION_1, VHOST_FEATURE.PROTOCOL_FEATURES);
await frontEnd.negotiate(wanted, bits(PROTOCOL_FEATURE.REPLY_ACK));
await frontEnd.start(
  [{ gpa: GUEST_ADDRESS, userAddress: 0x7f00_0000_0000n, size: MEMORY_BYTES, fileOffset: 0, fd: memoryFd }],
  [
    { ...ring(RECEIVE), kickFd: receiveKick, callFd: receiveCall },
    { ...ring(TRANSMIT), kickFd: transmitKick, callFd: transmitCall },
  ],
);
console.log(JSON.stringify({ event: 'ready' }));

// VIRTIO 1.3, 2.7.6 and 2.7.8: the indices are the second 16 bits of either ring.
const command = `ring ${MEMORY_BYTES} ${at(TRANSMIT + 1) + 2} ${at(TRANSMIT + 2) + 2}\n`;
const stdio: StdioOptions = ['pipe', 'pipe', 'inherit', memoryFd, transmitKick];
const pinger = spawn(await pingpong(), [String(cpu), String(cpu)], { stdio });
const answers = createInterface({ input: pinger.stdout! })[Symbol.asyncIterator]();

for await (const _ of createInterface({ input: process.stdin })) {
  pinger.stdin!.write(command);
  const answer = await answers.next();
  if (answer.done) throw new Error('pingpong has ended');
  if (!(Number(answer.value) > 0)) throw new Error('the driver did not take or return a packet within 2 s');
  console.log(JSON.stringify({ event: 'ping', microseconds: Number(answer.value) }));
}
pinger.stdin!.end();
for (const fd of [memoryFd, ...eventfds]) closeSync(fd);
