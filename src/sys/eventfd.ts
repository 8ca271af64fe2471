/** What a descriptor that came from another process has to be before anything is written to it. */
import { readlinkSync } from 'node:fs';

/** A write of 8 bytes to anything else might block a thread that signals it. */
export function isEventfd(fd: number): boolean {
  return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]';
}
