/**
 * Dirty logs that a front-end must not give, and drivers that do not confirm: refused or survived, and never a write that
 * nobody logs while the front-end believes that somebody does.
 */
import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { Attachment } from '../../../src/vhost-pci/driver/attachment.js';
import { PAGE } from '../../../src/vhost-pci/identity.js';
import {
  FLAG,
  LOG_DESCRIPTION,
  NUMBER,
  REQUEST,
  RING_FLAG_LOG,
  VRING_ADDR,
} from '../../../src/vhost-user/protocol.js';
import type { NetPeer } from '../../../src/virtio-net/peer.js';
import { exchange, isOff, isOn, MEMORY_BYTES, Rig, Traffic, until, whole } from './rig.js';

const LOG_ALL = 1n << 26n;
const PROTOCOL_FEATURES = 1n << 30n;
/** Of the in-tree peer, whose memory begins at guest address 0x40000000. */
const LOG_BYTES = (0x4000_0000 + MEMORY_BYTES) / PAGE / 8;

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach(async (context) => {
  vi.restoreAllMocks();
  await rig.end(context);
});

async function connected(): Promise<{ peer: NetPeer; receiver: ReturnType<Rig['receiver']> }> {
  await rig.device();
  const receiver = rig.receiver();
  const peer = await rig.startedPeer();
  await isOn(receiver);
  return { peer, receiver };
}

function logFile(bytes = LOG_BYTES): number {
  const fd = native.memfdCreate('log', bytes);
  rig.defer(() => closeSync(fd));
  return fd;
}

function setLogBase(peer: NetPeer, size: bigint, offset: bigint, fd: number): Promise<Buffer> {
  return peer.frontEnd.exchange(REQUEST.SET_LOG_BASE, LOG_DESCRIPTION.encode({ size, offset }), [fd]);
}

/** SET_FEATURES, acknowledged. */
function setFeatures(peer: NetPeer, more: bigint): Promise<Buffer> {
  const features = peer.features | PROTOCOL_FEATURES | more;
  return peer.frontEnd.exchange(
    REQUEST.SET_FEATURES,
    NUMBER.encode(features),
    [],
    FLAG.VERSION | FLAG.NEED_REPLY,
  );
}

/** The next detach of a driver's workers waits until what this returns is called. */
function holdDetach(): () => void {
  let release = (): void => {};
  const { detach } = Attachment.prototype;
  vi.spyOn(Attachment.prototype, 'detach').mockImplementationOnce(async function (this: Attachment) {
    await new Promise<void>((resolve) => {
      release = resolve;
    });
    await detach.call(this);
  });
  return () => release();
}

describe('a log that cannot be one', () => {
  const bad: [string, bigint, bigint, () => number][] = [
    ['is smaller than the memory', BigInt(LOG_BYTES - 1), 0n, logFile],
    ['is empty', 0n, 0n, logFile],
    ['ends behind its file', BigInt(LOG_BYTES), 4096n, logFile],
    ['wraps', BigInt(LOG_BYTES), 0xffff_ffff_ffff_f000n, logFile],
    ['is as large as all addresses', 0xffff_ffff_ffff_ffffn, 8n, logFile],
    ['is not aligned', BigInt(LOG_BYTES), 4n, () => logFile(LOG_BYTES + 4096)],
    ['is no file', BigInt(LOG_BYTES), 0n, eventfd],
    ['cannot be written', BigInt(LOG_BYTES), 0n, readOnly],
    ['overlaps the memory', BigInt(LOG_BYTES), BigInt(PAGE), memoryFile],
  ];

  function eventfd(): number {
    const fd = native.eventfd();
    rig.defer(() => closeSync(fd));
    return fd;
  }

  function memoryFile(): number {
    const fd = openSync(rig.memoryFile, 'r+');
    rig.defer(() => closeSync(fd));
    return fd;
  }

  function readOnly(): number {
    const fd = openSync(`/proc/self/fd/${logFile()}`, 'r');
    rig.defer(() => closeSync(fd));
    return fd;
  }

  it.each(bad)('that %s is refused, and the next peer is served', async (_, size, offset, file) => {
    const { peer, receiver } = await connected();
    const answer = await setLogBase(peer, size, offset, file()).catch(() => undefined);
    if (answer) expect(NUMBER.decode(answer)).not.toBe(0n);
    await peer.disconnected;
    await isOff(receiver);
    await peer[Symbol.asyncDispose]();
    const next = await rig.startedPeer();
    await isOn(receiver, 2);
    expect(await exchange(next, 20)).toEqual([whole(20)]);
  });

  it('that was cut off before logging began ends the connection', async () => {
    const { peer, receiver } = await connected();
    const fd = logFile();
    expect(NUMBER.decode(await setLogBase(peer, BigInt(LOG_BYTES), 0n, fd))).toBe(0n);
    ftruncateSync(fd, 0);
    await setFeatures(peer, LOG_ALL).catch(() => undefined);
    await peer.disconnected;
    await isOff(receiver);
  });
});

describe('a log that is unusual', () => {
  it('may begin anywhere in its file', async () => {
    const { peer } = await connected();
    const offset = 8 * 123;
    const fd = logFile(LOG_BYTES + offset);
    await peer.frontEnd.startLogging({ fd, size: LOG_BYTES, offset });
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
    await peer.stop();
    const log = new native.Mapping(fd, 0, LOG_BYTES + offset, false);
    const bytes = log.read(0, LOG_BYTES + offset);
    log.close();
    const first = offset + 0x4000_0000 / PAGE / 8;
    expect(bytes.subarray(0, first).every((b) => b === 0)).toBe(true);
    expect(bytes.subarray(first).some((b) => b !== 0)).toBe(true);
  });

  it('may be larger than any memory, and only what is needed is mapped', async () => {
    const { peer } = await connected();
    const TERA = 2 ** 40;
    const fd = logFile(TERA);
    await peer.frontEnd.startLogging({ fd, size: TERA, offset: 0 });
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
    await peer.frontEnd.stopLogging();
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
  });

  it('may come twice, before logging and while it is on', async () => {
    const { peer } = await connected();
    const fds = [logFile(), logFile(), logFile()];
    for (const fd of fds.slice(0, 2))
      expect(NUMBER.decode(await setLogBase(peer, BigInt(LOG_BYTES), 0n, fd))).toBe(0n);
    await setFeatures(peer, LOG_ALL);
    expect(NUMBER.decode(await setLogBase(peer, BigInt(LOG_BYTES), 0n, fds[2]!))).toBe(0n);
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
    await peer.stop();
    const marked = fds.map((fd) => {
      const log = new native.Mapping(fd, 0, LOG_BYTES, false);
      const some = log.read(0, LOG_BYTES).some((b) => b !== 0);
      log.close();
      return some;
    });
    expect([marked[0], marked[2]]).toEqual([false, true]);
  });
});

describe('LOG_ALL without a log', () => {
  it('has the driver stop before it is answered, and go on when the log is there', async () => {
    const { peer, receiver } = await connected();
    const fd = logFile();
    await setFeatures(peer, LOG_ALL);
    expect(rig.messages().at(-1)).toBe('< connection off');
    await isOff(receiver);
    expect(NUMBER.decode(await setLogBase(peer, BigInt(LOG_BYTES), 0n, fd))).toBe(0n);
    await isOn(receiver, 2);
    const messages = rig.messages();
    expect(messages.lastIndexOf('> logging on')).toBeLessThan(messages.lastIndexOf('> connection on'));
    expect(await exchange(peer, 50)).toEqual([whole(50)]);
  });
});

describe('a log address of a ring', () => {
  it.each([
    ['outside of the memory', 0xffff_0000n],
    ['that wraps', 0xffff_ffff_ffff_fff0n],
    ['of something else', 0x4000_0000n],
  ])('%s breaks the ring: it is not written to any more', async (_, log) => {
    const { peer, receiver } = await connected();
    await setLogBase(peer, BigInt(LOG_BYTES), 0n, logFile());
    await setFeatures(peer, LOG_ALL);
    const { receiveq } = peer.queues[0]!;
    const user = (gpa: bigint): bigint => peer.frontEnd.toUser(gpa);
    const payload = VRING_ADDR.encode({
      index: 0,
      flags: RING_FLAG_LOG,
      descriptor: user(receiveq.desc),
      used: user(receiveq.device),
      available: user(receiveq.driver),
      log,
    });
    const answer = await peer.frontEnd.exchange(
      REQUEST.SET_VRING_ADDR,
      payload,
      [],
      FLAG.VERSION | FLAG.NEED_REPLY,
    );
    expect(NUMBER.decode(answer)).not.toBe(0n);
    await isOff(receiver);
  });
});

describe('a driver that does not answer while the peer is migrated', () => {
  const LIMIT = 30_000;

  it('has LOG_ALL refused when it does not confirm: the migration fails', async () => {
    const { peer } = await connected();
    let release = (): void => {};
    const late = new Promise<void>((resolve) => {
      release = resolve;
    });
    vi.spyOn(Attachment.prototype, 'setDirtyLog').mockReturnValueOnce(late);
    await setLogBase(peer, BigInt(LOG_BYTES), 0n, logFile());
    const answer = await setFeatures(peer, LOG_ALL).catch(() => undefined);
    if (answer) expect(NUMBER.decode(answer)).not.toBe(0n);
    await until('the connection is dropped', LIMIT, () => rig.logged(/peer disconnected: .*did not confirm/));
    release();
  }, 120_000);

  it('holds GET_VRING_BASE up until it stops, and is told of', async () => {
    const { peer } = await connected();
    await peer.frontEnd.startLogging({ fd: logFile(), size: LOG_BYTES, offset: 0 });
    const traffic = await Traffic.start(peer);
    const release = holdDetach();
    let answered = false;
    const answer = peer.frontEnd.stopRing(0).finally(() => {
      answered = true;
    });
    await until('it is told of', LIMIT, () => rig.logged(/has not stopped for 3 s.*End the driver/));
    await sleep(3500);
    expect(answered).toBe(false);
    expect(rig.logged(/peer disconnected/)).toBe(false);
    release();
    expect(await answer).toBeGreaterThanOrEqual(0);
    await traffic[Symbol.asyncDispose]();
  }, 120_000);

  it('does not hold the next peer up when the one that was migrated ends', async () => {
    const { peer } = await connected();
    await peer.frontEnd.startLogging({ fd: logFile(), size: LOG_BYTES, offset: 0 });
    const release = holdDetach();
    const answer = peer.frontEnd.stopRing(0).catch(() => {});
    await until('it is told of', LIMIT, () => rig.logged(/has not stopped for 3 s.*End the driver/));
    peer.frontEnd.close();
    await answer;
    await until('the peer is let go of', LIMIT, () => rig.logged(/peer disconnected/));
    release();
  }, 120_000);
});
