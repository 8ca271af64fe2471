/**
 * Mutated conversations against a server, and mutated replies against a client, from a fixed seed. FUZZ_SECONDS lengthens
 * it, FUZZ_SEED changes it. The process must live, serve the next one, and leave nothing open.
 */
import { closeSync } from 'node:fs';
import { expect, it } from 'vitest';
import { DeviceInfo } from '../../../src/pci/vfio-abi.js';
import { native } from '../../../src/sys/native.js';
import { Client } from '../../../src/vfio-user/client.js';
import { COMMANDS, encodeMessage, HEADER_FLAG, Version } from '../../../src/vfio-user/protocol.js';
import { Server } from '../../../src/vfio-user/server.js';
import { encodeCapabilities } from '../../../src/vfio-user/version.js';
import { PATIENCE_MS } from '../../support/scope.js';
import { openFds, RawClient, TestDevice, until } from './rig.js';

const seconds = Number(process.env.FUZZ_SECONDS ?? 2);
const seed = Number(process.env.FUZZ_SEED ?? 20161024);

/** xorshift32: the same numbers everywhere. */
function random(from: number): (below: number) => number {
  let x = from | 1;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % below;
  };
}

const next = random(seed);
const rows = Object.values(COMMANDS);
const interesting = [
  0, 1, 2, 3, 4, 7, 8, 9, 16, 24, 32, 0x21, 0x24, 64, 0xfff, 0x1000, 0x10000, 0x7fffffff, 0xffffffff,
];

function payloadOf(bytes: number): Buffer {
  const payload = Buffer.alloc(bytes);
  // Words that mean something reach further than noise.
  for (let at = 0; at + 4 <= bytes; at += 4)
    payload.writeUInt32LE(next(8) === 0 ? next(0xffffffff) : interesting[next(interesting.length)]!, at);
  return payload;
}

function mutate(message: Buffer): Buffer {
  const kind = next(10);
  if (kind > 2) return message;
  const out = Buffer.from(message);
  if (kind === 0) out[next(out.length)] = next(256);
  else if (kind === 1) return out.subarray(0, next(out.length) + 1);
  else out.writeUInt32LE(interesting[next(interesting.length)]!, 4);
  return out;
}

it(`a server outlives mutated conversations (seed ${seed})`, {
  timeout: seconds * 1000 + 120_000,
}, async () => {
  const before = openFds();
  const memfd = native.memfdCreate('fuzz', 0x10000);
  const event = native.eventfd();
  let conversations = 0;
  let survived = 0;
  {
    using device = new TestDevice();
    await using server = new Server(device);
    const idle = openFds();
    const both = (): boolean => survived > 0 && conversations > survived;
    for (const end = Date.now() + seconds * 500; Date.now() < end || !both(); conversations++) {
      {
        using raw = RawClient.of(server);
        if (next(20) > 0) await raw.version();
        try {
          for (let n = next(12); n > 0; n--) {
            const row = rows[next(rows.length)]!;
            const size = (row.request?.size ?? 0) + (next(3) === 0 ? next(Math.min(row.extra, 80) + 1) : 0);
            const flags = next(10) === 0 ? HEADER_FLAG.NO_REPLY : 0;
            const message = encodeMessage({ id: n, command: row.command, flags }, payloadOf(size));
            const fds =
              next(3) === 0 ? new Array(1 + next(Math.max(1, row.fds))).fill(next(2) ? memfd : event) : [];
            raw.bytes(mutate(message), fds);
          }
        } catch (error) {
          // It may close before all is said.
          expect((error as { code: string }).code).toMatch(/EPIPE|ECONNRESET/);
        }
        // Let it read some of it, sometimes all.
        for (let turns = next(30); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
        if (server.session) survived++;
      }
      await until(() => server.session === undefined);
      expect(openFds()).toBe(idle);
      device.log.length = 0;
    }
    const [ours, theirs] = native.unixPair();
    server.serve(theirs);
    await using client = await Client.fromFd(ours, 'after');
    expect((await client.read(7, 0, 2)).toString('hex')).toBe('f41a');
  }
  closeSync(memfd);
  closeSync(event);
  await until(() => openFds() === before);
  // Both kinds of end have to be met, or the mutations are too wild or too tame.
  expect(survived).toBeGreaterThan(0);
  expect(conversations - survived).toBeGreaterThan(0);
});

it(`a client outlives mutated replies (seed ${seed})`, { timeout: seconds * 1000 + 120_000 }, async () => {
  const before = openFds();
  const memfd = native.memfdCreate('fuzz', 0x10000);
  let answered = 0;
  for (const end = Date.now() + seconds * 500; Date.now() < end || answered === 0; ) {
    const [ours, theirs] = native.unixPair();
    using raw = new RawClient(theirs);
    const connecting = Client.fromFd(ours, 'fuzzed', { timeoutMs: PATIENCE_MS });
    const hello = (await raw.reply())!;
    const version = Buffer.concat([Version.encode({}), encodeCapabilities()]);
    raw.bytes(encodeMessage({ id: hello.id, command: 1, flags: HEADER_FLAG.REPLY }, version));
    const ask = (await raw.reply())!;
    const info = DeviceInfo.encode({ argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 });
    raw.bytes(encodeMessage({ id: ask.id, command: ask.command, flags: HEADER_FLAG.REPLY }, info));
    const client = await connecting;
    const asked = Promise.allSettled([
      client.regionInfo(2),
      client.read(0, 0, 8),
      client.write(0, 0, Buffer.alloc(4)),
      client.irqCount(2),
      client.notifyTarget(0, 0x40, 1),
      client.map(2, { offset: 0, size: 4096 }, true).then((mapping) => mapping.close()),
    ]);
    try {
      for (let n = 0; n < 6; n++) {
        const request = (await raw.reply(60))!;
        const echo = Buffer.concat([request.payload.subarray(0, 16), payloadOf(next(4) * 16)]);
        const flags = HEADER_FLAG.REPLY | (next(12) === 0 ? HEADER_FLAG.ERROR : 0);
        const message = encodeMessage(
          { id: request.id, command: request.command, flags, error: next(200) },
          echo,
        );
        raw.bytes(mutate(message), next(3) === 0 ? [memfd] : []);
      }
    } catch (error) {
      expect(String(error)).toMatch(/EPIPE|ECONNRESET|no reply|undefined/);
    }
    raw[Symbol.dispose]();
    for (const result of await asked) {
      if (result.status === 'fulfilled') answered++;
      else expect(['connection', 'message'], String(result.reason)).toContain(result.reason.scope);
    }
    await client[Symbol.asyncDispose]();
    expect(openFds()).toBe(before + 1);
  }
  closeSync(memfd);
  expect(answered).toBeGreaterThan(0);
});
