/** Processes that run out of descriptors or memory: they say so, keep nothing, and serve again when there is some. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { NetPeer } from '../../src/virtio-net/peer.js';
import { checkout, fdCount, run, start, vhostPci } from '../support/process.js';
import { Rig } from '../support/rig.js';
import { Scope, sleep, until } from '../support/scope.js';

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

const MEMORY = 4 << 20;

it.each([0, 1, 2, 3, 4, 6, 8, 12, 20, 60])('with %i descriptors left', { timeout: 180_000 }, async (left) => {
  const folder = scope.folder();
  const [socketPath, vfioUser] = [join(folder, 's'), join(folder, 'v')];
  const device = vhostPci(scope, [
    'device',
    '--socket-path',
    socketPath,
    '--vfio-user',
    vfioUser,
    '--queue-pairs',
    '32',
  ]);
  const limit = (files: number) => run('prlimit', ['--pid', String(device.pid), `--nofile=${files}:4096`]);
  const attempt = async (ms: number): Promise<boolean> => {
    const peer = await NetPeer.connect({ socketPath, memoryBytes: MEMORY, ringSize: 64 });
    const started = await Promise.race([
      peer.start().then(
        () => true,
        () => false,
      ),
      sleep(ms),
    ]);
    await peer[Symbol.asyncDispose]();
    return started === true;
  };
  const served = (what: string): Promise<boolean> =>
    until(what, 10_000, () => attempt(10_000).catch(() => false));
  await served('a first peer');
  const before = await atRest(device.pid);
  await limit(before + left);
  for (let n = 0; n < 3; n++) await Promise.race([attempt(500).catch(() => false), sleep(1500)]);
  await limit(4096);
  expect(device.exit).toBeUndefined();
  for (let n = 0; n < 4; n++) await served(`peer ${n} after there were descriptors again`);
  await until(
    'no descriptor is left',
    10_000,
    () => fdCount(device.pid) <= before,
    () => `: ${fdCount(device.pid)} instead of ${before}`,
  );
});

it('a driver without room for the peer’s memory says so, has its link down, and serves it later', {
  timeout: 180_000,
}, async () => {
  const MIB = 256;
  const rig = new Rig(scope);
  const file = join(scope.folder(), 'memory');
  const device = await rig.device({ window: { file, mib: MIB } });
  const driver = rig.net(['--echo', '--interrupt']);
  await device.line(/client connected/, 10_000, 'stderr');
  const { pid } = driver.child;
  const limit = (bytes: string) => run('prlimit', ['--pid', String(pid), `--as=${bytes}:`]);
  // What it has at rest, and less than the peer's memory above that.
  const vmSize = (): number =>
    Number(/^VmSize:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
  await until('the driver is at rest', 10_000, async () => {
    const before = vmSize();
    await sleep(500);
    return vmSize() === before;
  });
  await limit(String(vmSize() + (MIB / 2) * 2 ** 20));
  const program = join(checkout, 'test/support/net-peer.mjs');
  const peer = start(scope, 'peer', process.execPath, [program, rig.vhostUser, file, String(MIB << 20)]);
  const error = await driver.child.event('that it cannot', 10_000, (e) => e.event === 'error');
  expect(error).toMatchObject({
    code: 'ENOMAP',
    message: expect.stringMatching(/peer's memory cannot be mapped: .*ENOMEM.*Raise the limits .*ulimit -v/),
  });
  await peer.event('its link goes down', 10_000, (e) => e.event === 'disconnected');
  await limit('unlimited');
  const served = await peer.event('frames that come back', 30_000, (e) => e.event === 'echoed');
  expect(served).toMatchObject({ altered: 0, reordered: 0 });
  expect((await driver.stop()).receive.drops).toBe(0);
});

/** Open descriptors once their number does not change any more. */
async function atRest(pid: number): Promise<number> {
  let last = fdCount(pid);
  for (let equal = 0; equal < 25; ) {
    await sleep(20);
    const now = fdCount(pid);
    equal = now === last ? equal + 1 : 0;
    last = now;
  }
  return last;
}
