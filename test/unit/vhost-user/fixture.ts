/** A front-end and a back-end over a socket pair, with a device that records what it hears. */
import { closeSync, readdirSync } from 'node:fs';
import type { PeerMemory } from '../../../src/memory/peer-memory.js';
import { native } from '../../../src/sys/native.js';
import { bits } from '../../../src/util/flags.js';
import { BackEnd } from '../../../src/vhost-user/back-end.js';
import type { BackEndDevice } from '../../../src/vhost-user/device.js';
import { FrontEnd, type SharedRegion, type SharedRing } from '../../../src/vhost-user/front-end.js';
import type { PeerLog } from '../../../src/vhost-user/peer-state.js';
import { OFFERED_PROTOCOL_FEATURES } from '../../../src/vhost-user/requests.js';

export const PROTOCOL_FEATURES = bits(30);
export const VERSION_1 = bits(32);
export const MRG_RXBUF = bits(15);
export const MEMORY_BYTES = 16 << 20;
export const USER_BASE = 0x7f00_0000_0000n;

export const openFds = (): number => readdirSync('/proc/self/fd').length;

export class TestDevice implements BackEndDevice {
  offeredFeatures = bits(0, 3, 15, 22, 28, 29, 32, 34);
  queuePairs = 2;
  readonly events: string[] = [];
  readonly memories: (PeerMemory | undefined)[] = [];
  closedWith: Error | undefined;
  nextIndex = 7;
  /** Awaited by every call that returns a promise. */
  gate: Promise<void> = Promise.resolve();
  /** Thrown by the next call with this name. */
  refusal: { call: string; error: Error } | undefined;

  #note(call: string, detail = ''): void {
    this.events.push(detail === '' ? call : `${call} ${detail}`);
    if (this.refusal?.call === call) throw this.refusal.error;
  }

  featuresSet(features: bigint): void {
    this.#note('featuresSet', features.toString(16));
  }
  async memoryChanged(memory: PeerMemory | undefined): Promise<void> {
    this.#note('memoryChanged', String(memory?.regions.length ?? 0));
    this.memories.push(memory);
    await this.gate;
  }
  ringsChanged(): void {
    this.#note('ringsChanged');
  }
  async stopRing(index: number): Promise<number> {
    this.#note('stopRing', String(index));
    await this.gate;
    return this.nextIndex + index;
  }
  async logChanged(log: PeerLog | undefined): Promise<void> {
    this.#note('logChanged', log ? String(log.size) : 'off');
    await this.gate;
  }
  logSignalChanged(): void {
    this.#note('logSignalChanged');
  }
  announce(mac: Buffer): void {
    this.#note('announce', mac.toString('hex'));
  }
  mtu(mtu: number): void {
    this.#note('mtu', String(mtu));
  }
  reset(): void {
    this.#note('reset');
  }
  statusChanged(status: number): void {
    this.#note('statusChanged', String(status));
  }
  closed(error?: Error): void {
    this.closedWith = error;
    this.#note('closed');
  }
}

/** Both sides, memory of one memfd in two regions, and eventfds; everything is closed at the end. */
export class Fixture implements AsyncDisposable {
  readonly device = new TestDevice();
  readonly frontEnd: FrontEnd;
  readonly backEnd: BackEnd;
  readonly memoryFd = native.memfdCreate('peer', MEMORY_BYTES);
  readonly #fds: number[] = [this.memoryFd];

  constructor() {
    const [a, b] = native.unixPair();
    this.backEnd = new BackEnd(a, this.device);
    this.frontEnd = new FrontEnd(b);
  }

  keep(fd: number): number {
    this.#fds.push(fd);
    return fd;
  }

  eventfd(): number {
    return this.keep(native.eventfd());
  }

  /** Low memory and high memory, one after the other in the file, as QEMU gives a guest of more than 2 GiB. */
  regions(): SharedRegion[] {
    const half = MEMORY_BYTES / 2;
    return [
      { gpa: 0n, userAddress: USER_BASE, size: half, fileOffset: 0, fd: this.memoryFd },
      {
        gpa: 0x1_0000_0000n,
        userAddress: USER_BASE + BigInt(half),
        size: half,
        fileOffset: half,
        fd: this.memoryFd,
      },
    ];
  }

  ring(index: number, size = 256): SharedRing {
    const desc = BigInt(0x10000 * (index + 1));
    return {
      size,
      desc,
      driver: desc + 0x4000n,
      device: desc + 0x8000n,
      kickFd: this.eventfd(),
      callFd: this.eventfd(),
      errFd: this.eventfd(),
    };
  }

  async negotiate(
    wanted = PROTOCOL_FEATURES | VERSION_1 | MRG_RXBUF,
    protocol = OFFERED_PROTOCOL_FEATURES,
  ): Promise<void> {
    await this.frontEnd.negotiate(wanted, protocol);
  }

  /** Two rings, started and enabled. */
  async start(): Promise<SharedRing[]> {
    await this.negotiate();
    const rings = [this.ring(0), this.ring(1)];
    await this.frontEnd.start(this.regions(), rings);
    return rings;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.frontEnd.close();
    this.backEnd.close();
    await this.backEnd.done;
    for (const fd of this.#fds) closeSync(fd);
  }
}

/** Runs `use` with a fixture and returns the numbers of open fds before and after. */
export async function countingFds(use: (f: Fixture) => Promise<void>): Promise<[number, number]> {
  const before = openFds();
  {
    await using fixture = new Fixture();
    await use(fixture);
  }
  return [before, openFds()];
}
