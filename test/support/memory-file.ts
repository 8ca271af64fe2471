/** Files that are a peer's memory: where they may be put, and what is in them. */
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, readSync, statfsSync, writeFileSync } from 'node:fs';
import { run } from './process.js';
import type { Availability, Scope } from './scope.js';

const PAGE = 4096;

/** Whether files of `gib` have a place in /dev/shm. */
export function roomFor(gib: number): Availability<true> {
  const { bsize, bavail } = statfsSync('/dev/shm');
  return bsize * bavail < gib * 1024 ** 3 ? { missing: `/dev/shm has less than ${gib} GiB` } : { ok: true };
}

/** Whether `bytes` are in a file at `from` or behind. */
export function fileHas(path: string, bytes: Buffer, from: number): boolean {
  const chunk = Buffer.alloc(4 << 20);
  const fd = openSync(path, 'r');
  try {
    for (let at = from; ; at += chunk.length - bytes.length) {
      const got = readSync(fd, chunk, 0, chunk.length, at);
      if (chunk.subarray(0, got).includes(bytes)) return true;
      if (got < chunk.length) return false;
    }
  } finally {
    closeSync(fd);
  }
}

/** Numbers of the pages in which two files of the same length differ. */
export function differingPages(a: string, b: string): number[] {
  const CHUNK = 1 << 20;
  const fds = [a, b].map((path) => openSync(path, 'r'));
  const [left, right] = [Buffer.alloc(CHUNK), Buffer.alloc(CHUNK)];
  const differing: number[] = [];
  for (let at = 0; ; at += CHUNK) {
    const lengths = [readSync(fds[0]!, left, 0, CHUNK, at), readSync(fds[1]!, right, 0, CHUNK, at)];
    if (lengths[0] !== lengths[1]) throw new Error(`the files differ in length: ${lengths}`);
    if (lengths[0] === 0) break;
    for (let page = 0; page < lengths[0]!; page += PAGE)
      if (left.compare(right, page, page + PAGE, page, page + PAGE) !== 0) differing.push((at + page) / PAGE);
  }
  for (const fd of fds) closeSync(fd);
  return differing;
}

/** A folder on hugetlbfs with `mib` of 2 MiB pages reserved for it; both go with the scope. */
export async function hugeFolder(scope: Scope, mib: number): Promise<Availability<string>> {
  const reservation = '/sys/kernel/mm/hugepages/hugepages-2048kB';
  const read = (name: string): number => Number(readFileSync(`${reservation}/${name}`, 'utf8'));
  const reserve = (pages: number): void => writeFileSync(`${reservation}/nr_hugepages`, String(pages));
  try {
    // Relative, and by free pages: another test may have a reservation too.
    const expected = read('free_hugepages') + mib / 2;
    scope.defer(() => reserve(Math.max(0, read('nr_hugepages') - mib / 2)));
    reserve(read('nr_hugepages') + mib / 2);
    if (read('free_hugepages') < expected) return { missing: `the kernel has no ${mib} MiB of huge pages` };
  } catch (error) {
    return { missing: `huge pages cannot be reserved: ${(error as Error).message}` };
  }
  const folder = scope.folder();
  const mounted = spawnSync('mount', ['-t', 'hugetlbfs', '-o', 'pagesize=2M', 'none', folder], {
    encoding: 'utf8',
  });
  if (mounted.status !== 0) return { missing: `hugetlbfs cannot be mounted: ${mounted.stderr}` };
  scope.defer(async () => void (await run('umount', ['-l', folder])));
  return { ok: folder };
}
