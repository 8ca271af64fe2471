/** What the ports themselves took and gave up, as an endpoint reports it. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AppPort } from '../../../src/vhost-pci/driver/app-port.js';
import { EchoPort, type Port, SinkPort, SourcePort } from '../../../src/vhost-pci/driver/ports.js';
import { TapPort } from '../../../src/vhost-pci/driver/tap-port.js';
import { onPath } from '../../support/process.js';
import { isOn, type Receiver, Rig, Traffic, until } from './rig.js';

const COUNT = 40;
const BYTES = 300;

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach((context) => rig.end(context));

/** A peer that has sent COUNT frames, all of which were taken from its ring. */
async function sent(port: Port, between = (): void => {}): Promise<Receiver> {
  await rig.device();
  const receiver = rig.receiver({ port });
  const peer = await rig.startedPeer();
  await isOn(receiver);
  between();
  await using _traffic = await Traffic.start(peer, { count: COUNT, bytes: BYTES });
  await until(
    'all are taken',
    5000,
    () => receiver.endpoint.stats().queues[0]?.receive.packets === COUNT,
    () => JSON.stringify(receiver.endpoint.stats()),
  );
  return receiver;
}

describe('the statistics of a port', () => {
  it('are what went into a sink, also when it is gone', async () => {
    const { endpoint } = await sent(new SinkPort());
    const taken = { packets: COUNT, bytes: COUNT * BYTES };
    await until('all are counted', 5000, () => endpoint.stats().port?.[0]?.send.packets === COUNT);
    expect(endpoint.stats().port).toMatchObject([{ send: taken, receive: { packets: 0 } }]);
    await endpoint.close();
    expect(endpoint.stats().port).toMatchObject([{ send: taken }]);
  });

  it('have both ways of a source', async () => {
    const { endpoint } = await sent(new SourcePort({ bytes: 64 }));
    await until('some came', 5000, () => (endpoint.stats().port?.[0]?.receive.packets ?? 0) > 0);
    expect(endpoint.stats().port).toMatchObject([{ send: { packets: COUNT } }]);
  });

  it('say what did not fit the slots of the packet API', async () => {
    const { endpoint } = await sent(new AppPort({ maxFrame: BYTES - 1 }));
    const drops = (): number | undefined => endpoint.stats().port?.[0]?.send.drops['too-long'];
    await until('all are dropped', 5000, () => drops() === COUNT);
    await endpoint.close();
    expect(drops()).toBe(COUNT);
  });

  it('are left out where there is no queue of its own', async () => {
    const { endpoint } = await sent(new EchoPort());
    expect(endpoint.stats()).not.toHaveProperty('port');
  });

  const mayUseTap = existsSync('/dev/net/tun') && process.getuid?.() === 0 && onPath('ip');
  it.skipIf(!mayUseTap)('say what a TAP interface refused while it was down', async () => {
    const name = `vpd${process.pid % 100_000}`;
    const { endpoint } = await sent(new TapPort(name), () => {
      execFileSync('ip', ['link', 'set', name, 'down']);
    });
    const drops = (): number | undefined => endpoint.stats().port?.[0]?.send.drops['device-error'];
    await until('all are dropped', 5000, () => drops() === COUNT);
    expect(endpoint.stats().port).toMatchObject([{ send: { packets: 0 } }]);
  });
});
