/**
 * Everything that a front-end has told a back-end over one connection, and the owner of the descriptors that came
 * with it. Takes no decision: requests.ts fills it, the device reads it.
 */
import { fstatSync } from 'node:fs';
import { PAGE_SIZE, type PeerMemory } from '../memory/peer-memory.js';
import { VhostPciError } from '../util/errors.js';
import { OwnedFd } from './descriptors.js';
import { type PeerRingState, RingState } from './ring-state.js';

/** The front-end's dirty log: bit n is for guest-physical bytes from 4096·n. */
export interface PeerLog {
  readonly fd: number;
  /** Where bit 0 is in the file. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
}

/** The state of a peer, as the device sees it. */
export interface PeerState {
  /** Virtio feature bits that the peer negotiated, without vhost-user's own bits 26 and 30. */
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly memory: PeerMemory | undefined;
  /** VHOST_F_LOG_ALL is on. While `log` is missing, no ring is ready. */
  readonly logging: boolean;
  readonly log: PeerLog | undefined;
  /** Eventfd to signal after writing to the log; hardly any front-end gives one. */
  readonly logSignal: OwnedFd | undefined;
  /** Virtio device status (SET_STATUS); 0 without protocol feature STATUS. */
  readonly status: number;
  readonly rings: readonly PeerRingState[];
  /** Why a started ring must not be processed now, or undefined when it has to be. */
  heldBy(ring: PeerRingState): string | undefined;
}

/** Bytes of a log that reaches to guest-physical address `end`. */
export function logBytes(end: bigint): bigint {
  const pages = (end + BigInt(PAGE_SIZE) - 1n) / BigInt(PAGE_SIZE);
  return (pages + 7n) / 8n;
}

export class DirtyLogFile extends OwnedFd implements PeerLog {
  readonly offset: number;
  readonly size: number;
  readonly #file: { readonly dev: bigint; readonly ino: bigint };

  /** Takes over `fd`, also when it throws (scope `connection`) because the log is not inside the file. */
  constructor(fd: number, size: bigint, offset: bigint) {
    super(fd);
    this.offset = Number(offset);
    this.size = Number(size);
    try {
      const file = fstatSync(fd, { bigint: true });
      const fail = (code: string, what: string) => new VhostPciError('connection', code, `the log ${what}`);
      if (size === 0n) throw fail('EBADSIZE', 'is empty');
      // Bits are set with atomic operations on words.
      if (offset % 8n !== 0n) throw fail('EALIGN', 'is not aligned to 8 bytes');
      if (offset + size > file.size) throw fail('EFILESIZE', `ends behind its file of ${file.size} bytes`);
      this.#file = file;
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  covers(memory: PeerMemory): boolean {
    return BigInt(this.size) >= logBytes(memory.end);
  }

  /** It lies in the memory that it is for: setting bits would damage the guest, and be more writes to log. */
  overlaps({ file, regions }: PeerMemory): boolean {
    const end = this.offset + this.size;
    return (
      file.dev === this.#file.dev &&
      file.ino === this.#file.ino &&
      regions.some((r) => r.fileOffset < end && this.offset < r.fileOffset + r.size)
    );
  }
}

export class MutablePeerState implements PeerState, Disposable {
  features = 0n;
  /** SET_FEATURES has come since the start or the last reset. */
  negotiated = false;
  protocolFeatures = 0n;
  memory: PeerMemory | undefined;
  logging = false;
  log: DirtyLogFile | undefined;
  logSignal: OwnedFd | undefined;
  status = 0;
  /** The connection has ended; descriptors are still there until nothing uses them. */
  over = false;
  readonly rings: readonly RingState[];

  constructor(ringCount: number) {
    this.rings = Array.from({ length: ringCount }, (_, i) => new RingState(i));
  }

  get anyStarted(): boolean {
    return this.rings.some((ring) => ring.started);
  }

  heldBy(ring: PeerRingState): string | undefined {
    if (!ring.started) return 'not started';
    if (ring.broken !== undefined) return `broken: ${ring.broken}`;
    if (!ring.areas) return 'its memory is not there';
    // QEMU starts rings with LOG_ALL and sends the log afterwards, when a guest starts its driver during a
    // migration. What would be written until then would be missing at the destination.
    if (this.logging && !this.log) return 'the dirty log is not there';
    return undefined;
  }

  /** Closes every descriptor. */
  [Symbol.dispose](): void {
    for (const ring of this.rings) ring[Symbol.dispose]();
    for (const owner of [this.memory, this.log, this.logSignal]) owner?.[Symbol.dispose]();
    this.memory = undefined;
    this.log = undefined;
    this.logSignal = undefined;
  }
}

/** Waits for the device. Throws when the connection ended meanwhile, so that the request goes no further. */
export async function settled<T>(state: MutablePeerState, pending: Promise<T>): Promise<T> {
  const value = await pending;
  if (state.over) throw new VhostPciError('connection', 'ECLOSED', 'the connection ended meanwhile');
  return value;
}
