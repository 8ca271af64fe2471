import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import * as advice from '../../../src/vfio/advice.js';
import { lockedMemory } from '../../../src/vfio/locked-memory.js';

let proc: string;
beforeEach(() => {
  proc = mkdtempSync(join(tmpdir(), 'vhost-pci-proc-'));
});
afterEach(() => rmSync(proc, { recursive: true }));

/** As Linux 6.12 writes them. */
function files(limit: string, lockedKib: number): void {
  writeFileSync(
    join(proc, 'limits'),
    'Limit                     Soft Limit           Hard Limit           Units     \n' +
      'Max processes             95819                95819                processes \n' +
      `Max locked memory         ${limit.padEnd(20)} ${limit.padEnd(20)} bytes     \n`,
  );
  writeFileSync(join(proc, 'status'), `VmPeak:\t   10000 kB\nVmLck:\t${String(lockedKib).padStart(8)} kB\n`);
}

describe('locked memory', () => {
  it('is what /proc says of this process', () => {
    files('8388608', 2048);
    expect(lockedMemory(proc)).toEqual({ limit: 8 << 20, used: 2 << 20 });
    files('unlimited', 0);
    expect(lockedMemory(proc)).toEqual({ limit: undefined, used: 0 });
    expect(lockedMemory(join(proc, 'nowhere'))).toEqual({ limit: undefined, used: 0 });
    expect(lockedMemory().used).toBeGreaterThanOrEqual(0);
  });

  it('that is refused is told with the limit, the need, and how to raise it', () => {
    const cause = new Error('ENOMEM');
    const low = advice.lockedMemory(2 << 20, { limit: 3 << 20, used: 2 << 20 }, cause);
    expect(low).toMatchObject({ scope: 'usage', cause });
    expect(low.message).toMatch(/needs 2048 KiB.*may lock 3072 KiB, of which it has 2048 KiB/);
    expect(low.message).toMatch(/"ulimit -l 4096", LimitMEMLOCK=4096K/);
    // The limit is not to blame.
    for (const limit of [undefined, 64 << 20])
      expect(advice.lockedMemory(2 << 20, { limit, used: 0 }, cause).message).toMatch(
        /has no 2048 KiB of memory/,
      );
  });
});
