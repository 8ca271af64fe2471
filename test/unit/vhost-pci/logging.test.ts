/** Dirty logging from the peer's front-end down to the driver's writes and back: what the log says against what changed. */
import { closeSync, ftruncateSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native, type RingAddresses } from '../../../src/sys/native.js';
import { PAGE } from '../../../src/vhost-pci/identity.js';
import { FLAG, REQUEST } from '../../../src/vhost-user/protocol.js';
import type { NetPeer } from '../../../src/virtio-net/peer.js';
import { exchange, isOff, isOn, MEMORY_BYTES, MIB, Rig, Traffic, until, whole } from './rig.js';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

/** Guest address 0x40000000 (the in-tree peer's) and the memory behind it. */
const FIRST_PAGE = 0x4000_0000 / PAGE;
const LOG_BYTES = (FIRST_PAGE + MEMORY_BYTES / PAGE) / 8;

class Log {
  readonly fd = native.memfdCreate('log', LOG_BYTES);
  readonly #mapping = new native.Mapping(this.fd, 0, LOG_BYTES, true);

  constructor(owner: Rig) {
    owner.defer(() => {
      this.#mapping.close();
      closeSync(this.fd);
    });
  }

  /** Pages of the memory file that are marked. */
  pages(): Set<number> {
    const bytes = this.#mapping.read(0, LOG_BYTES);
    const set = new Set<number>();
    for (const [i, byte] of bytes.entries())
      for (let bit = 0; bit < 8; bit++) if (byte & (1 << bit)) set.add(8 * i + bit - FIRST_PAGE);
    return set;
  }
}

/** The peer's memory as it is now. */
function snapshot(): { bytes: Buffer; pages: (from: bigint, length: number) => number[] } {
  const mapping = memoryMapping();
  return {
    bytes: mapping.read(0, MEMORY_BYTES),
    pages: (from, length) => {
      const at = Number(from) - FIRST_PAGE * PAGE;
      const first = Math.floor(at / PAGE);
      return Array.from({ length: Math.floor((at + length - 1) / PAGE) - first + 1 }, (_, i) => first + i);
    },
  };
}

let memoryMapping: () => InstanceType<typeof native.Mapping>;

/** Pages that the device side of the rings may write: used rings, and the buffers of the receiveq. */
function writable(peer: NetPeer): Set<number> {
  const { bytes, pages } = snapshot();
  const set = new Set<number>();
  const add = (from: bigint, length: number): void => {
    for (const page of pages(from, length)) set.add(page);
  };
  const used = (ring: RingAddresses): void => add(ring.device, 6 + 8 * ring.size);
  for (const { receiveq, transmitq } of peer.queues) {
    used(receiveq);
    used(transmitq);
    for (let i = 0; i < receiveq.size; i++) {
      const at = Number(receiveq.desc) - FIRST_PAGE * PAGE + 16 * i;
      const length = bytes.readUInt32LE(at + 8);
      if (length > 0) add(bytes.readBigUInt64LE(at), length);
    }
  }
  return set;
}

async function connected(): Promise<{ peer: NetPeer; receiver: ReturnType<Rig['receiver']> }> {
  const device = await rig.device();
  memoryMapping = () => device.function!.window.mapping;
  const receiver = rig.receiver();
  const peer = await rig.startedPeer();
  await isOn(receiver);
  return { peer, receiver };
}

describe('dirty logging', () => {
  it('logs every page that the driver writes while it is on, and no other', async () => {
    const { peer } = await connected();
    await exchange(peer, 30);
    const log = new Log(rig);
    await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
    expect(rig.messages().slice(-3)).toEqual(['> log-base', '> logging on', '< logging on']);
    const allowed = writable(peer);
    const before = snapshot().bytes;
    expect(await exchange(peer, 200)).toEqual([whole(200)]);
    await peer.stop();
    const after = snapshot().bytes;
    const logged = log.pages();
    const changed = [...allowed].filter(
      (p) => !before.subarray(p * PAGE, (p + 1) * PAGE).equals(after.subarray(p * PAGE, (p + 1) * PAGE)),
    );
    expect(changed.length).toBeGreaterThan(10);
    expect(changed.filter((page) => !logged.has(page))).toEqual([]);
    expect([...logged].filter((page) => !allowed.has(page))).toEqual([]);
  });

  it('signals the eventfd of the log whenever bits have arrived, not at the end only', async () => {
    const { peer } = await connected();
    const log = new Log(rig);
    const signal = native.eventfd();
    rig.defer(() => closeSync(signal));
    await peer.frontEnd.exchange(
      REQUEST.SET_LOG_FD,
      Buffer.alloc(0),
      [signal],
      FLAG.VERSION | FLAG.NEED_REPLY,
    );
    await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
    native.eventfdTake(signal);
    for (let i = 0; i < 3; i++) {
      await exchange(peer, 10);
      await until('the log was written', 30_000, () => native.eventfdTake(signal) > 0);
    }
    expect(log.pages().size).toBeGreaterThan(0);
  });

  it('goes on over a stop and start of the rings, and ends', async () => {
    const { peer, receiver } = await connected();
    const log = new Log(rig);
    await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
    await peer.stop();
    await isOff(receiver);
    const at = rig.messages().length;
    await peer.start();
    await isOn(receiver, 2);
    expect(rig.messages().slice(at)).toContain('> logging on');
    expect(await exchange(peer, 100)).toEqual([whole(100)]);
    await until('the used rings are logged', 2000, () => log.pages().size > 3);
    await peer.frontEnd.stopLogging();
    expect(rig.messages().slice(-2)).toEqual(['> logging off', '< logging off']);
    const size = log.pages().size;
    expect(await exchange(peer, 100)).toEqual([whole(100)]);
    expect(log.pages().size).toBe(size);
  });

  it('may begin and end many times under load', async () => {
    const { peer } = await connected();
    await using traffic = await Traffic.start(peer);
    for (let round = 0; round < 8; round++) {
      const log = new Log(rig);
      await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
      await until('dirty pages', 2000, () => log.pages().size > 5);
      await peer.frontEnd.stopLogging();
    }
    expect(traffic.results()[0]).toMatchObject({ lost: 0, altered: 0, reordered: 0 });
  });

  it('is on for a driver that comes later', async () => {
    await rig.device();
    const peer = await rig.startedPeer();
    const log = new Log(rig);
    await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
    const receiver = rig.receiver();
    await isOn(receiver);
    expect(rig.messages().indexOf('> logging on')).toBeLessThan(rig.messages().indexOf('> connection on'));
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
    await until('dirty pages', 2000, () => log.pages().size > 3);
  });

  it('follows the memory when its table changes', async () => {
    const { peer } = await connected();
    const log = new Log(rig);
    await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
    // The second table, as after a hot-plug: the same memory, told again.
    await peer.stop();
    await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
    await peer.start();
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
    await until(
      'dirty pages',
      2000,
      () => log.pages().size > 3,
      () => String([...log.pages()]),
    );
  });

  it('drops the peer whose log is cut off, and nobody else notices', async () => {
    const { peer, receiver } = await connected();
    const log = new Log(rig);
    await peer.frontEnd.startLogging({ fd: log.fd, size: LOG_BYTES, offset: 0 });
    ftruncateSync(log.fd, 0);
    const traffic = await Traffic.start(peer, { count: 1000 });
    await peer.disconnected;
    expect(rig.logged(/the dirty log cannot be written/)).toBe(true);
    await isOff(receiver);
    await traffic[Symbol.asyncDispose]();
    await peer[Symbol.asyncDispose]();
    const next = await rig.startedPeer({ memoryBytes: 4 * MIB });
    await isOn(receiver, 2);
    expect(await exchange(next, 20)).toEqual([whole(20)]);
  });
});
