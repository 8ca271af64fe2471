/** Hot-plug into a receiving VM: what is said to its QEMU, when, and what is told about everything in the way. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { QmpClient } from '../../../src/vhost-pci/device/qmp.js';
import { ReceiverPlug } from '../../../src/vhost-pci/device/receiver-qmp.js';
import { FakeQmp } from './fake-qmp.js';
import { exchange, isOff, isOn, Rig, until, whole } from './rig.js';

const LIMITS = { greetMs: 300, answerMs: 5000, unplugMs: 1000, retryMs: 20 };

let rig: Rig;
let path: string;
beforeEach(() => {
  rig = new Rig();
  path = join(rig.vfioUser, '..', 'qmp');
});
afterEach((context) => rig.end(context));

async function fakeQmp(): Promise<FakeQmp> {
  const qmp = await FakeQmp.listen(path);
  rig.defer(() => qmp.end());
  return qmp;
}

function receiverPlug(): ReceiverPlug {
  const plug = new ReceiverPlug({
    qmp: path,
    bus: 'port0',
    vfioUser: rig.vfioUser,
    log: rig.log,
    limits: LIMITS,
  });
  rig.defer(() => plug[Symbol.asyncDispose]());
  return plug;
}

const says = (pattern: RegExp): Promise<unknown> =>
  until(`it says ${pattern}`, 5000, () => rig.logged(pattern));

const has = (qmp: FakeQmp, count: number): Promise<unknown> =>
  until(
    `${count} devices are there`,
    5000,
    () => qmp.devices.size === count,
    () => `: ${qmp.log}`,
  );

describe('a device process with a receiving VM', () => {
  it('plugs the device in when the peer has given its memory, and out when the peer has gone', async () => {
    const qmp = await fakeQmp();
    const device = await rig.device({
      adopt: true,
      interrupts: 'msi',
      receiver: { qmp: path, bus: 'port0' },
    });
    for (let round = 1; round <= 3; round++) {
      const connected = await until('a peer is admitted', 5000, () =>
        existsSync(rig.vhostUser) ? rig.peer({ adopt: true }) : undefined,
      );
      expect(qmp.devices.size).toBe(0);
      await connected.start();
      await has(qmp, 1);
      const [[id, args]] = [...qmp.devices] as [[string, object]];
      expect(args).toEqual({
        driver: 'vfio-user-pci',
        id,
        bus: 'port0',
        socket: { type: 'unix', path: rig.vfioUser },
      });
      expect(id).toMatch(/^vhost-pci-[0-9a-f]{8}$/);
      const receiver = rig.receiver();
      await isOn(receiver);
      expect(await exchange(connected, 20)).toEqual([whole(20)]);
      await connected[Symbol.asyncDispose]();
      await isOff(receiver);
      await has(qmp, 0);
      await until('its memory is let go', 5000, () => device.function === undefined);
      await receiver.endpoint.close();
    }
    const [id] = qmp.log.filter((l) => l.startsWith('deleted'));
    expect(qmp.log).toEqual(Array(3).fill(['device_add', 'device_del', id]).flat());
  });

  it('admits no other peer before the receiving VM has let go', async () => {
    const qmp = await fakeQmp();
    qmp.lettingGo = false;
    await rig.device({ adopt: true, interrupts: 'msi', receiver: { qmp: path, bus: 'port0' } });
    const peer = await rig.startedPeer({ adopt: true });
    await has(qmp, 1);
    await peer[Symbol.asyncDispose]();
    await until('the guest is asked', 5000, () => qmp.log.includes('device_del'));
    await expect(rig.peer({ adopt: true })).rejects.toThrow(/ENOENT|ECONNREFUSED|no such/i);
    await qmp.letGo([...qmp.devices.keys()][0]!);
    const next = await until('a peer is admitted', 5000, () =>
      existsSync(rig.vhostUser) ? rig.peer({ adopt: true }) : undefined,
    );
    await next.start();
    await has(qmp, 1);
    qmp.lettingGo = true;
  });

  it('leaves the device in place when it was the driver that went', async () => {
    const qmp = await fakeQmp();
    await rig.device({ adopt: true, interrupts: 'msi', receiver: { qmp: path, bus: 'port0' } });
    const peer = await rig.startedPeer({ adopt: true });
    await has(qmp, 1);
    const first = rig.receiver();
    await isOn(first);
    await first.endpoint.close();
    await peer.disconnected;
    const second = rig.receiver();
    await until('the peer is admitted again', 5000, () => existsSync(rig.vhostUser));
    expect(qmp.log.filter((l) => l !== 'device_add')).toEqual([]);
    await peer[Symbol.asyncDispose]();
    const again = await rig.startedPeer({ adopt: true });
    await isOn(second);
    await again[Symbol.asyncDispose]();
    await has(qmp, 0);
  });

  it('takes the device out at its own end', async () => {
    const qmp = await fakeQmp();
    qmp.connecting = true;
    const device = await rig.device({
      adopt: true,
      interrupts: 'msi',
      receiver: { qmp: path, bus: 'port0' },
    });
    await rig.startedPeer({ adopt: true });
    await has(qmp, 1);
    await device[Symbol.asyncDispose]();
    expect(qmp.log.at(-1)).toMatch(/^deleted/);
  });

  it('plugs the device into the next VM when one ends', async () => {
    const first = await fakeQmp();
    first.connecting = true;
    await rig.device({ adopt: true, interrupts: 'msi', receiver: { qmp: path, bus: 'port0' } });
    await rig.startedPeer({ adopt: true });
    await has(first, 1);
    await first.end();
    await says(/waiting for the receiver's QEMU/);
    const second = await fakeQmp();
    await has(second, 1);
  });
});

describe('what is in the way of a hot-plug', () => {
  it('is waited for when it is a QEMU that is not there yet', async () => {
    receiverPlug().plug();
    await says(/waiting for the receiver's QEMU, to have the device plugged into it: .*ENOENT/);
    const qmp = await fakeQmp();
    await has(qmp, 1);
  });

  it('is told when it is the bus, and tried again', async () => {
    const qmp = await fakeQmp();
    qmp.buses.clear();
    receiverPlug().plug();
    await says(
      /--receiver-bus port0: the receiver's QEMU has no such bus; give the id of an empty pcie-root-port/,
    );
    await until('several attempts', 5000, () => qmp.log.length > 3);
    expect(rig.lines.filter((l) => /no such bus/.test(l.msg))).toHaveLength(1);
    qmp.buses.add('port0');
    await has(qmp, 1);
  });

  it('is told when somebody else has the socket, and waited for', async () => {
    const qmp = await fakeQmp();
    const other = await QmpClient.connect(path, 1000, new AbortController().signal);
    receiverPlug().plug();
    await says(/another program uses this socket. Give QEMU one more, such as -qmp unix:PATH/);
    expect(qmp.devices.size).toBe(0);
    other[Symbol.dispose]();
    await has(qmp, 1);
  });

  it('is unplugged when it is what a process before left, and told when it is something else', async () => {
    const qmp = await fakeQmp();
    const plug = receiverPlug();
    qmp.devices.set(plug.id, { driver: 'e1000e' });
    plug.plug();
    await says(/has another device, e1000e, of id vhost-pci-/);
    qmp.devices.set(plug.id, { driver: 'vfio-user-pci' });
    await says(/now, on bus port0/);
    expect(qmp.log.slice(-5)).toEqual([
      'device_add',
      'qom-get',
      'device_del',
      `deleted ${plug.id}`,
      'device_add',
    ]);
  });

  it('is told when it is a guest that does not let go, which is asked again', async () => {
    const qmp = await fakeQmp();
    const plug = receiverPlug();
    plug.plug();
    await has(qmp, 1);
    qmp.lettingGo = false;
    expect(await plug.unplug(50)).toBe(false);
    await says(/has not let go of the device within 1 s/);
    const out = plug.unplug(5000);
    await until('it is asked again', 5000, () => qmp.log.filter((l) => l === 'device_del').length > 2);
    await qmp.letGo(plug.id);
    expect(await out).toBe(true);
    expect(qmp.devices.size).toBe(0);
  });

  it('is nothing any more when the whole VM has ended', async () => {
    const qmp = await fakeQmp();
    const plug = receiverPlug();
    plug.plug();
    await has(qmp, 1);
    await says(/now, on bus port0/);
    await qmp.end();
    expect(await plug.unplug(5000)).toBe(true);
  });

  it('is told when it speaks no QMP, however much it says', async () => {
    const qmp = await fakeQmp();
    const greeting = qmp.greeting;
    for (const nonsense of ['SSH-2.0\r\n', '[1]\r\n', 'null\r\n', '{"QMP":\r\n', 'x'.repeat(3 << 20)]) {
      qmp.greeting = nonsense;
      const plug = receiverPlug();
      const at = rig.lines.length;
      plug.plug();
      await until('trouble', 5000, () =>
        rig.lines.slice(at).some((l) => /does not speak QMP|does not greet/.test(l.msg)),
      );
      await plug[Symbol.asyncDispose]();
    }
    qmp.greeting = greeting;
    receiverPlug().plug();
    await has(qmp, 1);
  });

  it('does not keep a process from ending', async () => {
    await fakeQmp();
    const other = await QmpClient.connect(path, 1000, new AbortController().signal);
    const plug = receiverPlug();
    plug.plug();
    const out = plug.unplug(60_000);
    await plug[Symbol.asyncDispose]();
    await out;
    other[Symbol.dispose]();
  });
});
