/**
 * A stock guest that is migrated live from host to host and back, under load in both directions. At each switch-over, while
 * neither side runs, the memories are compared page by page. MIGRATIONS=N and CANCELLATIONS=N: how many under load.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { HOST_IP, Stage, type StageOptions, stageProps } from '../../examples/live-migration/stage.js';
import { endStream } from '../../examples/live-migration/stream.js';
import { differingPages } from '../support/memory-file.js';
import { need, Scope, sleep, until } from '../support/scope.js';
import { slowDriver } from '../support/slow-driver.js';

const MIGRATIONS = Number(process.env.MIGRATIONS ?? 2);
const CANCELLATIONS = Number(process.env.CANCELLATIONS ?? process.env.MIGRATIONS ?? 3);
const TIME = 900_000 + (MIGRATIONS + CANCELLATIONS) * 30_000;

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

async function stageOf(
  context: { skip: (note?: string) => never },
  options: StageOptions = {},
): Promise<Stage> {
  return Stage.create(scope, need(context, await stageProps()), options);
}

async function migrated(stage: Stage): Promise<void> {
  const end = await stage.migrate();
  expect(end, stage.logs()).toMatchObject({ status: 'completed' });
}

/**
 * Datagrams a second: a trickle is the sensitive case. Linux clears the pages that it allocates for buffers, and QEMU copies
 * what a guest has written since the first pass. What was not logged shows only in buffers that were in the ring before.
 */
const TRICKLE = 40;
/** What drivers take more to stop: until then they write to a guest that stands still. */
const SLOW_MS = 100;

/** The guest goes on at the destination, which becomes the source of the next migration. */
async function goOn(stage: Stage): Promise<void> {
  const { destination } = stage;
  const mark = destination.net.mark();
  await destination.guest.qmp.run('cont');
  await destination.net.connection('on', 60_000, mark);
  await stage.turn();
}

/** Bytes move in both directions. */
async function works(stage: Stage): Promise<void> {
  const first = stage.source.net.totals();
  await stage.source.net.until('traffic in both directions', 60_000, ({ send, receive }) =>
    [send.bytes - (first?.send.bytes ?? 0), receive.bytes - (first?.receive.bytes ?? 0)].every(
      (n) => n > 1 << 20,
    ),
  );
}

type Context = { skip: (note?: string) => never };

/** The last thing that a migration does before the destination runs. */
async function sameMemory(context: Context): Promise<void> {
  const stage = await stageOf(context, {
    compare: true,
    env: slowDriver(scope, { ms: SLOW_MS, logs: true }),
  });
  await stage.stream(TRICKLE);
  for (let i = 0; i <= MIGRATIONS; i++) {
    if (i === 1) await stage.load();
    await migrated(stage);
    expect(
      differingPages(stage.source.memoryFile, stage.destination.memoryFile),
      `pages that differ after migration ${i}`,
    ).toEqual([]);
    await goOn(stage);
    if (i > 0) await works(stage);
  }
}

async function cancelled(context: Context): Promise<void> {
  const stage = await stageOf(context, { compare: true });
  await stage.load();
  const { qmp } = stage.source.guest;
  for (let i = 0; i < CANCELLATIONS; i++) {
    // To nowhere, and too slow to end by itself.
    await qmp.run('migrate-set-parameters', { 'max-bandwidth': 1 << 20 });
    await qmp.run('migrate', { uri: 'exec:cat >/dev/null' });
    const status = async (): Promise<string> =>
      ((await qmp.run('query-migrate')) as { status?: string }).status ?? '';
    await until('migration runs', 60_000, async () => (await status()) === 'active');
    await sleep(Math.random() * 500);
    await qmp.run('migrate_cancel');
    await until('migration is cancelled', 60_000, async () => (await status()) === 'cancelled');
    await works(stage);
  }
  await migrated(stage);
  expect(differingPages(stage.source.memoryFile, stage.destination.memoryFile)).toEqual([]);
}

async function numberedStream(context: Context): Promise<void> {
  const stage = await stageOf(context);
  const sender = await stage.stream(300);
  await sleep(1000);
  const mark = stage.destination.net.mark();
  await migrated(stage);
  await stage.destination.net.connection('on', 60_000, mark);
  await stage.destination.guest.ok(`ping -c 1 -w 20 ${HOST_IP}`);
  await sleep(2000);
  const result = await endStream(stage.destination.guest, sender);
  console.log(`numbered stream: ${JSON.stringify(result)}`);
  expect(result).toMatchObject({ altered: 0, again: 0, guestDropped: 0 });
  expect(result.received).toBeGreaterThan(600);
  expect(result.gaps).toBeLessThanOrEqual(1);

  // What the rings accepted before and after the switch-over, the guest has received, whatever it was.
  const { source, destination } = stage;
  const accepted = (await source.net.stop()).send.packets + (await destination.net.stop()).send.packets;
  let received = 0;
  await until('the guest has received what the rings accepted', 60_000, async () => {
    received = Number(await destination.guest.ok('cat /sys/class/net/eth0/statistics/rx_packets'));
    return received >= accepted;
  }).catch(() => {});
  expect(received).toBe(accepted);
}

async function unlogged(context: Context): Promise<void> {
  const stage = await stageOf(context, {
    compare: true,
    env: slowDriver(scope, { ms: SLOW_MS, logs: false }),
  });
  await stage.stream(TRICKLE);
  let differing = 0;
  for (let i = 0; i < 4 && differing === 0; i++) {
    if (i > 0) await goOn(stage);
    await migrated(stage);
    differing = differingPages(stage.source.memoryFile, stage.destination.memoryFile).length;
  }
  expect(differing).toBeGreaterThan(0);
}

describe('a stock guest that is migrated', () => {
  it('has the same memory on both sides, again and again, in a trickle and under load', sameMemory, TIME);
  it('stays where it is when the migration is cancelled under load, again and again', cancelled, TIME);
  it('receives a numbered stream unaltered, with one gap at most: the switch-over', numberedStream, TIME);
});

describe('the proof itself', () => {
  it('finds the pages that differ when the driver does not log', unlogged, TIME);
});
