/** Which front-ends a device process takes, and what it refuses at once. */
import { closeSync, ftruncateSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { EchoPort } from '../../../src/vhost-pci/driver/ports.js';
import { FrontEnd } from '../../../src/vhost-user/front-end.js';
import { exchange, isOff, isOn, Rig, until, whole } from './rig.js';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

const REFUSED = /second vhost-user front-end was refused/;

function frontEnd(): FrontEnd {
  const made = FrontEnd.connect(rig.vhostUser);
  rig.defer(() => made[Symbol.asyncDispose]());
  return made;
}

describe('a second front-end', () => {
  it('that comes before the end of the first is seen takes its place', async () => {
    await rig.device();
    for (let round = 0; round < 20; round++) {
      const first = frontEnd();
      await first.negotiate(1n << 32n, 0n);
      const next = frontEnd();
      first.close();
      expect(await next.negotiate(1n << 32n, 0n)).toMatchObject({ queuePairs: 1 });
      next.close();
      await next.closed;
    }
    expect(rig.logged(REFUSED)).toBe(false);
  });

  it('is refused when the first one stays, and so is a third at once', async () => {
    await rig.device();
    const first = frontEnd();
    await first.negotiate(1n << 32n, 0n);
    const second = frontEnd();
    const third = frontEnd();
    await third.closed;
    await second.closed;
    expect(rig.lines.filter((l) => REFUSED.test(l.msg))).toHaveLength(2);
    expect(await first.negotiate(1n << 32n, 0n)).toMatchObject({ queuePairs: 1 });
  });
});

describe('adopt mode', () => {
  it('tells at the start when the receiver cannot be listened for', async () => {
    await expect(rig.device({ adopt: true, vfioUser: `${rig.vfioUser}/no` })).rejects.toMatchObject({
      scope: 'usage',
    });
    await expect(rig.device({ adopt: true, vfioUser: `/${'x'.repeat(120)}` })).rejects.toMatchObject({
      scope: 'usage',
    });
  });

  it('refuses a memory file that no host can have', async () => {
    await rig.device({ adopt: true });
    const fd = native.memfdCreate('huge', 0);
    rig.defer(() => closeSync(fd));
    ftruncateSync(fd, 2 ** 46);
    const front = frontEnd();
    await front.negotiate(1n << 32n, 1n << 3n);
    await front.sendFeatures();
    const region = { gpa: 0n, userAddress: 1n << 40n, size: 2 ** 46, fileOffset: 0, fd };
    await expect(front.setMemory([region])).rejects.toThrow();
    await until('the refusal', 2000, () => rig.logged(/memory file has 70368744177664 bytes, the host has/));
  });
});

describe('a port that fails when the peer goes', () => {
  it('does not keep the device from its answer', async () => {
    class Failing extends EchoPort {
      override peerOff(): void {
        throw new Error('the cable is cut');
      }
    }
    await rig.device();
    const receiver = rig.receiver({ port: new Failing() });
    for (const times of [1, 2]) {
      const peer = await rig.startedPeer();
      await isOn(receiver, times);
      expect(await exchange(peer, 20)).toEqual([whole(20)]);
      expect(await peer.stop()).toEqual(
        new Map([
          [0, 20],
          [1, 20],
        ]),
      );
      await isOff(receiver, times);
      await peer[Symbol.asyncDispose]();
      await sleep(10);
    }
    expect(receiver.errors()).toEqual(['the cable is cut', 'the cable is cut']);
    expect(rig.logged(/did not stop/)).toBe(false);
  });
});
