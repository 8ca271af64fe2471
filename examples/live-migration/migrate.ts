/**
 * `npm run demo:migrate`: a stock guest on stock QEMU is migrated live from one device process to another, with traffic in
 * both directions and a numbered stream of datagrams into the guest, whose numbers are checked afterwards.
 *
 *     npm run demo:migrate [-- [--json] [--seconds N]]
 */
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Scope, sleep } from '../../test/support/scope.js';
import { demoOptions } from '../options.js';
import { type Host, type Progress, Stage, stageProps } from './stage.js';
import { endStream, type StreamResult } from './stream.js';

/** Datagrams a second. */
const STREAM_RATE = 2000;

const { json, seconds = 3 } = demoOptions(
  'demo:migrate',
  'seconds of traffic before and after, 1 to 3600 (default 3)',
);
/** What a person reads. With --json, stdout belongs to the one object at the end. */
const say = (line: string): void => void (json ? process.stderr : process.stdout).write(`${line}\n`);

const mib = (bytes: number): string => `${(bytes / (1 << 20)).toFixed(1)} MiB`;

/** Shows the traffic of a host for some seconds; bytes to and from the guest. */
async function watchTraffic(host: Host): Promise<{ toGuest: number; fromGuest: number }> {
  const bytes = (): [number, number] => {
    const totals = host.net.totals();
    return [totals?.send.bytes ?? 0, totals?.receive.bytes ?? 0];
  };
  const first = bytes();
  let before = first;
  for (let second = 1; second <= seconds; second++) {
    await sleep(1000);
    const now = bytes();
    say(
      `  ${host.name}, ${second} s: ${mib(now[0] - before[0])} to the guest, ${mib(now[1] - before[1])} from it`,
    );
    before = now;
  }
  return { toGuest: before[0] - first[0], fromGuest: before[1] - first[1] };
}

function show(p: Progress, last: Progress | undefined): void {
  if (last && last.iteration === p.iteration && last.status === p.status && p.ms - last.ms < 500) return;
  say(
    `  ${String(p.ms).padStart(6)} ms  ${p.status.padEnd(10)} pass ${String(p.iteration).padStart(2)}  ` +
      `sent ${mib(p.transferred).padStart(10)}  remaining ${mib(p.remaining).padStart(10)}  ` +
      `dirty ${String(p.dirtyPagesPerSecond).padStart(6)} pages/s  downtime ${p.downtime} ms`,
  );
}

interface Result {
  ok: boolean;
  accel: string;
  before: { toGuest: number; fromGuest: number };
  after: { toGuest: number; fromGuest: number };
  migration: Progress;
  passes: Progress[];
  /** From the driver's last word on the source to its first on the destination. */
  link_down_ms: number;
  stream: StreamResult;
}

async function demo(scope: Scope, keep: (logs: () => string) => void): Promise<Result> {
  say('QEMU, a kernel and busybox (fetched from Debian at the first run)');
  const props = await stageProps();
  if ('missing' in props) throw new Error(props.missing);
  const stage = await Stage.create(scope, props.ok, {}, say);
  keep(() => stage.logs());
  const { source, destination } = stage;
  say(`the guest is up on the source (${props.ok.qemu.accel})`);
  const sender = await stage.stream(STREAM_RATE);
  await stage.load();
  const before = await watchTraffic(source);

  say('\nmigrating');
  const passes: Progress[] = [];
  let shown: Progress | undefined;
  const off = source.net.connection('off', 200_000).then(() => performance.now());
  const on = destination.net.connection('on', 200_000).then(() => performance.now());
  for (const wait of [off, on]) wait.catch(() => {});
  const migration = await stage.migrate((p) => {
    if (p.iteration !== passes.at(-1)?.iteration) passes.push(p);
    const previous = shown;
    shown = p;
    show(p, previous);
  });
  if (migration.status !== 'completed')
    throw new Error(`the migration ${migration.status}: ${migration.error ?? ''}`);
  const down = (await on) - (await off);

  say('\nthe guest goes on at the destination');
  await destination.guest.ok(`ping -c 1 -w 20 10.0.0.1`);
  const after = await watchTraffic(destination);
  const stream = await endStream(destination.guest, sender);
  const ok =
    stream.altered === 0 &&
    stream.again === 0 &&
    stream.received > 0 &&
    after.toGuest > 0 &&
    after.fromGuest > 0;
  return {
    ok,
    accel: props.ok.qemu.accel,
    before,
    after,
    migration,
    passes,
    link_down_ms: Math.max(0, Math.round(down)),
    stream,
  };
}

const scope = new Scope();
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => void scope.end().finally(() => process.exit(130)));
let logs = (): string => '';
try {
  const result = await demo(scope, (all) => {
    logs = all;
  });
  const { migration: m, stream: s } = result;
  say(
    `\n${m.iteration} passes, ${mib(m.transferred)} in ${m.ms} ms; the guest stood still for ${m.downtime} ms, ` +
      `its link was down for ${result.link_down_ms} ms`,
  );
  say(
    `stream: ${s.sent} sent, ${s.received} received, ${s.altered} altered, ${s.again} repeated, ` +
      `${s.lost} lost in ${s.gaps} place(s)${s.guestDropped > 0 ? `, ${s.guestDropped} of them in the guest's socket` : ''}`,
  );
  say(result.ok ? 'Nothing was altered.' : 'FAILED');
  if (json) process.stdout.write(`${JSON.stringify(result)}\n`);
  process.exitCode = result.ok ? 0 : 1;
} catch (error) {
  const file = join(mkdtempSync(join(tmpdir(), 'vhost-pci-migrate-')), 'log');
  writeFileSync(file, `${(error as Error).stack}\n${logs()}\n`);
  process.stderr.write(`demo: ${(error as Error).message.split('\n')[0]}\nThe logs are in ${file}\n`);
  process.exitCode = 1;
} finally {
  await scope.end();
}
process.exit();
