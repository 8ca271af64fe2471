/**
 * `npm run demo:vms`: the whole link as its users run it, between two virtual machines on stock QEMU with stock kernels.
 * The driver runs in the receiving VM; the peer VM has nothing of ours. Needs no root and installs nothing: what is
 * missing is fetched into a cache folder. README.md beside this file does the same by hand.
 *
 *     npm run demo:vms [-- --json]
 */
import { fetchSet } from '../../test/support/packages.js';
import { qemu } from '../../test/support/qemu.js';
import { type ReceiverProgram, receiverProgram } from '../../test/support/receiver-guest.js';
import type { Availability } from '../../test/support/scope.js';
import { demoOptions } from '../options.js';
import { queueRates } from './rates.js';
import { Run, round } from './run.js';
import { PEER_IP, RECEIVER_IP, TwoVms } from './stage.js';
import { type End, type Ping, ping, type Tcp, tcp } from './traffic.js';

const PINGS = 5;
const TCP_MIB = 16;

const { json } = demoOptions('demo:vms');
const run = new Run();
/** What a person reads. With --json, stdout belongs to the one object at the end. */
const say = (line: string): void => {
  const time = `${run.elapsed.toFixed(1).padStart(6)} s  `;
  (json ? process.stderr : process.stdout).write(`${time}${line}\n`);
};

/** QEMU, a kernel, busybox and the images, or an error that says why they cannot be had. */
async function prepare(): Promise<ReceiverProgram> {
  const { version, accel } = await run.step('fetch', async () => {
    for (const [set, what] of [
      ['kernel', 'a kernel (about 35 MB)'],
      ['busybox', 'busybox (2 MB)'],
    ] as const) {
      say(`${what}: from the cache, or fetched from Debian`);
      need(fetchSet(set));
    }
    say('QEMU 10.1.1 or newer: from PATH, from the cache, or fetched from Debian (about 170 MB)');
    return need(await qemu());
  });
  say(`  QEMU ${version}, ${accel === 'kvm' ? 'KVM' : 'TCG (KVM does not run guests here)'}`);
  say('the images: the receiving VM has node and this package, the peer VM busybox alone');
  return run.step('images', async () => need(await receiverProgram()));
}

function need<T>(availability: Availability<T>): T {
  if ('missing' in availability) throw new Error(availability.missing);
  return availability.ok;
}

interface BothWays<T> {
  peer_to_receiver: T;
  receiver_to_peer: T;
}

/** The same thing in one direction, then in the other. */
async function bothWays<T>(vms: TwoVms, work: (from: End, to: End) => Promise<T>): Promise<BothWays<T>> {
  const receiver: End = { name: 'receiver', guest: vms.receiver, ip: RECEIVER_IP };
  const peer: End = { name: 'peer', guest: vms.peer, ip: PEER_IP };
  return { peer_to_receiver: await work(peer, receiver), receiver_to_peer: await work(receiver, peer) };
}

async function showPing(from: End, to: End): Promise<Ping> {
  const result = await ping(from, to, PINGS);
  const { min, avg, max } = result.rtt_ms;
  say(
    `  ${from.name} → ${to.name}: ${result.received} of ${result.sent}, ${min}/${avg}/${max} ms (min/avg/max)`,
  );
  return result;
}

async function showTcp(from: End, to: End): Promise<Tcp> {
  const result = await tcp(from, to, TCP_MIB);
  const sums = result.intact ? 'checksums match' : 'CHECKSUMS DIFFER';
  say(
    `  ${from.name} → ${to.name}: ${TCP_MIB} MiB in ${result.seconds} s, ${result.mbit_per_s} Mbit/s, ${sums} ` +
      `(sha256 ${result.sha256_received.slice(0, 16)}…)`,
  );
  return result;
}

async function demo(vms: TwoVms, program: ReceiverProgram): Promise<Record<string, unknown>> {
  await run.step('device', () => vms.startDevice());
  await run.step('receiver_boot', () => vms.during(vms.startReceiver()));
  await run.step('peer_boot', () => vms.during(vms.startPeer()));
  say(`ping, ${PINGS} packets each way`);
  const pinged = await run.step('ping', () => vms.during(bothWays(vms, showPing)));
  say(`TCP, ${TCP_MIB} MiB of random bytes each way`);
  const sent = await run.step('tcp', () => vms.during(bothWays(vms, showTcp)));
  const queues = queueRates(await vms.events());
  say('queue  direction   packets        bytes  dropped  best second');
  for (const q of queues)
    say(
      `${String(q.queue).padStart(5)}  ${q.direction.padEnd(9)}  ${String(q.packets).padStart(8)}  ` +
        `${String(q.bytes).padStart(11)}  ${String(q.drops).padStart(7)}  ${q.peak_packets_per_s} packets/s, ${q.peak_mbit_per_s} Mbit/s`,
    );
  await run.step('shutdown', () => vms.end());
  const ok =
    Object.values(pinged).every((p) => p.received === p.sent && p.sent === PINGS) &&
    Object.values(sent).every((t) => t.intact);
  const { version: qemu, accel } = program;
  return { ok, qemu, accel, ping: pinged, tcp: sent, queues, handshake: vms.handshake };
}

let interrupted = false;
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => {
    interrupted = true;
    void run.end().finally(() => process.exit(130));
  });

let vms: TwoVms | undefined;
let report: Record<string, unknown>;
try {
  const program = await prepare();
  vms = new TwoVms(run, program, say);
  report = await demo(vms, program);
  if (!report.ok) throw new Error('packets or bytes did not arrive as they were sent');
  say('Everything arrived intact.');
} catch (error) {
  // Ctrl-C ends the VMs below our feet; that is no failure.
  if (interrupted) await new Promise(() => {});
  await vms?.lastWords().catch(() => {});
  const [message] = (error as Error).message.split('\n');
  const logs = run.saveLogs(error);
  process.stderr.write(`demo: ${message}\nThe logs are in ${logs}\n`);
  report = { ok: false, error: message, logs, handshake: vms?.handshake ?? [] };
}
await run.end();
run.timings.total = round(run.elapsed);
say(`${run.timings.total} s in all`);
if (json) process.stdout.write(`${JSON.stringify({ ...report, timings_s: run.timings })}\n`);
process.exit(report.ok ? 0 : 1);
