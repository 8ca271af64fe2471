/**
 * Runs the tests: `node test/run.mjs [PART…]`, parts `check`, `core`, `unit`, `integration`, `vm`; without one, all.
 * Each step is announced in one line, has a time limit, and shows its output only when it fails. The last line is
 * `N passed, N failed, N skipped`; the exit status is 1 when anything failed. Plain Node: it tests nothing itself.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const bin = (name, path) => [process.execPath, join(root, 'node_modules', name, path)];
const tsc = bin('typescript', 'bin/tsc');
const biome = bin('@biomejs/biome', 'bin/biome');
const vitest = bin('vitest', 'vitest.mjs');
/** Lines of a failed step's output that are shown. */
const SHOWN_LINES = 200;
const SECOND = 'passed at the second attempt only';

const total = { passed: 0, failed: 0, skipped: 0 };
const tmp = mkdtempSync(join(tmpdir(), 'vp-test-'));

/** Runs a command without stdin in a process group of its own; the whole group ends with the time limit. */
function run(command, minutes, env = {}) {
  return new Promise((resolve) => {
    const child = spawn(command[0], command.slice(1), {
      cwd: root,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: '0', ...env },
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += data));
    const endGroup = () => {
      try {
        process.kill(-child.pid, 'SIGKILL');
      } catch {
        // It has ended already.
      }
    };
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      endGroup();
    }, minutes * 60_000);
    const end = (status) => {
      clearTimeout(timer);
      process.off('exit', endGroup);
      if (late) output += `\nnot done within ${minutes} minutes`;
      resolve({ ok: status === 0, output });
    };
    process.on('exit', endGroup);
    child.on('error', (error) => {
      output += error.message;
      end(1);
    });
    child.on('close', end);
  });
}

const lastLines = (text) => text.trimEnd().split('\n').slice(-SHOWN_LINES).join('\n');

function report(title, seconds, counts, detail) {
  for (const key of Object.keys(total)) total[key] += counts[key];
  const { passed, failed, skipped } = counts;
  console.log(`${title}: ${passed} passed, ${failed} failed, ${skipped} skipped (${seconds} s)`);
  if (detail) console.log(detail);
}

async function step(title, work) {
  console.log(`${title} …`);
  const begin = Date.now();
  const { counts, detail } = await work();
  report(title, Math.round((Date.now() - begin) / 1000), counts, detail);
}

/** A command that passes or fails as a whole. */
function plain(title, command, minutes) {
  return step(title, async () => {
    const { ok, output } = await run(command, minutes);
    return {
      counts: { passed: ok ? 1 : 0, failed: ok ? 0 : 1, skipped: 0 },
      detail: ok ? '' : lastLines(output),
    };
  });
}

/**
 * `make -C native/test TARGET` builds and runs; each of its test programs ends with `N cases, N failed`. What a
 * sanitizer finds ends the program: no second attempt there.
 */
function core(title, target, minutes, env = {}) {
  return step(title, async () => {
    const { ok, output } = await run(
      ['make', '-C', join(root, 'native', 'test'), '-s', `-j${availableParallelism()}`, target],
      minutes,
      env,
    );
    const counts = { passed: 0, failed: 0, skipped: 0 };
    for (const [, cases, failed] of output.matchAll(/^(\d+) cases, (\d+) failed$/gm)) {
      counts.passed += cases - failed;
      counts.failed += Number(failed);
    }
    // A program that crashed before its last line is a failure too, and so is a run without any test.
    if (counts.failed === 0 && (!ok || counts.passed === 0)) counts.failed = 1;
    return { counts, detail: counts.failed > 0 || output.includes(SECOND) ? lastLines(output) : '' };
  });
}

/** libFuzzer over ring memory, for FUZZ_SECONDS; it comes with clang, which nothing else needs. */
function fuzz() {
  const seconds = process.env.FUZZ_SECONDS ?? '20';
  const title = `native core, ${seconds} s of fuzzing under the sanitizers`;
  if (spawnSync('clang++', ['--version']).status === 0)
    return core(title, 'fuzz', 5 + Number(seconds) / 60, { FUZZ_SECONDS: seconds });
  return step(title, async () => ({
    counts: { passed: 0, failed: 0, skipped: 1 },
    detail: 'skipped: clang++ is not there (apt install clang libclang-rt-14-dev)',
  }));
}

/**
 * A vitest run; skips are shown with their reasons, failures with their errors. So is what passed at a second attempt
 * only: it counts as passed, and has to be looked into.
 */
function tests(title, args, minutes) {
  return step(title, async () => {
    const file = join(tmp, `${title.replace(/\W/g, '-')}.json`);
    const { ok, output } = await run(
      [...vitest, 'run', ...args, '--reporter', join(root, 'test/support/reporter.mjs')],
      minutes,
      { VHOST_PCI_REPORT: file },
    );
    if (!existsSync(file)) return { counts: { passed: 0, failed: 1, skipped: 0 }, detail: lastLines(output) };
    const { tests: all, errors } = JSON.parse(readFileSync(file, 'utf8'));
    const of = (state) => all.filter((test) => test.state === state);
    const counts = {
      passed: of('passed').length,
      failed: of('failed').length + of('pending').length + errors.length,
      skipped: of('skipped').length,
    };
    if (counts.failed === 0 && (!ok || all.length === 0)) counts.failed = 1;
    const lines = [
      ...of('skipped').map((t) => `  skipped: ${t.name}: ${t.note ?? 'no reason given'}`),
      ...of('failed').map((t) => `  failed: ${t.file}: ${t.name}\n${t.errors.join('\n')}`),
      ...all.filter((t) => t.again).map((t) => `  ${SECOND}: ${t.file}: ${t.name}\n${t.errors.join('\n')}`),
      ...of('pending').map((t) => `  not finished: ${t.file}: ${t.name}`),
      ...errors.map((error) => `  failed outside a test: ${error}`),
      ...(counts.failed > 0 ? [lastLines(output)] : []),
    ];
    return { counts, detail: lines.join('\n') };
  });
}

const config = ['--config', 'test/vitest.config.ts'];

/** Processes and machines on CPUs that others use too: a CI run is not lost to one of thousands of waits. */
const oneMore = process.env.CI ? ['--retry', '1'] : [];
const secondAttempt = { SECOND_ATTEMPT: process.env.CI ?? '' };

/** Each part's steps, in the order in which they run. */
const PARTS = {
  check: [
    () => plain('types of src', [...tsc, '-p', 'tsconfig.json', '--noEmit'], 3),
    () => plain('types of examples', [...tsc, '-p', 'examples/tsconfig.json', '--noEmit'], 3),
    () => plain('types of test', [...tsc, '-p', 'test/tsconfig.json', '--noEmit'], 3),
    () => plain('format and lint', [...biome, 'check', '.'], 2),
  ],
  core: [
    () => core('native core', 'test', 10, secondAttempt),
    () => core('native core, address and undefined behaviour sanitizers', 'asan', 15, secondAttempt),
    () => core('native core, thread sanitizer', 'tsan', 15, secondAttempt),
    () => core('native core, the migration test without parts of the log has to fail', 'unlogged', 12),
    fuzz,
  ],
  unit: [() => tests('unit tests', [...config, ...oneMore, 'test/unit'], 15)],
  integration: [
    () =>
      tests('integration tests', [...config, ...oneMore, '--no-file-parallelism', 'test/integration'], 20),
  ],
  vm: [() => tests('virtual machine tests', ['--config', 'test/vm/vitest.config.ts', ...oneMore], 55)],
};

async function main(names) {
  const unknown = names.find((name) => !Object.hasOwn(PARTS, name));
  if (unknown !== undefined) {
    console.error(`unknown part "${unknown}"; the parts are ${Object.keys(PARTS).join(', ')}`);
    return 2;
  }
  for (const name of names.length > 0 ? names : Object.keys(PARTS))
    for (const work of PARTS[name]) await work();
  console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
  return total.failed > 0 ? 1 : 0;
}

for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(130));
process.on('exit', () => rmSync(tmp, { recursive: true, force: true }));
process.exitCode = await main(process.argv.slice(2));
