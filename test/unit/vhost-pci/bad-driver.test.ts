/** What a hostile or broken driver does to the device: it is told, the device goes on, the peer comes to no harm. */
import { existsSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { RingAddresses } from '../../../src/sys/native.js';
import { BAR, QUEUE, REGISTER_BLOCK } from '../../../src/vhost-pci/identity.js';
import { encodeMessage, type Message, STRUCTS } from '../../../src/vhost-pci/messages.js';
import { DMA_ADDRESS, RawDriver } from './raw-driver.js';
import { exchange, isOn, openFds, Rig, until, whole } from './rig.js';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

const OFF: Message = { kind: 'connection', on: false };

/** The proof that the device is as good as new: another driver and another peer exchange packets. */
async function stillWorks(): Promise<void> {
  const receiver = rig.receiver();
  await until('a peer is admitted', 5000, () => receiver.endpoint && rig.logged(/client connected/));
  const peer = await until('a peer', 5000, async () =>
    existsSync(rig.vhostUser) ? rig.peer().catch(() => undefined) : undefined,
  );
  await peer.start();
  await isOn(receiver);
  expect(await exchange(peer, 20)).toEqual([whole(20)]);
}

const word16 = (n: number): Buffer => Buffer.of(n & 0xff, n >> 8);

describe('messages from the driver', () => {
  const head = (cls: number, command: number, ...data: Uint8Array[]): Buffer =>
    Buffer.concat([Buffer.of(cls, command), ...data]);
  const nonsense: Record<string, Buffer> = {
    'a single byte': Buffer.of(0),
    'an unknown class': head(77, 0),
    'an unknown command': head(0, 2),
    'an address that is cut off': head(1, 1, Buffer.alloc(7)),
    'virtq info without rings': head(2, 0, STRUCTS.virtqInfo.encode({ virtq_num: 0 })),
    'virtq info with an odd number of rings': head(
      2,
      0,
      STRUCTS.virtqInfo.encode({ virtq_num: 3 }),
      Buffer.alloc(120),
    ),
    'virtq info with more rings than it has': head(
      2,
      0,
      STRUCTS.virtqInfo.encode({ virtq_num: 4 }),
      Buffer.alloc(120),
    ),
    'virtq info with 2^32 - 2 rings': head(2, 0, STRUCTS.virtqInfo.encode({ virtq_num: 0xffff_fffe })),
    'a long chain of zeroes': Buffer.alloc(16384),
  };
  for (const [what, bytes] of Object.entries(nonsense))
    it(`${what}: ignored, and the connection is made all the same`, async () => {
      await rig.device();
      const raw = await RawDriver.start(rig);
      await raw.bytes(bytes);
      if (what !== 'a long chain of zeroes')
        await until('it is told', 2000, () => rig.logged(/control message from the driver ignored/));
      if (what !== 'a long chain of zeroes') {
        await rig.startedPeer();
        await raw.turnOn();
        await raw.bytes(bytes);
        await raw.send({ kind: 'connection', on: true });
        expect(raw.waiting()).toEqual([]);
      }
      expect(await raw.virtio.needsReset()).toBe(false);
    });

  it('that only a device sends are ignored, and so is ON', async () => {
    await rig.device();
    const raw = await RawDriver.start(rig);
    await rig.startedPeer();
    await raw.turnOn();
    for (const message of [
      {
        kind: 'mem-info-bar',
        bar: 2,
        features: 0n,
        mtu: 0,
        regions: [{ gpa: 0n, size: 1n, bar_offset: 0n }],
      },
      { kind: 'log-base', gpa: 0n, size: 0n },
      { kind: 'announce', mac: Buffer.alloc(6) },
      { kind: 'mtu', mtu: 0 },
      { kind: 'connection', on: true },
      { kind: 'mem-info-gva', address: 1n },
      { kind: 'logging', on: true },
      { kind: 'broken', ring: 60_000 },
    ] satisfies Message[])
      await raw.send(message);
    await until('the last of them', 2000, () => rig.logged(/ring 60000/));
    expect(raw.waiting()).toEqual([]);
    expect(await raw.virtio.needsReset()).toBe(false);
  });

  it('OFF, twice: the peer is disconnected once, both are answered', async () => {
    const device = await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    await raw.send(OFF);
    await raw.send(OFF);
    expect([await raw.next(), await raw.next()]).toEqual([OFF, OFF]);
    await peer.disconnected;
    expect(device.link.phase).toBe('off');
    await peer[Symbol.asyncDispose]();
    await raw.client[Symbol.asyncDispose]();
    await stillWorks();
  });

  it('with indices of rings that the peer does not have are of no use to anybody', async () => {
    await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    const virtq = {
      next_avail: 0xffff,
      flags: 0xffff,
      enable: 7,
      num: 9,
      reserved: 1,
      desc: 1n,
      avail: 2n,
      used: 3n,
    };
    const stopping = peer.stop();
    expect(await raw.next()).toEqual(OFF);
    await raw.send({ kind: 'virtq-info', virtqs: Array(256).fill(virtq) });
    await raw.send(OFF);
    expect([...(await stopping).values()]).toEqual([0xffff, 0xffff]);
    expect(await raw.virtio.needsReset()).toBe(false);
  });

  it('in a flood are taken in turns; the peer is served meanwhile', async () => {
    const device = await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.peer();
    for (let i = 0; i < 100; i++) {
      while (raw.transmit.harvest());
      const garbage = i % 2 ? Buffer.of(9, 9, 9) : encodeMessage({ kind: 'logging', on: true });
      while (raw.transmit.addReadable(garbage));
      await raw.virtio.notify(QUEUE.CONTROL_TRANSMIT);
    }
    await peer.start();
    await raw.turnOn();
    expect(device.link.phase).toBe('on');
    // Nobody can fill the log with it.
    expect(rig.lines.filter((l) => /ignored/.test(l.msg)).length).toBeLessThan(20);
  });
});

describe('buffers of the control receiveq', () => {
  it('that are not there are waited for', async () => {
    const device = await rig.device();
    const raw = await RawDriver.start(rig, { buffers: 0 });
    await rig.startedPeer();
    await until('the memory info waits', 2000, () => device.link.phase === 'announced');
    raw.receive.addWritable();
    await raw.virtio.notify(QUEUE.CONTROL_RECEIVE);
    expect(await raw.next()).toMatchObject({ kind: 'mem-info-bar' });
  });

  it('that are too small need a reset, and the link is not ON', async () => {
    for (const bufferBytes of [1, 57, 64]) {
      const device = await rig.device();
      const raw = await RawDriver.start(rig, { bufferBytes });
      const peer = await rig.startedPeer();
      // 58 bytes of memory info fit the last, the 90 of virtq info do not.
      if (bufferBytes === 64) {
        expect(await raw.next()).toMatchObject({ kind: 'mem-info-bar' });
        await raw.send({ kind: 'mem-info-gva', address: 0n });
      }
      await raw.needsReset();
      await peer.disconnected;
      expect(device.link.phase).toBe('off');
      expect(rig.logged(/a buffer of \d+ bytes in the control receiveq/)).toBe(true);
      await peer[Symbol.asyncDispose]();
      await raw.client[Symbol.asyncDispose]();
      await stillWorks();
      await rig.end();
      rig = new Rig();
    }
  });
});

describe('control queues', () => {
  const malformed: Record<string, (raw: RawDriver, ring: RingAddresses) => void> = {
    'an available index ahead of the ring': (raw, r) => at(raw, r.driver + 2n, word16(0x4000)),
    'an available index that went back': (raw, r) => at(raw, r.driver + 2n, word16(0xffff)),
    'a head outside the ring': (raw, r) => {
      at(raw, r.driver + 4n, word16(16));
      at(raw, r.driver + 2n, word16(1));
    },
    'a buffer in no memory': (raw, r) => {
      at(raw, r.desc, Buffer.alloc(8, 0xf0));
      at(raw, r.driver + 2n, word16(1));
    },
    'a chain in a circle': (raw, r) => {
      const desc = Buffer.alloc(16);
      desc.writeBigUInt64LE(DMA_ADDRESS, 0);
      desc.writeUInt32LE(8, 8);
      desc.writeUInt16LE(1, 12);
      at(raw, r.desc, desc);
      at(raw, r.driver + 4n, word16(0));
      at(raw, r.driver + 2n, word16(1));
    },
  };
  const at = (raw: RawDriver, address: bigint, data: Uint8Array): void =>
    raw.memory.write(Number(address - DMA_ADDRESS), data);

  for (const [what, write] of Object.entries(malformed))
    it(`with ${what} need a reset; then the device is as new`, async () => {
      const device = await rig.device();
      const bad = await RawDriver.start(rig);
      const victim = await rig.startedPeer();
      await until('it is told of memory', 2000, () => device.link.phase === 'announced');
      write(bad, bad.transmit.addresses);
      await bad.virtio.notify(QUEUE.CONTROL_TRANSMIT);
      await bad.needsReset();
      await victim.disconnected;
      expect(rig.logged(/the driver's control queues: .*it has to reset the device/)).toBe(true);
      expect(device.link.phase).toBe('off');
      await victim[Symbol.asyncDispose]();
      await bad.client[Symbol.asyncDispose]();
      await stillWorks();
    });

  it('outside of all memory are refused by the device’s status', async () => {
    await rig.device();
    const raw = await RawDriver.open(rig);
    const nowhere = { size: 16, desc: 0x1000n, driver: 0x2000n, device: 0x3000n };
    await raw.virtio.setUpQueue(QUEUE.CONTROL_RECEIVE, nowhere).catch(() => {});
    await expect(raw.virtio.driverOk()).rejects.toThrow(/NEEDS_RESET|refuses/);
    await raw.client[Symbol.asyncDispose]();
    await stillWorks();
  });

  it('whose memory is unmapped in use are given up with it', async () => {
    const device = await rig.device();
    const fds = openFds();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    await raw.client.unmapDma(DMA_ADDRESS, raw.memory.size);
    await raw.needsReset();
    await peer.disconnected;
    expect(device.link.phase).toBe('off');
    await peer[Symbol.asyncDispose]();
    await raw.client[Symbol.asyncDispose]();
    // The raw driver's memory file is still open.
    await until('its descriptors are closed', 2000, () => openFds() <= fds + 1);
    await stillWorks();
  });

  it('go on when other memory is mapped and unmapped', async () => {
    await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    for (let i = 0; i < 20; i++) {
      const address = DMA_ADDRESS + BigInt((i % 2 ? 1 : -1) * 0x100_0000);
      await raw.client.mapDma(raw.fd, raw.memory, 0, address, raw.memory.size);
      await peer.frontEnd.setEnabled(0, i % 2 === 1);
      const info = await raw.next();
      expect(info).toMatchObject({ kind: 'virtq-info' });
      await raw.send(info);
      await raw.client.unmapDma(address, raw.memory.size);
    }
    expect(await raw.virtio.needsReset()).toBe(false);
  });

  it('of a driver that says DRIVER_OK without them are of no use, and do no harm', async () => {
    const device = await rig.device();
    const raw = await RawDriver.open(rig);
    await raw.virtio.driverOk();
    const peer = await rig.startedPeer();
    await until('the memory info waits', 2000, () => device.link.phase === 'announced');
    await raw.client[Symbol.asyncDispose]();
    await peer.disconnected;
    await peer[Symbol.asyncDispose]();
    await stillWorks();
  });
});

describe('a driver', () => {
  it('that resets the device while ON takes the peer’s link down', async () => {
    const device = await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    await raw.client.reset();
    await peer.disconnected;
    expect(device.link.phase).toBe('off');
    await peer[Symbol.asyncDispose]();
    await raw.client[Symbol.asyncDispose]();
    await stillWorks();
  });

  it('that goes without a word while ON does too', async () => {
    await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    await raw.client[Symbol.asyncDispose]();
    await peer.disconnected;
    await peer[Symbol.asyncDispose]();
    await stillWorks();
  });

  it('that does not stop is not waited for forever, and the user is told', async () => {
    await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    await peer.stop();
    expect(rig.logged(/the driver did not stop within \d+ ms.*Restart the driver/)).toBe(true);
    // Its late answer is taken as such.
    expect(await raw.next()).toEqual(OFF);
    await raw.send(OFF);
    await peer.start();
    await raw.turnOn();
  });

  it('that accesses registers that are not there is refused', async () => {
    await rig.device();
    const raw = await RawDriver.start(rig);
    const peer = await rig.startedPeer();
    await raw.turnOn();
    const { client } = raw;
    for (const [offset, data] of [
      [REGISTER_BLOCK.peerNotify + 1, word16(0)],
      [REGISTER_BLOCK.peerNotify + 4 * 500, word16(500)],
      [REGISTER_BLOCK.notify + 4 * 60, word16(60)],
      [REGISTER_BLOCK.common + 0x16, Buffer.of(0xff)],
      [REGISTER_BLOCK.config, Buffer.alloc(64)],
      [REGISTER_BLOCK.isr, Buffer.of(1)],
      [0x7fff, Buffer.of(1)],
    ] as const)
      await client.write(BAR.REGISTERS, offset, data);
    await expect(client.write(BAR.REGISTERS, 0x8000, Buffer.of(1))).rejects.toThrow(/EINVAL/);
    // BAR2 reads 0 behind the file; within, it is the peer's memory.
    const { size } = await client.regionInfo(BAR.PEER_MEMORY);
    expect(await client.read(BAR.PEER_MEMORY, size - 8, 8)).toHaveLength(8);
    expect(await raw.virtio.needsReset()).toBe(false);
    expect(peer.frontEnd.features).not.toBe(0n);
  });
});
