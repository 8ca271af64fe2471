import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { TUN_F } from '../../../src/sys/tap.js';
import { bits, hasBit } from '../../../src/util/flags.js';
import { TapPort, tapOffloads } from '../../../src/vhost-pci/driver/tap-port.js';
import { NET_FEATURE } from '../../../src/virtio-net/features.js';
import { onPath } from '../../support/process.js';
import { isOn, type Receiver, Rig, until } from './rig.js';

const F = NET_FEATURE;

describe('the offloads of a TAP port', () => {
  it('are those that the peer takes', () => {
    expect(tapOffloads(0n)).toBe(0);
    expect(tapOffloads(bits(F.GUEST_CSUM))).toBe(TUN_F.CSUM);
    expect(tapOffloads(bits(F.GUEST_CSUM, F.GUEST_TSO4))).toBe(TUN_F.CSUM | TUN_F.TSO4);
    expect(tapOffloads(bits(F.GUEST_CSUM, F.GUEST_TSO6, F.GUEST_ECN))).toBe(
      TUN_F.CSUM | TUN_F.TSO6 | TUN_F.TSO_ECN,
    );
    expect(tapOffloads(bits(F.GUEST_CSUM, F.GUEST_UFO))).toBe(TUN_F.CSUM | TUN_F.UFO);
    // What the peer may send says nothing about what it takes.
    expect(tapOffloads(bits(F.CSUM, F.HOST_TSO4, F.HOST_TSO6, F.HOST_ECN, F.HOST_UFO))).toBe(0);
  });

  it('contain none but the peer has it, and nothing at all without checksums', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (features) => {
        const flags = tapOffloads(features);
        for (const [flag, bit] of [
          [TUN_F.CSUM, F.GUEST_CSUM],
          [TUN_F.TSO4, F.GUEST_TSO4],
          [TUN_F.TSO6, F.GUEST_TSO6],
          [TUN_F.TSO_ECN, F.GUEST_ECN],
          [TUN_F.UFO, F.GUEST_UFO],
        ] as const)
          if (flags & flag) expect(hasBit(features, bit)).toBe(true);
        if (!hasBit(features, F.GUEST_CSUM)) expect(flags).toBe(0);
      }),
    );
  });
});

const mayUseTap = existsSync('/dev/net/tun') && process.getuid?.() === 0 && onPath('ip');

describe.skipIf(!mayUseTap)('a TAP port', () => {
  const name = `vpt${process.pid % 100_000}`;
  const sys = (what: string): string => readFileSync(`/sys/class/net/${name}/${what}`, 'utf8').trim();

  it('follows the peer with carrier and MTU, and goes with its owner', async () => {
    const port = new TapPort(name);
    try {
      expect(sys('carrier')).toBe('0');
      port.peerOn({ features: bits(F.GUEST_CSUM, F.GUEST_TSO4), mtu: 1400, pairs: 2 });
      expect(sys('carrier')).toBe('1');
      expect(sys('mtu')).toBe('1400');
      port.setMtu(1300);
      expect(sys('mtu')).toBe('1300');
      port.announce(Buffer.alloc(60, 0xff));
      port.peerOff();
      expect(sys('carrier')).toBe('0');
      // Another peer, with fewer pairs and offloads.
      port.peerOn({ features: 0n, mtu: 0, pairs: 1 });
      expect(sys('carrier')).toBe('1');
      // It has no MTU, and not that of the peer before.
      expect(sys('mtu')).toBe('1500');
    } finally {
      await port[Symbol.asyncDispose]();
    }
    expect(existsSync(`/sys/class/net/${name}`)).toBe(false);
  });

  it('takes any MTU that a front-end may have set', async () => {
    const port = new TapPort(name);
    try {
      port.peerOn({ features: 0n, mtu: 65_535, pairs: 1 });
      expect(sys('mtu')).toBe('65521');
      port.setMtu(68);
      expect(sys('mtu')).toBe('68');
    } finally {
      await port[Symbol.asyncDispose]();
    }
  });

  describe('whose interface is deleted', () => {
    let rig: Rig;
    beforeEach(() => {
      rig = new Rig();
    });
    afterEach((context) => rig.end(context));
    const ended = (receiver: Receiver): Promise<unknown> =>
      receiver.endpoint.ended.then(
        () => 'in order',
        (error: unknown) => error,
      );
    const LOST = {
      scope: 'device',
      code: 'EPORT',
      message: expect.stringContaining(`${name} was deleted: start`),
    };

    it('under a peer ends its endpoint, which takes the link down', async () => {
      await rig.device();
      const receiver = rig.receiver({ port: new TapPort(name) });
      const end = ended(receiver);
      const peer = await rig.startedPeer();
      await isOn(receiver);
      execFileSync('ip', ['link', 'del', name]);
      expect(await end).toMatchObject(LOST);
      await peer.disconnected;
      expect(receiver.errors()).toEqual([LOST.message]);
      expect(receiver.events.at(-1)).toMatchObject({ event: 'connection', state: 'off' });
      expect(rig.logged(/did not stop/)).toBe(false);
    });

    it('while there is no peer, or no device, ends it too', async () => {
      const lonely = rig.receiver({ port: new TapPort(name) });
      const first = ended(lonely);
      execFileSync('ip', ['link', 'del', name]);
      expect(await first).toMatchObject(LOST);
      await lonely.endpoint.close();
      const device = await rig.device();
      const waiting = rig.receiver({ port: new TapPort(name) });
      const second = ended(waiting);
      await until('the driver is there', 5000, () => device.link.driverReady);
      execFileSync('ip', ['link', 'del', name]);
      expect(await second).toMatchObject(LOST);
      expect(device.link.driverReady).toBe(false);
    });
  });

  it('of an unprivileged user needs an interface that root has made, and tells each step', async ({
    skip,
  }) => {
    const nobody = 65_534;
    const asNobody = (): unknown => {
      process.seteuid!(nobody);
      try {
        return new TapPort(name);
      } catch (error) {
        return error;
      } finally {
        process.seteuid!(0);
      }
    };
    const ip = (...args: string[]): void => void execFileSync('ip', args);
    const told = (command: string): object => ({
      scope: 'usage',
      message: expect.stringContaining(command),
    });

    // udev gives everybody /dev/net/tun; not every machine has udev.
    if ((statSync('/dev/net/tun').mode & 0o006) !== 0o006) {
      expect(asNobody()).toMatchObject(told('chmod 666 /dev/net/tun'));
      skip('/dev/net/tun is for root alone here');
    }
    expect(asNobody()).toMatchObject(told(`ip tuntap add ${name} mode tap multi_queue vnet_hdr user`));
    ip('tuntap', 'add', name, 'mode', 'tap', 'multi_queue', 'vnet_hdr', 'user', String(nobody));
    try {
      expect(asNobody()).toMatchObject(told(`"ip link set ${name} up"`));
      ip('link', 'set', name, 'up');
      const port = asNobody() as TapPort;
      expect(port).toBeInstanceOf(TapPort);
      process.seteuid!(nobody);
      try {
        port.peerOn({ features: bits(F.GUEST_CSUM, F.GUEST_TSO4), mtu: 1500, pairs: 2 });
        expect(sys('carrier')).toBe('1');
        expect(() => port.setMtu(1400)).toThrow(
          expect.objectContaining(told(`"ip link set ${name} mtu 1400"`)),
        );
      } finally {
        process.seteuid!(0);
        await port[Symbol.asyncDispose]();
      }
    } finally {
      ip('tuntap', 'del', name, 'mode', 'tap', 'multi_queue');
    }
  });

  it('refuses a name that no interface can have', () => {
    for (const wrong of ['', 'a/b', 'far-too-long-a-name', 'a b', '.', '..', 'vp%d', 'vpé'])
      expect(() => new TapPort(wrong)).toThrow(expect.objectContaining({ scope: 'usage' }));
  });
});
