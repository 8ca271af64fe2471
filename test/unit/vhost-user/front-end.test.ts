import { closeSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { native } from '../../../src/sys/native.js';
import { UnixServer } from '../../../src/sys/unix-server.js';
import { BackEnd } from '../../../src/vhost-user/back-end.js';
import { FrontEnd } from '../../../src/vhost-user/front-end.js';
import { encodeMessage, NUMBER, REPLY_FLAGS, REQUEST } from '../../../src/vhost-user/protocol.js';
import { OFFERED_PROTOCOL_FEATURES } from '../../../src/vhost-user/requests.js';
import { Fixture, PROTOCOL_FEATURES, TestDevice, VERSION_1 } from './fixture.js';

const path = (name: string): string => join(tmpdir(), `vpci-${process.pid}-${name}.sock`);

describe('a front-end', () => {
  it('connects to a back-end that listens', async () => {
    const device = new TestDevice();
    let backEnd: BackEnd | undefined;
    using server = new UnixServer(path('listen'), (fd) => {
      backEnd = new BackEnd(fd, device);
    });
    await using frontEnd = FrontEnd.connect(server.path);
    await frontEnd.negotiate(VERSION_1 | PROTOCOL_FEATURES, OFFERED_PROTOCOL_FEATURES);
    await frontEnd.setMtu(1500);
    expect(device.events).toEqual(['mtu 1500']);
    frontEnd.close();
    await backEnd!.done;
  });

  it('listens for a back-end that connects', async () => {
    rmSync(path('accept'), { force: true });
    const accepted = FrontEnd.accept(path('accept'));
    await using backEnd = new BackEnd(native.unixConnect(path('accept')), new TestDevice());
    await using frontEnd = await accepted;
    await frontEnd.negotiate(VERSION_1 | PROTOCOL_FEATURES, OFFERED_PROTOCOL_FEATURES);
    await frontEnd.setStatus(1);
    expect(backEnd.state.status).toBe(1);
  });

  it('stops with the bases of the rings and starts again from them', async () => {
    await using f = new Fixture();
    const rings = await f.start();
    const bases = await f.frontEnd.stop();
    expect([...bases]).toEqual([
      [0, 7],
      [1, 8],
    ]);
    await f.frontEnd.start(
      f.regions(),
      rings.map((ring, i) => ({ ...ring, base: bases.get(i)! })),
    );
    expect(f.backEnd.state.rings.slice(0, 2).map((r) => r.base)).toEqual([7, 8]);
  });

  it('sends its log again when rings start during a migration', async () => {
    await using f = new Fixture();
    const rings = await f.start();
    const fd = f.keep(native.memfdCreate('log', 0x200000));
    await f.frontEnd.startLogging({ fd, size: 0x200000, offset: 0 });
    await f.frontEnd.stop();
    await f.frontEnd.start(f.regions(), rings);
    expect(f.device.events.filter((e) => e.startsWith('log'))).toEqual([
      'logChanged 2097152',
      'logChanged off',
      'logChanged 2097152',
    ]);
    expect(f.backEnd.state.heldBy(f.backEnd.state.rings[0]!)).toBeUndefined();
  });

  it('changes only the regions that differ when the back-end has memory slots', async () => {
    await using f = new Fixture();
    await f.start();
    const seen = f.device.memories.length;
    await f.frontEnd.setMemory(f.regions());
    expect(f.device.memories.length).toBe(seen);
    await f.frontEnd.setMemory(f.regions().slice(0, 1));
    expect(f.device.memories.length).toBe(seen + 1);
  });

  for (const [what, answer] of [
    ['for another request', encodeMessage(REQUEST.GET_STATUS, REPLY_FLAGS, NUMBER.encode(0n))],
    ['with the need_reply flag', encodeMessage(REQUEST.GET_FEATURES, REPLY_FLAGS | 8, NUMBER.encode(0n))],
    ['that is too short', encodeMessage(REQUEST.GET_FEATURES, REPLY_FLAGS, Buffer.alloc(4))],
  ] as const) {
    it(`takes no answer ${what}`, async () => {
      const [a, b] = native.unixPair();
      await using frontEnd = new FrontEnd(a);
      const negotiated = frontEnd.negotiate(VERSION_1, 0n);
      native.sendMessage(b, answer, []);
      await expect(negotiated).rejects.toMatchObject({ scope: 'connection' });
      closeSync(b);
    });
  }
});
