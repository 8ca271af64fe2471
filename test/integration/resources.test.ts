/** A device process that runs out of descriptors: it refuses, keeps nothing, and serves again when there are some. */
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { NetPeer } from '../../src/virtio-net/peer.js';
import { fdCount, run, vhostPci } from '../support/process.js';
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
