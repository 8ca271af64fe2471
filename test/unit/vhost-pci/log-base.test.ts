/** Where a device may say that the dirty log is, and where not: what the driver confirms is logged where the device looks. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { barOffset } from '../../../src/pci/config-space.js';
import { REGION } from '../../../src/pci/handle.js';
import { BAR } from '../../../src/vhost-pci/identity.js';
import type { Message } from '../../../src/vhost-pci/messages.js';
import { type MemoryPeer, type RawDevice, rawBench } from './raw-device.js';
import { isOff, isOn, type Receiver, Rig, until } from './rig.js';

let rig: Rig;
let device: RawDevice;
let peer: MemoryPeer;
let receiver: Receiver;
beforeEach(async () => {
  rig = new Rig();
  ({ device, peer, receiver } = await rawBench(rig));
});
afterEach((context) => rig.end(context));

const ON: Message = { kind: 'logging', on: true };
const OFF: Message = { kind: 'logging', on: false };

/** What a sound device sends. */
const sound = (): { gpa: bigint; size: bigint } => ({
  gpa: device.function.bitmapAddress,
  size: BigInt(device.function.layout.bitmapBytes),
});

const refusals = (): number => receiver.errors().filter((text) => /a dirty log (of|at) /.test(text)).length;

/** Puts BAR 4 where a receiving guest would. */
function program(address: bigint): void {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(address);
  device.function.write(REGION.CONFIG, barOffset(BAR.SHARED), bytes);
}

const BASE = 0x38_0000_0000n;

describe('a dirty log', () => {
  for (const [what, change, words] of [
    ['larger than the bitmap', () => ({ size: 1n << 40n }), /a dirty log of \d+ bytes/],
    ['too small for the memory', () => ({ size: 8n }), /a dirty log of 8 bytes/],
    ['of no byte', () => ({ size: 0n }), /a dirty log of 0 bytes/],
    ['in front of BAR 4', () => ({ gpa: BASE - 4096n }), /outside of the shared pages in BAR 4/],
    ['at address 0', () => ({ gpa: 0n }), /outside of the shared pages in BAR 4/],
    ['at the offset alone', () => ({ gpa: sound().gpa - BASE }), /outside of the shared pages/],
    [
      'whose end is behind BAR 4',
      () => ({ gpa: BASE + BigInt(device.function.layout.size) - 8n }),
      /outside of the shared pages in BAR 4/,
    ],
    ['that wraps', () => ({ gpa: 2n ** 64n - 8n }), /outside of the shared pages in BAR 4/],
    ['among the doorbells', () => ({ gpa: BASE + 0x1000n }), /the bitmap in BAR 4 is at 0x3800008000/],
    ['that is not aligned', () => ({ gpa: sound().gpa + 1n }), /the bitmap in BAR 4 is at 0x3800008000/],
  ] as const satisfies readonly (readonly [string, () => Partial<{ gpa: bigint; size: bigint }>, RegExp])[]) {
    it(`${what} is refused, and logging not confirmed`, async () => {
      program(BASE);
      await device.turnOn(peer);
      await isOn(receiver);
      await device.send({ kind: 'log-base', ...sound(), ...change() }, ON);
      await until('an error', 3000, () => refusals() === 1);
      expect(receiver.errors().at(-1)).toMatch(words);
      // Nothing but the answer to OFF is heard, and the right place is taken afterwards.
      await device.send(OFF);
      expect(await device.answer('logging')).toEqual(OFF);
      expect(device.heard).toEqual([]);
      await device.send({ kind: 'log-base', ...sound() }, ON);
      expect(await device.answer('logging')).toEqual(ON);
      expect(refusals()).toBe(1);
    });

    it(`${what} keeps a peer off that comes while it is on`, async () => {
      program(BASE);
      await device.send(device.info());
      await device.answer('mem-info-gva');
      await device.send(
        { kind: 'virtq-info', virtqs: peer.virtqs() },
        { kind: 'log-base', ...sound(), ...change() },
        ON,
        { kind: 'connection', on: true },
      );
      await until('an error', 3000, () => refusals() > 0);
      expect(receiver.endpoint.connected).toBe(false);
    });
  }

  it('is found where BAR 4 is, programmed or not, and wherever it was moved', async () => {
    await device.turnOn(peer);
    await isOn(receiver);
    for (const address of [undefined, BASE, 0xc000_0000n]) {
      if (address !== undefined) program(address);
      await device.send({ kind: 'log-base', ...sound() }, ON);
      expect(await device.answer('logging')).toEqual(ON);
    }
    await device.send({ kind: 'connection', on: false });
    await isOff(receiver);
    expect(receiver.errors()).toEqual([]);
  });

  it('before any peer is confirmed', async () => {
    await device.send(ON);
    expect(await device.answer('logging')).toEqual(ON);
  });
});
