import { describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { bits } from '../../../src/util/flags.js';
import { BackEnd } from '../../../src/vhost-user/back-end.js';
import {
  encodeMessage,
  FLAG,
  HEADER,
  NUMBER,
  PROTOCOL_FEATURE,
  REQUEST,
} from '../../../src/vhost-user/protocol.js';
import { OFFERED_PROTOCOL_FEATURES } from '../../../src/vhost-user/requests.js';
import { BAD_MESSAGES, EMPTY } from './bad-messages.js';
import { countingFds, Fixture, openFds, TestDevice, VERSION_1 } from './fixture.js';

/** A back-end whose other end is a bare socket. */
function rawBackEnd(f: Fixture): {
  backEnd: BackEnd;
  device: TestDevice;
  send(b: Buffer, fds?: number[]): void;
} {
  const [a, b] = native.unixPair();
  f.keep(b);
  const device = new TestDevice();
  const send = (data: Buffer, fds: number[] = []) => void native.sendMessage(b, data, fds);
  return { backEnd: new BackEnd(a, device), device, send };
}

const MESSAGE = encodeMessage(REQUEST.SET_FEATURES, FLAG.VERSION, NUMBER.encode(VERSION_1));

describe('a back-end that gets a bad message', () => {
  for (const { title, request, payload, fds, flags, code } of BAD_MESSAGES) {
    it(`refuses ${title}, drops the connection and keeps no descriptor`, async () => {
      const [before, after] = await countingFds(async (f) => {
        await f.start();
        const sent = fds(f);
        const answer = f.frontEnd.exchange(request, payload, sent, flags | FLAG.NEED_REPLY);
        const value = await answer.then((reply) => NUMBER.decode(reply)).catch(() => 'none');
        expect(value).toBe(1n);
        await f.backEnd.done;
        expect(f.device.closedWith).toMatchObject({ code });
        expect(f.device.events.at(-1)).toBe('closed');
      });
      expect(after).toBe(before);
    });
  }

  for (const { title, request, payload, fds, flags, code } of BAD_MESSAGES.slice(0, 12)) {
    it(`drops the connection without a word for ${title} when no answer was asked for`, async () => {
      await using f = new Fixture();
      await f.start();
      f.frontEnd.send(request, payload, fds(f), flags);
      await f.frontEnd.closed;
      await f.backEnd.done;
      expect(f.device.closedWith).toMatchObject({ code });
    });
  }

  it('refuses requests of features that were not negotiated', async () => {
    for (const request of [REQUEST.GET_STATUS, REQUEST.GET_MAX_MEM_SLOTS, REQUEST.RESET_DEVICE]) {
      await using f = new Fixture();
      await f.negotiate(undefined, bits(PROTOCOL_FEATURE.REPLY_ACK));
      f.frontEnd.send(request, EMPTY);
      await f.backEnd.done;
      expect(f.device.closedWith).toMatchObject({ code: 'EREQUEST' });
    }
  });

  it('refuses LOG_ALL from a front-end that cannot give a log', async () => {
    await using f = new Fixture();
    await f.negotiate(undefined, OFFERED_PROTOCOL_FEATURES & ~bits(PROTOCOL_FEATURE.LOG_SHMFD));
    f.frontEnd.send(REQUEST.SET_FEATURES, NUMBER.encode(VERSION_1 | bits(26, 30)));
    await f.backEnd.done;
    expect(f.device.closedWith).toMatchObject({ code: 'ENOLOG' });
  });

  it('refuses memory beyond the log while logging', async () => {
    const [before, after] = await countingFds(async (f) => {
      await f.negotiate();
      await f.frontEnd.start(f.regions().slice(0, 1), [f.ring(0)]);
      const fd = f.keep(native.memfdCreate('log', 4096));
      await f.frontEnd.startLogging({ fd, size: 256, offset: 0 });
      await expect(f.frontEnd.setMemory(f.regions())).rejects.toMatchObject({ code: 'ENACK' });
      await f.backEnd.done;
      expect(f.device.closedWith).toMatchObject({ code: 'ELOGSIZE' });
    });
    expect(after).toBe(before);
  });

  it('waits for the rest of half a message and serves others meanwhile', async () => {
    await using f = new Fixture();
    const { backEnd, device, send } = rawBackEnd(f);
    send(MESSAGE.subarray(0, 15));
    await f.start();
    expect(f.backEnd.state.rings[0]!.started).toBe(true);
    expect(device.events).toEqual([]);
    send(MESSAGE.subarray(15));
    await expect.poll(() => device.events).toContain('featuresSet 100000000');
    backEnd.close();
    await backEnd.done;
  });

  it('closes the descriptors of a message that never becomes whole', async () => {
    const [before, after] = await countingFds(async (f) => {
      for (let length = 1; length < MESSAGE.length; length++) {
        const { backEnd, send } = rawBackEnd(f);
        send(MESSAGE.subarray(0, length), [f.memoryFd]);
        await new Promise((resolve) => setTimeout(resolve, 1));
        backEnd.close();
        await backEnd.done;
      }
    });
    expect(after).toBe(before);
  });

  it('counts the descriptors that come with the pieces of a message', async () => {
    const [before, after] = await countingFds(async (f) => {
      const { backEnd, device, send } = rawBackEnd(f);
      for (let i = 0; i < MESSAGE.length && !backEnd.isClosed; i++) {
        send(MESSAGE.subarray(i, i + 1), Array(8).fill(f.memoryFd));
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await backEnd.done;
      expect(device.closedWith).toMatchObject({ code: 'ECTRUNC' });
    });
    expect(after).toBe(before);
  });

  it('never waits for a payload of four gigabytes', async () => {
    await using f = new Fixture();
    const { backEnd, device, send } = rawBackEnd(f);
    send(HEADER.encode({ request: 2, flags: 1, size: 0xffffffff }));
    await backEnd.done;
    expect(device.closedWith).toMatchObject({ code: 'EBADSIZE' });
  });

  it('takes a flood of messages without growing', async () => {
    await using f = new Fixture();
    await f.start();
    const before = openFds();
    const call = f.eventfd();
    for (let i = 0; i < 500; i++) f.frontEnd.send(REQUEST.SET_VRING_CALL, NUMBER.encode(0n), [call]);
    await f.frontEnd.setMtu(1500);
    expect(openFds()).toBe(before + 1);
  });
});
