/**
 * `npm run bench`: the product path against DPDK's vhost on the same stock front-end, and what else has a target. A full run
 * takes about ten minutes on an idle machine; `--quick` less than one.
 *
 *     npm run bench [-- --quick] [-- --json FILE] [-- --docs] [-- --only SECTION,…] [-- --frames 64,1518] [-- --pairs N]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { checkout } from '../support/process.js';
import { Scope } from '../support/scope.js';
import { Distance } from './distance.js';
import { type Machine, machine } from './machine.js';
import { header, line, markdown, type Row, rowOf } from './report.js';
import { limits } from './samples.js';
import { type Bench, SECTIONS, type SectionName } from './sections.js';
import { BACK_CPU, FRONT_CPU } from './testpmd.js';

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean' },
    json: { type: 'string' },
    docs: { type: 'boolean' },
    only: { type: 'string' },
    frames: { type: 'string' },
    pairs: { type: 'string' },
    window: { type: 'string' },
    delay: { type: 'string' },
    help: { type: 'boolean' },
  },
});
const names = Object.keys(SECTIONS) as SectionName[];
const only = values.only?.split(',') as SectionName[] | undefined;
if (values.help || only?.some((name) => !names.includes(name))) {
  console.error(
    `Usage: npm run bench [-- OPTIONS]

  --quick         under a minute: two frame sizes, three pairs
  --only LIST     sections: ${names.join(', ')}
  --frames LIST   frame sizes (default 64,256,512,1024,1518)
  --pairs N       pairs of samples (default 7)
  --window MS     length of a sample (default 250)
  --delay PERCENT most of a sample that a polling thread may wait for its CPU (default 5)
  --json FILE     everything, as JSON
  --docs          put the figures into docs/benchmarks.md`,
  );
  process.exit(values.help ? 0 : 2);
}

const { quick = false } = values;
const frames = (values.frames ?? (quick ? '64,1518' : '64,256,512,1024,1518')).split(',').map(Number);
const pairs = Number(values.pairs ?? (quick ? 3 : 7));
limits.delay = Number(values.delay ?? 5) / 100;
limits.pairs = Math.min(limits.pairs, pairs);
// Where most samples are dropped, three tries for each took 70 s.
if (quick) limits.tries = 1.5;
const windowMs = Number(values.window ?? (quick ? 120 : 250));
if (!frames.every((n) => n >= 64 && n <= 1518) || !(pairs >= 1) || !(windowMs >= 20) || !(limits.delay > 0)) {
  console.error('--frames takes 64 to 1518, --pairs 1 and more, --window 20 and more, --delay more than 0');
  process.exit(2);
}
if (values.docs && (quick || values.only || values.frames)) {
  console.error('--docs replaces all figures of the page: leave out --quick, --only and --frames');
  process.exit(2);
}

const rows: Row[] = [];
const missing: string[] = [];
const scope = new Scope();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));

/** Puts the figures between the two markers of docs/benchmarks.md. */
function writeDocs(about: Machine): void {
  const path = `${checkout}docs/benchmarks.md`;
  const text = readFileSync(path, 'utf8');
  const [begin, end] = ['<!-- figures -->', '<!-- end of figures -->'];
  const [before, rest] = text.split(begin);
  const after = rest?.split(end)[1];
  if (before === undefined || after === undefined) throw new Error(`${path} has no "${begin}" … "${end}"`);
  const facts = Object.entries(about).map(([name, value]) => `- ${name}: ${value}`);
  const lacks = missing.map((text) => `- not measured: ${text}`);
  writeFileSync(
    path,
    `${before}${begin}\n\n${[...facts, ...lacks].join('\n')}\n\n${markdown(rows)}\n${end}${after}`,
  );
}

async function main(): Promise<void> {
  const distance = await Distance.start(scope, [FRONT_CPU, BACK_CPU]);
  const bench: Bench = { scope, distance, frames, quick, effort: { pairs, windowMs } };
  let dpdk = 'not used';
  for (const name of only ?? names) {
    if (quick && !only && !SECTIONS[name].quick) continue;
    console.log(header(SECTIONS[name].title));
    try {
      await SECTIONS[name].run(bench, (labels, result) => {
        const { title: section } = SECTIONS[name];
        const row = rowOf(section, labels, result);
        rows.push(row);
        console.log(line(row));
      });
    } catch (error) {
      const text = `${name}: ${(error as Error).message}`;
      missing.push(text);
      console.log(`not measured: ${text}`);
    }
    dpdk = bench.dpdk ?? dpdk;
  }
  const about = await machine(dpdk, limits.delay);
  if (values.json)
    writeFileSync(values.json, `${JSON.stringify({ machine: about, rows, missing }, null, 2)}\n`);
  if (values.docs) writeDocs(about);
  console.log(
    `\n${Object.entries(about)
      .map(([name, value]) => `${name} ${value}`)
      .join(', ')}`,
  );
}

try {
  await main();
} finally {
  await scope.end();
}
process.exit(0);
