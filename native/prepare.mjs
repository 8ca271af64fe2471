/**
 * What a fresh checkout needs before it can run: npm packages, the native engine, compiled TypeScript. Does only
 * what is missing or out of date, and is quiet otherwise. Plain Node: nothing is installed yet.
 *
 * `--native`: only the native engine, and always. `--bench`: the benchmarks too.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const at = (...parts) => join(root, ...parts);

/** Newest modification time below the given files and folders; 0 when there is none. */
function newest(...paths) {
  let time = 0;
  for (const path of paths) {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat) continue;
    if (!stat.isDirectory()) time = Math.max(time, stat.mtimeMs);
    else time = Math.max(time, ...readdirSync(path).map((name) => newest(join(path, name))));
  }
  return time;
}

/** Runs a tool silently; when it fails, shows what it said and what to do, and ends. */
function run(title, command, args, advice) {
  console.error(title);
  const done = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 26 });
  if (done.status === 0) return;
  console.error(`${done.stdout ?? ''}${done.stderr ?? ''}`.trimEnd());
  const why = done.error ? done.error.message : `exit status ${done.status ?? done.signal}`;
  console.error(`failed: ${command} ${args.join(' ')} (${why})\n${advice}`);
  process.exit(1);
}

function installPackages() {
  const lock = at('package-lock.json');
  const marker = at('node_modules', '.package-lock.json');
  if (existsSync(marker) && newest(marker) >= newest(lock)) return;
  // A lock file that was only checked out again is newer than the install and names the same packages.
  if (existsSync(marker) && sameVersions(lock, marker)) {
    writeFileSync(marker, readFileSync(marker));
    return;
  }
  const why = existsSync(marker) ? 'package-lock.json has changed' : 'first run';
  run(
    `installing npm packages (${why})…`,
    'npm',
    // `npm run -s` would silence its errors too.
    ['ci', '--no-audit', '--no-fund', '--loglevel=error'],
    'npm needs its registry or a filled cache for this step.',
  );
}

function sameVersions(lock, marker) {
  const wanted = JSON.parse(readFileSync(lock, 'utf8')).packages ?? {};
  const have = JSON.parse(readFileSync(marker, 'utf8')).packages ?? {};
  return Object.entries(wanted).every(
    ([path, entry]) => path === '' || entry.optional || have[path]?.version === entry.version,
  );
}

function buildNative(always) {
  const addon = at('native', 'build', 'Release', 'vhost_pci.node');
  const sources = newest(at('native', 'core'), at('native', 'binding'), at('native', 'binding.gyp'));
  const built = newest(addon);
  if (!always && built >= sources) return;
  const why = built === 0 ? 'first run, about a minute' : 'its sources have changed';
  // Headers that came with Node itself spare a download.
  const prefix = dirname(dirname(process.execPath));
  const headers = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];
  const gyp = at('node_modules', 'node-gyp', 'bin', 'node-gyp.js');
  const step = built === 0 || always ? ['rebuild'] : ['configure', 'build'];
  run(
    `building the native engine (${why})…`,
    process.execPath,
    [gyp, ...step, '--directory', at('native'), ...headers],
    'It needs g++ 12 (or clang 14), make and python3: apt install g++ make python3',
  );
}

function buildTypeScript() {
  // The examples are compiled against the package's own declarations, so they come second.
  for (const [what, sources, project, output] of [
    ['TypeScript', ['src', 'tsconfig.json'], 'tsconfig.json', 'index.js'],
    ['the examples', ['src', 'examples'], 'examples/tsconfig.json', 'examples/demo/demo.js'],
    ...(process.argv.includes('--bench')
      ? [
          [
            'the benchmarks',
            ['src', 'test/bench', 'test/support'],
            'test/bench/tsconfig.json',
            'bench/bench/main.js',
          ],
        ]
      : []),
    ...(process.argv.includes('--live-migration')
      ? [
          [
            'the live migration demo',
            ['src', 'examples/options.ts', 'examples/live-migration', 'test/support'],
            'examples/live-migration/tsconfig.json',
            'live-migration/examples/live-migration/migrate.js',
          ],
        ]
      : []),
    ...(process.argv.includes('--two-vms')
      ? [
          [
            'the demo of two VMs',
            ['src', 'examples/options.ts', 'examples/two-vms', 'test/support'],
            'examples/two-vms/tsconfig.json',
            'two-vms/examples/two-vms/demo.js',
          ],
        ]
      : []),
  ]) {
    const built = newest(at('dist', output));
    if (built >= newest(...sources.map((path) => at(path)))) continue;
    const why = built === 0 ? 'first run' : 'its sources have changed';
    run(
      `compiling ${what} (${why})…`,
      process.execPath,
      [at('node_modules', 'typescript', 'bin', 'tsc'), '-p', at(project)],
      'The messages above name the lines to mend.',
    );
  }
}

if (process.argv.includes('--native')) {
  buildNative(true);
} else {
  installPackages();
  buildNative(false);
  buildTypeScript();
}
