/** The rules of the tree that a compiler does not check: layers, exports, file length. Reads sources as text. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** A folder imports itself and folders of a lower number. */
const LAYER: Readonly<Record<string, number>> = {
  util: 0,
  sys: 1,
  memory: 2,
  pci: 2,
  net: 2,
  virtio: 3,
  vfio: 4,
  'vfio-user': 4,
  'vhost-user': 4,
  xen: 4,
  'virtio-net': 5,
  vsock: 5,
  'vhost-pci': 6,
  cli: 7,
};
/** Packages that reach the addon or the kernel, for src/sys alone. */
const SYSTEM_PACKAGES = ['koffi', 'node-gyp-build'];
const LONGEST = 400;
/** Tests are lists of cases. */
const LONGEST_TEST = 650;
/** Longer on purpose: the whole surface of the addon is stated in one place. */
const LONGER: Readonly<Record<string, number>> = { 'src/sys/native.ts': 500 };

interface Source {
  /** Path from the top of the checkout, such as `src/virtio/features.ts`. */
  readonly path: string;
  readonly text: string;
}

/** Comments go; strings stay, since module names are strings. */
function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/(^|[^:'"`])\/\/.*$/gm, '$1');
}

function imports(text: string): string[] {
  const pattern = /\b(?:from|import)\s*\(?\s*(['"])([^'"\n]+)\1/g;
  const calls = /\b(?:require|createRequire\([^)]*\))\s*\(\s*(['"])([^'"\n]+)\1\s*\)/g;
  const plain = withoutComments(text);
  return [...plain.matchAll(pattern), ...plain.matchAll(calls)].map((m) => m[2]!);
}

const folderOf = (path: string): string | undefined => /^src\/([^/]+)\//.exec(path)?.[1];

function layerBreaks({ path, text }: Source): string[] {
  const own = folderOf(path);
  if (own === undefined) return [];
  const ownLayer = LAYER[own];
  if (ownLayer === undefined) return [`${path}: folder ${own} has no layer`];
  return imports(text)
    .filter((name) => name.startsWith('.'))
    .map((name) => normalize(join(dirname(path), name)))
    .filter((target) => {
      const folder = folderOf(target);
      if (folder === own) return false;
      const layer = folder === undefined ? undefined : LAYER[folder];
      return layer === undefined || layer >= ownLayer;
    })
    .map((target) => `${path} imports ${target}`);
}

function systemPackageBreaks({ path, text }: Source): string[] {
  if (folderOf(path) === 'sys') return [];
  return imports(text)
    .filter((name) => SYSTEM_PACKAGES.includes(name) || name.endsWith('.node'))
    .map((name) => `${path} loads ${name}`);
}

function reExports({ path, text }: Source): string[] {
  if (path === 'src/index.ts') return [];
  return /^\s*export\s+(?:type\s+)?(?:\*|\{[^}]*\})(?:\s+as\s+\w+)?\s+from\b/m.test(withoutComments(text))
    ? [`${path} re-exports`]
    : [];
}

function defaultExports({ path, text }: Source): string[] {
  return /^\s*export\s+default\b|\bas\s+default\b/m.test(withoutComments(text))
    ? [`${path} exports a default`]
    : [];
}

function tooLong({ path, text }: Source): string[] {
  const lines = text.split('\n').length - 1;
  const longest = LONGER[path] ?? (/(^|\/)test\//.test(path) ? LONGEST_TEST : LONGEST);
  return lines > longest ? [`${path} has ${lines} lines`] : [];
}

function sources(folder: string, pattern: RegExp): Source[] {
  let names: string[];
  try {
    names = readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' });
  } catch {
    return [];
  }
  return names
    .filter((name) => pattern.test(name) && !/(^|\/)(build|prebuilds|node_modules)\//.test(name))
    .map((name) => ({
      path: relative(root, join(root, folder, name)),
      text: readFileSync(join(root, folder, name), 'utf8'),
    }));
}

const source = (path: string, text: string): Source => ({ path, text });

describe('the tree', () => {
  const ts = sources('src', /\.ts$/);

  it('has sources to look at', () => {
    expect(ts.length).toBeGreaterThan(10);
    expect(ts.flatMap((file) => imports(file.text)).length).toBeGreaterThan(20);
  });

  it('imports its own folder or a lower layer only', () => {
    expect(ts.flatMap(layerBreaks)).toEqual([]);
  });

  it('touches the addon and koffi in src/sys only', () => {
    expect(ts.flatMap(systemPackageBreaks)).toEqual([]);
  });

  it('re-exports in src/index.ts only', () => {
    expect(ts.flatMap(reExports)).toEqual([]);
  });

  it('has no default exports', () => {
    expect(ts.flatMap(defaultExports)).toEqual([]);
  });

  it(`has no file of more than ${LONGEST} lines, or ${LONGEST_TEST} of tests`, () => {
    const all = [
      ...ts,
      ...sources('test', /\.(ts|mjs|sh)$/),
      ...sources('native', /\.(cc|h|mjs)$/),
      ...sources('examples', /\.(ts|mjs)$/),
    ];
    expect(all.flatMap(tooLong)).toEqual([]);
  });
});

describe('the rules above', () => {
  it('see an import upward, sideways and dynamic', () => {
    expect(layerBreaks(source('src/util/a.ts', "import { x } from '../sys/native.js';"))).toHaveLength(1);
    expect(layerBreaks(source('src/pci/a.ts', "import type { x } from '../net/mac.js';"))).toHaveLength(1);
    expect(layerBreaks(source('src/pci/a.ts', "const x = await import('../cli/main.js');"))).toHaveLength(1);
    expect(layerBreaks(source('src/pci/a.ts', "import { x } from '../index.js';"))).toHaveLength(1);
    expect(layerBreaks(source('src/new/a.ts', ''))).toHaveLength(1);
  });

  it('accept an import downward, in the folder, and of packages', () => {
    const text =
      "import { a } from './b.js';\nimport { c } from '../util/struct.js';\nimport { d } from 'pino';";
    expect(layerBreaks(source('src/pci/a.ts', text))).toEqual([]);
    expect(
      layerBreaks(source('src/pci/a.ts', "// from '../cli/main.js'\n/* import '../cli/x.js' */")),
    ).toEqual([]);
  });

  it('see the addon loaded outside src/sys', () => {
    const text = "const load = createRequire(import.meta.url)('node-gyp-build');";
    expect(systemPackageBreaks(source('src/net/a.ts', "import koffi from 'koffi';"))).toHaveLength(1);
    expect(systemPackageBreaks(source('src/net/a.ts', text))).toHaveLength(1);
    expect(systemPackageBreaks(source('src/sys/a.ts', text))).toEqual([]);
  });

  it('see re-exports and default exports', () => {
    expect(reExports(source('src/net/a.ts', "export * from './b.js';"))).toHaveLength(1);
    expect(reExports(source('src/net/a.ts', "export {\n  a,\n} from './b.js';"))).toHaveLength(1);
    expect(reExports(source('src/net/a.ts', 'export { a };'))).toEqual([]);
    expect(defaultExports(source('src/net/a.ts', 'export default class {}'))).toHaveLength(1);
    expect(defaultExports(source('src/net/a.ts', 'export { a as default };'))).toHaveLength(1);
  });

  it('see a long file', () => {
    expect(tooLong(source('a', 'x\n'.repeat(LONGEST)))).toEqual([]);
    expect(tooLong(source('a', 'x\n'.repeat(LONGEST + 1)))).toHaveLength(1);
  });
});
