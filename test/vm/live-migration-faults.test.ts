/**
 * Migrations of a stock guest on stock QEMU in which the back-end goes: the process is killed in the middle, right before
 * the switch-over, and at the destination right after the start; or the driver is late. The outcome is a migration that fails with a reason, or one
 * that ends with the same memory on both sides.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { HOST_IP, type Progress, Stage, stageProps } from '../../examples/live-migration/stage.js';
import { differingPages } from '../support/memory-file.js';
import { need, Scope, until } from '../support/scope.js';
import { slowDriver } from '../support/slow-driver.js';

let scope: Scope;
beforeEach(() => {
  scope = new Scope();
});
afterEach((context) => scope.end(context));

type Context = { skip: (note?: string) => never };

async function loadedStage(context: Context): Promise<Stage> {
  const stage = await Stage.create(scope, need(context, await stageProps()), { compare: true });
  await stage.load();
  return stage;
}

/** Starts a migration that does not end before `fast` is called. */
async function slowMigration(stage: Stage): Promise<{ fast(): Promise<Progress> }> {
  let begun = (): void => {};
  const started = new Promise<void>((resolve) => {
    begun = resolve;
  });
  const end = stage.migrate((p) => {
    if (p.status === 'active' && p.iteration > 0) begun();
  });
  end.catch(() => {});
  const { qmp } = stage.source.guest;
  await Promise.race([started, end]);
  await qmp.run('migrate-set-parameters', { 'max-bandwidth': 1 << 20 });
  return {
    fast: async () => {
      await qmp.run('migrate-set-parameters', { 'max-bandwidth': 40 << 20 });
      return end;
    },
  };
}

/** A migration that fails says why and leaves the guest where it was; one that ends has the same memory. */
async function soundOutcome(stage: Stage, end: Progress): Promise<void> {
  if (end.status === 'completed')
    expect(differingPages(stage.source.memoryFile, stage.destination.memoryFile)).toEqual([]);
  else {
    expect(end.error, stage.logs()).toMatch(/./);
    await stage.source.guest.ok('true');
  }
}

/** The guest goes on at the destination and has its network. */
async function goesOn(stage: Stage): Promise<void> {
  const { destination } = stage;
  const mark = destination.net.mark();
  await destination.guest.qmp.run('cont');
  await destination.net.connection('on', 60_000, mark);
  await destination.guest.ok(`ping -c 1 -w 30 ${HOST_IP}`, 60_000);
}

describe('the device process of the source', () => {
  it('may be killed in the middle of a migration and started again', async (context) => {
    const stage = await loadedStage(context);
    const { source } = stage;
    const migration = await slowMigration(stage);
    const mark = source.net.mark();
    await source.device.kill();
    await source.net.connection('off', 60_000, mark);
    await source.restartDevice();
    await source.net.connection('on', 60_000, mark);
    await soundOutcome(stage, await migration.fast());
    await goesOn(stage);
  });

  it('may be killed while the guest stands still for the switch-over', async (context) => {
    const stage = await loadedStage(context);
    const { qmp } = stage.source.guest;
    const capabilities = [{ capability: 'pause-before-switchover', state: true }];
    await qmp.run('migrate-set-capabilities', { capabilities });
    const end = stage.migrate();
    end.catch(() => {});
    await until('QEMU stands at the switch-over', 120_000, async () => {
      const { status } = (await qmp.run('query-migrate')) as { status?: string };
      return status === 'pre-switchover';
    });
    await stage.source.device.kill();
    await qmp.run('migrate-continue', { state: 'pre-switchover' });
    await soundOutcome(stage, await end);
    // The source's link was down, and QEMU sends that along with the card.
    await stage.destination.guest.qmp.run('set_link', { name: 'net', up: true });
    await goesOn(stage);
  });
});

describe('the device process of the destination', () => {
  it('may be killed right after the guest has started there', async (context) => {
    const stage = await loadedStage(context);
    const end = await stage.migrate();
    expect(end, stage.logs()).toMatchObject({ status: 'completed' });
    expect(differingPages(stage.source.memoryFile, stage.destination.memoryFile)).toEqual([]);
    const { destination } = stage;
    const mark = destination.net.mark();
    await destination.guest.qmp.run('cont');
    await destination.device.kill();
    await destination.restartDevice();
    await destination.net.connection('on', 60_000, mark);
    await destination.guest.ok(`ping -c 1 -w 30 ${HOST_IP}`, 60_000);
  });
});

describe('a driver that does not stop in time', () => {
  it('holds the switch-over up, and what it writes until then is not lost', async (context) => {
    // A trickle: under load the guest hides pages that are missing (live-migration.test.ts).
    const stage = await Stage.create(scope, need(context, await stageProps()), {
      compare: true,
      env: slowDriver(scope, { ms: 6000, logs: true }),
    });
    await stage.stream(40);
    expect(await stage.migrate(), stage.logs()).toMatchObject({ status: 'completed' });
    expect(differingPages(stage.source.memoryFile, stage.destination.memoryFile)).toEqual([]);
    await stage.source.device.line(/has not stopped for \d+ s.*End the driver/, 60_000, 'stderr');
    await goesOn(stage);
  });
});
