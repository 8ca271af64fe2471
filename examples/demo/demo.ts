/**
 * `npm run demo`: the whole link on one host, without a VM and without root. Three processes: the device process, the driver
 * (`vhost-pci net … --echo`), and this one, the peer. The peer sends numbered frames, the driver sends each back out of the
 * peer's own memory, and every byte of every frame is compared.
 *
 *     npm run demo [-- [--json] [--seconds N]]
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { NetPeer, Traffic, type TrafficTotals } from 'vhost-pci';
import { demoOptions } from '../options.js';

const MEMORY_BYTES = 64 << 20;
const FRAME_BYTES = [64, 512, 1514];
const START_LIMIT_MS = 15_000;

interface Pass extends TrafficTotals {
  frame_bytes: number;
  seconds: number;
  /** Frames there and back a second, and bits of frames a second in each direction. */
  mpps: number;
  gbps: number;
}

const { json, seconds = 2 } = demoOptions('demo', 'seconds for each frame size, 1 to 3600 (default 2)');
/** What a person reads. With --json, stdout belongs to the one object at the end. */
const say = (line: string): void => void (json ? process.stderr : process.stdout).write(`${line}\n`);

const folder = mkdtempSync(join(tmpdir(), 'vhost-pci-demo-'));
const socketPath = join(folder, 'vhost-user.sock');
const vfioUser = join(folder, 'vfio-user.sock');
const memory = join(folder, 'peer-memory');
const main = fileURLToPath(new URL('../../cli/main.js', import.meta.url));
const children: ChildProcess[] = [];
const handshake: string[] = [];

process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));

/** Starts one of our commands; `line` gets what it writes. */
function start(args: readonly string[], line: (text: string) => void): ChildProcess {
  say(`$ vhost-pci ${args.join(' ')}`);
  const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  children.push(child);
  for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on('line', line);
  return child;
}

async function end(child: ChildProcess): Promise<number | null> {
  if (child.exitCode !== null) return child.exitCode;
  child.kill('SIGTERM');
  return new Promise((resolve) => child.on('exit', resolve));
}

/** The device process tells the control messages in its log: the handshake of the protocol, as it happens. */
function showHandshake(line: string): void {
  const entry = JSON.parse(line) as { level: number; msg: string; message?: string; on?: boolean };
  if (entry.message !== undefined) {
    const arrow = entry.msg === 'to the driver' ? 'device → driver' : 'driver → device';
    const step = `${arrow}: ${entry.message}${entry.on === undefined ? '' : entry.on ? ' ON' : ' OFF'}`;
    handshake.push(step);
    say(`  ${step}`);
  } else if (entry.level >= 30) say(`  device: ${entry.msg}`);
}

async function connectPeer(): Promise<NetPeer> {
  for (let waited = 0; ; waited += 50) {
    try {
      return await NetPeer.connect({ socketPath, memoryFile: memory, memoryBytes: MEMORY_BYTES });
    } catch (error) {
      if (waited >= START_LIMIT_MS) throw error;
      await sleep(50);
    }
  }
}

async function run(peer: NetPeer, bytes: number): Promise<Pass> {
  say(`\n${bytes}-byte frames, ${seconds} s, there and back, every byte compared`);
  await using traffic = await Traffic.start(peer, { bytes });
  const begin = performance.now();
  let before = 0;
  for (let second = 1; second <= seconds; second++) {
    await sleep(1000);
    const { packets } = traffic.totals();
    const rate = packets - before;
    before = packets;
    say(
      `  ${second} s: ${(rate / 1e6).toFixed(2)} Mpps, ${((rate * bytes * 8) / 1e9).toFixed(2)} Gbit/s each way`,
    );
  }
  const totals = await traffic.stopSending();
  const elapsed = (performance.now() - begin) / 1000;
  const mpps = totals.packets / elapsed / 1e6;
  return {
    frame_bytes: bytes,
    seconds: round(elapsed),
    mpps: round(mpps),
    gbps: round((mpps * bytes * 8) / 1e3),
    ...totals,
  };
}

const round = (n: number): number => Math.round(n * 1000) / 1000;

function intact(pass: Pass): boolean {
  return (
    pass.packets > 0 &&
    pass.packets === pass.sent &&
    pass.lost + pass.reordered + pass.altered + pass.foreign === 0
  );
}

async function demo(): Promise<boolean> {
  const begin = performance.now();
  const device = start(
    [
      'device',
      '--socket-path',
      socketPath,
      '--vfio-user',
      vfioUser,
      '--peer-memory',
      memory,
      '--peer-memory-size',
      String(MEMORY_BYTES),
      '--log-level',
      'debug',
    ],
    showHandshake,
  );
  let connected = (): void => {};
  const on = new Promise<void>((resolve) => {
    connected = resolve;
  });
  const driver = start(['net', `vfio-user:${vfioUser}`, '--echo', '--json'], (line) => {
    if (!line.startsWith('{"event"')) return say(`  driver: ${line}`);
    const event = JSON.parse(line) as { event: string; state?: string; message?: string };
    if (event.state === 'on') connected();
    if (event.event === 'error') say(`  driver: ${event.message}`);
  });

  const passes: Pass[] = [];
  {
    await using peer = await connectPeer();
    say('  peer: connected, shares its memory and rings');
    await peer.start();
    const late = sleep(START_LIMIT_MS, 'late', { ref: false });
    if ((await Promise.race([on, late])) === 'late')
      throw new Error('the driver did not see the peer come up');
    for (const bytes of FRAME_BYTES) passes.push(await run(peer, bytes));
    say('\npeer: stops its rings');
    await peer.stop();
  }
  const statuses = { driver: await end(driver), device: await end(device) };

  const ok = passes.every(intact) && statuses.driver === 0 && statuses.device === 0;
  say('\nframe bytes    sent and verified      lost  altered    Mpps   Gbit/s each way');
  for (const p of passes)
    say(
      `${String(p.frame_bytes).padStart(11)}  ${String(p.packets).padStart(19)}  ${String(p.lost).padStart(8)}  ` +
        `${String(p.altered + p.reordered + p.foreign).padStart(7)}  ${p.mpps.toFixed(2).padStart(6)}  ${p.gbps.toFixed(2).padStart(8)}`,
    );
  say(
    ok
      ? 'Nothing was lost or altered.'
      : 'FAILED: packets were lost or altered, or a process did not end well.',
  );
  if (json)
    process.stdout.write(
      `${JSON.stringify({ ok, passes, handshake, exit_status: statuses, seconds: round((performance.now() - begin) / 1000) })}\n`,
    );
  return ok;
}

demo().then(
  (ok) => process.exit(ok ? 0 : 1),
  (error) => {
    process.stderr.write(`demo: ${(error as Error).message}\n`);
    process.exit(1);
  },
);
