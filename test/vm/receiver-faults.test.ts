/**
 * What is killed, stopped or reset around a driver in a receiving VM, each of them idle and under load: the peer's QEMU, the
 * receiving QEMU, the device process, the driver. The others go on and say what happened, and the link comes back by itself. The
 * receiving guest starts its driver again, as a service manager does.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { fdCount } from '../support/process.js';
import type { Guest } from '../support/qemu.js';
import { Scope, sleep } from '../support/scope.js';
import {
  BOOT_MS,
  PEER_IP,
  RECEIVER_IP,
  selfStarted,
  startLoad,
  stopLoad,
  TwoVms,
} from '../support/two-vms.js';

/** How long a process is stopped; QEMU gives a request up after 5 s, and the driver asks every few seconds. */
const STOP_MS = 1000 * Number(process.env.VHOST_PCI_STOP_SECONDS ?? 30);
const LINK_MS = 90_000;
/** What a driver in a VM says about a device process that does not answer QEMU. */
const LOST = /the device process has ended, or was stopped .* the device has to be plugged in anew/;
const QEMU_FAILED = /error_setv: Assertion/;
/** Seconds are enough on a quiet machine; the tests run on others too. */
const LIMIT_MS = 900_000;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

/** The link, and traffic on it while that is wanted. */
class Running {
  readonly vms: TwoVms;
  peer!: Guest;
  busy = false;

  constructor(vms: TwoVms) {
    this.vms = vms;
  }

  static async start(context: { skip: (note?: string) => never }): Promise<Running> {
    const running = new Running(await TwoVms.create(context, scope, { receiver: { net: selfStarted() } }));
    await running.startPeer();
    await running.works();
    return running;
  }

  get net() {
    return this.vms.ownNet();
  }

  async startPeer(): Promise<void> {
    this.peer = await this.vms.startPeer();
    await this.peer.ready(BOOT_MS);
    if (this.busy) await startLoad(this.peer, RECEIVER_IP);
  }

  async startReceiver(...more: Parameters<TwoVms['startReceiver']>): Promise<void> {
    await this.vms.startReceiver(...more);
    if (this.busy) await startLoad(this.vms.receiver, PEER_IP);
  }

  async load(): Promise<void> {
    this.busy = true;
    await startLoad(this.peer, RECEIVER_IP);
    await startLoad(this.vms.receiver, PEER_IP);
    await this.net.flowing();
  }

  async rest(): Promise<void> {
    this.busy = false;
    await stopLoad(this.peer);
    await stopLoad(this.vms.receiver);
  }

  /**
   * The driver tells that the device process is lost, and goes on. Or its QEMU ends: 11.1.3 may fail an assertion of its own when
   * the connection goes while the guest waits for an answer, and there is nothing of ours that could prevent it.
   */
  async deviceLost(): Promise<void> {
    const { child } = this.vms.receiver;
    try {
      await this.net.connection('off', LINK_MS);
      await this.net.says(LOST, LINK_MS);
      expect(await this.net.running()).toBe(true);
    } catch (error) {
      await Promise.race([child.exited, sleep(LINK_MS)]);
      if (!child.stderr.some((line) => QEMU_FAILED.test(line))) throw error;
    }
  }

  /** The link is up, whatever there was before; the driver has seen `ons` connections since its guest came up. */
  async works(ons = 1): Promise<void> {
    await this.net.connection('on', LINK_MS, ons);
    await this.peer.carrier(true, LINK_MS);
    if (this.busy) await this.net.flowing();
    else await this.vms.ping(this.peer);
  }
}

describe('the four programs of the link', () => {
  it('may each be killed, idle and under load', { timeout: LIMIT_MS }, async (context) => {
    const link = await Running.start(context);
    const { vms } = link;
    const deviceSays = (pattern: RegExp, from: number) => vms.device.line(pattern, LINK_MS, 'stderr', from);
    for (const busy of [false, true]) {
      if (busy) await link.load();
      // Since the receiving guest came up, in the life of its driver or drivers.
      let ons = 1;

      // The driver: the guest starts it again.
      let from = vms.device.stderr.length;
      const before = await link.net.pid();
      await link.net.signal('KILL');
      await deviceSays(/peer disconnected/, from);
      await link.works(++ons);
      expect(await link.net.pid()).not.toBe(before);

      // The peer's QEMU: the driver stays, and serves the next one.
      await link.peer.child.kill();
      await link.net.connection('off', LINK_MS);
      expect(await vms.receiver.ok('cat /sys/class/net/vp0/carrier')).toBe('0');
      await link.startPeer();
      await link.works(++ons);

      // The receiving QEMU: the peer goes on without a link, and has it again with the next receiving VM.
      from = vms.device.stderr.length;
      await vms.receiver.child.kill();
      await deviceSays(/receiver disconnected/, from);
      await link.peer.carrier(false, LINK_MS);
      await link.startReceiver();
      await link.works();

      // The device process: both VMs go on. QEMU does not connect again, so the receiving VM is started anew.
      await vms.device.kill();
      await link.deviceLost();
      await link.peer.carrier(false, LINK_MS);
      expect(link.peer.child.exit).toBeUndefined();
      await vms.startDevice();
      await vms.receiver.child.kill();
      await link.startReceiver();
      await link.works();
    }
    await link.rest();
    await vms.transfer(link.peer, 2);
    // The driver of this VM had a quiet life.
    expect(await link.net.events('error')).toEqual([]);
  });

  it('may each be stopped for half a minute under load, and the receiving guest may be reset', {
    timeout: LIMIT_MS + 5 * STOP_MS,
  }, async (context) => {
    const link = await Running.start(context);
    const { vms } = link;

    // A reset of the receiving machine while the device is alive: its files are gone, so the driver counts anew.
    for (const busy of [false, true]) {
      if (busy) await link.load();
      const from = vms.device.stderr.length;
      await vms.receiver.reset(BOOT_MS);
      await vms.device.line(/peer disconnected/, LINK_MS, 'stderr', from);
      if (busy) await startLoad(vms.receiver, PEER_IP);
      await link.works();
    }

    // With QEMU's own limit of 5 s, a device process that is stopped for longer is lost to the receiving VM.
    vms.device.signal('SIGSTOP');
    await sleep(STOP_MS);
    vms.device.signal('SIGCONT');
    await link.net.connection('off', LINK_MS);
    await link.net.says(LOST, LINK_MS);
    await link.peer.carrier(false, LINK_MS);
    expect(vms.receiver.child.exit ?? vms.device.exit ?? link.peer.child.exit).toBeUndefined();
    await vms.receiver.child.line(/timed out waiting for reply/, LINK_MS, 'stderr');
    // The driver let go in order before the peer lost its link: nobody else served a ring at the same time.
    await vms.device.line(/the receiver reads no answers any more/, LINK_MS, 'stderr');
    expect(vms.device.stderr.filter((line) => /has not let go/.test(line))).toEqual([]);
    await vms.receiver.child.kill();

    // With a higher limit it is waited for, as the others are.
    await link.startReceiver({ messageTimeoutMs: STOP_MS + 120_000 });
    await link.works();
    const life = await link.net.pid();
    const descriptors = fdCount(vms.device.pid);
    for (const [stop, go] of [
      [() => link.peer.child.signal('SIGSTOP'), () => link.peer.child.signal('SIGCONT')],
      [() => vms.receiver.child.signal('SIGSTOP'), () => vms.receiver.child.signal('SIGCONT')],
      [() => link.net.signal('STOP'), () => link.net.signal('CONT')],
      [() => vms.device.signal('SIGSTOP'), () => vms.device.signal('SIGCONT')],
    ]) {
      await stop!();
      await sleep(STOP_MS);
      await go!();
      await link.net.flowing();
    }
    // Nobody took it for an end.
    expect(await link.net.states()).toEqual(['on']);
    expect(await link.net.pid()).toBe(life);
    expect(fdCount(vms.device.pid)).toBe(descriptors);
    await link.rest();
    await vms.transfer(link.peer, 2);
    expect(await link.net.events('error')).toEqual([]);
  });
});
