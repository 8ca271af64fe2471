/**
 * How much memory this process may lock: the pages that VFIO pins for DMA count (Documentation/driver-api/vfio.rst,
 * RLIMIT_MEMLOCK). Reads /proc; decides nothing.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface LockedMemory {
  /** Bytes that may be locked; undefined when there is no limit, or it cannot be told. */
  readonly limit: number | undefined;
  /** Bytes that are locked now. */
  readonly used: number;
}

/** Another folder than `/proc/self` is for tests. */
export function lockedMemory(proc = '/proc/self'): LockedMemory {
  const number = (file: string, pattern: RegExp): number | undefined => {
    try {
      const found = pattern.exec(readFileSync(join(proc, file), 'utf8'))?.[1];
      return found === undefined ? undefined : Number(found);
    } catch {
      return undefined;
    }
  };
  const kib = number('status', /^VmLck:\s+(\d+) kB$/m);
  return { limit: number('limits', /^Max locked memory\s+(\d+)\s/m), used: (kib ?? 0) << 10 };
}
