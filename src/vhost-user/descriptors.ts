/**
 * File descriptors that the other side sent: their one owner until somebody takes them, and the check that they are
 * what the message says. Knows no message.
 */
import { closeSync, fstatSync, readFileSync, readlinkSync } from 'node:fs';
import { VhostPciError } from '../util/errors.js';

/** What a descriptor has to be. */
export type FdKind = 'eventfd' | 'file' | 'any';

/** Throws (scope `connection`) when `fd` is something else; a file has to be open for reading and writing. */
export function checkFdKind(fd: number, kind: FdKind): void {
  if (kind === 'any') return;
  const fail = (message: string) => new VhostPciError('connection', 'EBADFD', message);
  if (kind === 'eventfd') {
    const target = readlinkSync(`/proc/self/fd/${fd}`);
    if (target !== 'anon_inode:[eventfd]') throw fail(`an eventfd was expected, ${target} came`);
    return;
  }
  if (!fstatSync(fd).isFile()) throw fail('a file was expected, something else came');
  if (accessMode(fd) !== 2) throw fail('the file is not open for reading and writing');
}

/** O_ACCMODE of an open descriptor: 0 to read, 1 to write, 2 both (proc(5), fdinfo). */
function accessMode(fd: number): number {
  const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'));
  return flags?.[1] === undefined ? -1 : Number.parseInt(flags[1], 8) & 3;
}

/** One descriptor and its end. */
export class OwnedFd implements Disposable {
  readonly fd: number;
  #closed = false;

  constructor(fd: number) {
    this.fd = fd;
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.fd);
  }
}

/** The descriptors of one message. Whoever handles it takes what it keeps; the rest is closed at the end. */
export class ReceivedFds implements Disposable {
  #fds: number[];

  constructor(fds: readonly number[]) {
    this.#fds = [...fds];
  }

  get all(): readonly number[] {
    return this.#fds;
  }

  /** The next descriptor, which now belongs to the caller; undefined when none is left. */
  takeOne(): number | undefined {
    return this.#fds.shift();
  }

  takeAll(): number[] {
    const fds = this.#fds;
    this.#fds = [];
    return fds;
  }

  [Symbol.dispose](): void {
    for (const fd of this.takeAll()) closeSync(fd);
  }
}
