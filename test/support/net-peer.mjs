/**
 * A peer as a process, for tests that kill it: node test/support/net-peer.mjs SOCKET MEMORY-FILE MEMORY-BYTES [OPTIONS]. With
 * - for the file, the memory is its own. It
 * connects, sends numbered frames and checks those that come back, and starts over whenever it is disconnected, as a QEMU
 * with reconnect does. Tells what it does as JSON lines on stdout. Plain Node on the built package.
 *
 * --hang-at N   stops for good after N steps of the handshake
 * --count N     frames of each connection, after which {"event":"echoed"} follows; without it, until the end
 * --rounds N    ends each connection itself after its frames, N times, and then ends
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { native } from '../../dist/sys/native.js';
import { NetPeer } from '../../dist/virtio-net/peer.js';

const { values, positionals } = parseArgs({
  options: { 'hang-at': { type: 'string' }, count: { type: 'string' }, rounds: { type: 'string' } },
  allowPositionals: true,
});
const [socketPath, memoryFile, memoryBytes] = positionals;
const hangAt = values['hang-at'] === undefined ? Number.POSITIVE_INFINITY : Number(values['hang-at']);
const count = values.count === undefined ? undefined : Number(values.count);
const rounds = values.rounds === undefined ? Number.POSITIVE_INFINITY : Number(values.rounds);

const tell = (event, more = {}) => process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);
const MAC = Buffer.from([0x02, 0, 0, 0, 0, 0xfe]);

let steps = 0;
async function step(name) {
  tell('step', { step: ++steps, name });
  if (steps >= hangAt) await new Promise(() => setInterval(() => {}, 1000));
}

/** Makes each request of the handshake a step. */
function counted(frontEnd) {
  for (const name of ['sendFeatures', 'setMemory', 'startRing', 'setStatus', 'setEnabled']) {
    const run = frontEnd[name].bind(frontEnd);
    frontEnd[name] = async (...args) => {
      await run(...args);
      await step(name);
    };
  }
}

async function connect() {
  for (;;) {
    try {
      return await NetPeer.connect({
        socketPath,
        ...(memoryFile !== '-' && { memoryFile }),
        memoryBytes: Number(memoryBytes),
        ringSize: 64,
      });
    } catch {
      await sleep(30);
    }
  }
}

async function connection() {
  const peer = await connect();
  steps = 0;
  const worker = new native.Worker({ mode: 'interrupt' });
  const frames = { bytes: 200, destination: MAC, source: MAC, stream: 0, ...(count && { count }) };
  const source = new native.SourceQueue(frames);
  const sink = new native.SinkQueue({ stream: 0 });
  let over = false;
  const disconnected = peer.disconnected.then(() => {
    over = true;
  });
  try {
    await step('negotiate');
    counted(peer.frontEnd);
    await peer.start();
    tell('started');
    await worker.connect(peer.queues[0], sink, 'hold');
    await worker.connect(source, peer.queues[0], 'hold');
    for (let last = 0; !over; ) {
      await Promise.race([disconnected, sleep(5)]);
      const results = sink.verified();
      if (results.packets === last) continue;
      last = results.packets;
      if (count === undefined || last >= count) tell('echoed', results);
      if (last >= count && rounds !== Number.POSITIVE_INFINITY) {
        await peer.stop();
        break;
      }
      if (count === undefined) await Promise.race([disconnected, sleep(50)]);
    }
  } catch (error) {
    tell('error', { message: error.message });
  }
  await worker.detach(peer.queues[0]);
  await worker.stop();
  source.close();
  sink.close();
  await peer[Symbol.asyncDispose]();
  tell('disconnected');
}

for (let round = 0; round < rounds; round++) await connection();
tell('end');
