/**
 * A vhost-user front-end: what QEMU is towards a back-end, for the in-tree peer, tests and tools. Sends what it is told
 * in QEMU's order and checks the answers; it has no rings of its own. `send` and `exchange` let a test say anything.
 */
import { native } from '../sys/native.js';
import { UnixServer } from '../sys/unix-server.js';
import { VhostPciError } from '../util/errors.js';
import { hasBit } from '../util/flags.js';
import {
  FLAG,
  LOG_DESCRIPTION,
  MEMORY_TABLE,
  NUMBER,
  PROTOCOL_FEATURE,
  RARP,
  REQUEST,
  type RequestName,
  RING_FD,
  RING_FLAG_LOG,
  SINGLE_REGION,
  VHOST_FEATURE,
  VRING_ADDR,
  VRING_STATE,
} from './protocol.js';
import { RequestChannel } from './request-channel.js';
import type { RingAreas } from './ring-state.js';

const LOG_ALL = 1n << BigInt(VHOST_FEATURE.LOG_ALL);
const PROTOCOL_FEATURES = 1n << BigInt(VHOST_FEATURE.PROTOCOL_FEATURES);

/** A part of the memory that the front-end shares. */
export interface SharedRegion {
  readonly gpa: bigint;
  readonly userAddress: bigint;
  readonly size: number;
  readonly fileOffset: number;
  readonly fd: number;
}

/** A ring to start. Areas are guest-physical addresses inside the shared regions; fds stay the caller's. */
export interface SharedRing extends RingAreas {
  readonly size: number;
  /** Where to start; 0 unless the ring ran before. */
  readonly base?: number;
  /** Without one, the back-end has to poll. */
  readonly kickFd?: number;
  readonly callFd?: number;
  readonly errFd?: number;
}

export interface SharedLog {
  readonly fd: number;
  readonly size: number;
  readonly offset: number;
}

export class FrontEnd implements AsyncDisposable {
  readonly #channel: RequestChannel;
  readonly #rings = new Map<number, SharedRing>();
  #regions: readonly SharedRegion[] = [];
  #features = 0n;
  #protocolFeatures = 0n;
  #logging = false;
  #log: SharedLog | undefined;

  /** Takes over `fd`, a connected socket. */
  constructor(fd: number) {
    this.#channel = new RequestChannel(fd);
  }

  /** Connects to a back-end that listens on `path`. */
  static connect(path: string): FrontEnd {
    return new FrontEnd(native.unixConnect(path));
  }

  /** Listens on `path` for one back-end. */
  static accept(path: string): Promise<FrontEnd> {
    return new Promise((resolve) => {
      const server = new UnixServer(path, (fd) => {
        server.close();
        resolve(new FrontEnd(fd));
      });
    });
  }

  /** Virtio features in force. */
  get features(): bigint {
    return this.#features;
  }

  get protocolFeatures(): bigint {
    return this.#protocolFeatures;
  }

  /** Resolves when the connection is over, with the error if there was one. Never rejects. */
  get closed(): Promise<Error | undefined> {
    return this.#channel.closed;
  }

  close(): void {
    this.#channel.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.closed;
  }

  // -- any message -------------------------------------------------------------------------------------------------

  /** Sends a message as it is. `fds` stay the caller's. An answer to it has to be awaited with `exchange`. */
  send(
    request: number,
    payload: Uint8Array,
    fds: readonly number[] = [],
    flags: number = FLAG.VERSION,
  ): void {
    this.#channel.send(request, payload, fds, flags);
  }

  /** Sends a message and resolves with the payload of its answer; rejects when the connection ends instead. */
  exchange(
    request: number,
    payload: Uint8Array,
    fds: readonly number[] = [],
    flags: number = FLAG.VERSION,
  ): Promise<Buffer> {
    return this.#channel.exchange(request, payload, fds, flags);
  }

  /** A request without an answer of its own: acknowledged when REPLY_ACK is there. Rejects with ENACK. */
  async #tell(name: RequestName, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    if (!hasBit(this.#protocolFeatures, PROTOCOL_FEATURE.REPLY_ACK)) {
      this.send(REQUEST[name], payload, fds);
      return;
    }
    const flags = FLAG.VERSION | FLAG.NEED_REPLY;
    this.#accepted(name, await this.exchange(REQUEST[name], payload, fds, flags));
  }

  #accepted(name: RequestName, answer: Buffer): void {
    const value = this.#number(name, answer);
    if (value !== 0n) throw new VhostPciError('message', 'ENACK', `${name}: refused with ${value}`);
  }

  async #ask(name: RequestName): Promise<bigint> {
    return this.#number(name, await this.exchange(REQUEST[name], Buffer.alloc(0)));
  }

  #number(name: RequestName, answer: Buffer): bigint {
    if (answer.length !== NUMBER.sizeOf(answer))
      throw new VhostPciError('connection', 'EBADSIZE', `${name}: an answer of ${answer.length} bytes`);
    return NUMBER.decode(answer);
  }

  // -- set-up ------------------------------------------------------------------------------------------------------

  /**
   * Agrees on features: those of `wanted` and `wantedProtocol` that the back-end offers. The virtio features go out
   * with `start`, as QEMU does, when the guest has chosen them.
   */
  async negotiate(wanted: bigint, wantedProtocol: bigint): Promise<{ features: bigint; queuePairs: number }> {
    this.send(REQUEST.SET_OWNER, Buffer.alloc(0));
    const offered = await this.#ask('GET_FEATURES');
    let queuePairs = 1;
    if ((offered & PROTOCOL_FEATURES) !== 0n) {
      const chosen = wantedProtocol & (await this.#ask('GET_PROTOCOL_FEATURES'));
      this.send(REQUEST.SET_PROTOCOL_FEATURES, NUMBER.encode(chosen));
      this.#protocolFeatures = chosen;
      if (hasBit(chosen, PROTOCOL_FEATURE.MQ)) queuePairs = Number(await this.#ask('GET_QUEUE_NUM'));
    }
    this.#features = wanted & offered & ~LOG_ALL;
    return { features: this.#features & ~PROTOCOL_FEATURES, queuePairs };
  }

  /** SET_FEATURES with what was agreed on. Without bit 30 among the wanted, the back-end enables all rings. */
  sendFeatures(): Promise<void> {
    return this.#tell('SET_FEATURES', NUMBER.encode(this.#features | (this.#logging ? LOG_ALL : 0n)));
  }

  /** Shares memory: by region when CONFIGURE_MEM_SLOTS was agreed on, otherwise by one table. */
  async setMemory(regions: readonly SharedRegion[]): Promise<void> {
    const wire = (r: SharedRegion) => ({
      gpa: r.gpa,
      userAddress: r.userAddress,
      size: BigInt(r.size),
      fileOffset: BigInt(r.fileOffset),
    });
    const old = this.#regions;
    this.#regions = regions;
    if (!hasBit(this.#protocolFeatures, PROTOCOL_FEATURE.CONFIGURE_MEM_SLOTS)) {
      await this.#tell(
        'SET_MEM_TABLE',
        MEMORY_TABLE.encode(regions.map(wire)),
        regions.map((r) => r.fd),
      );
      return;
    }
    const same = (a: SharedRegion, b: SharedRegion) =>
      a.gpa === b.gpa &&
      a.userAddress === b.userAddress &&
      a.size === b.size &&
      a.fileOffset === b.fileOffset;
    for (const region of old.filter((a) => !regions.some((b) => same(a, b))))
      await this.#tell('REM_MEM_REG', SINGLE_REGION.encode(wire(region)));
    for (const region of regions.filter((a) => !old.some((b) => same(a, b))))
      await this.#tell('ADD_MEM_REG', SINGLE_REGION.encode(wire(region)), [region.fd]);
  }

  /** The front-end's address of a guest-physical one. */
  toUser(gpa: bigint): bigint {
    const region = this.#regions.find((r) => gpa >= r.gpa && gpa < r.gpa + BigInt(r.size));
    if (!region) throw new VhostPciError('bug', 'EFAULT', `0x${gpa.toString(16)} is in no shared region`);
    return gpa - region.gpa + region.userAddress;
  }

  /** NUM, BASE, ADDR, KICK, CALL and ERR: the ring is started, in the enabled state that it has. */
  async startRing(index: number, ring: SharedRing): Promise<void> {
    this.#rings.set(index, ring);
    await this.#tell('SET_VRING_NUM', VRING_STATE.encode({ index, num: ring.size }));
    await this.#tell('SET_VRING_BASE', VRING_STATE.encode({ index, num: ring.base ?? 0 }));
    await this.#setAddress(index, ring);
    await this.#setRingFd('SET_VRING_KICK', index, ring.kickFd);
    await this.#setRingFd('SET_VRING_CALL', index, ring.callFd);
    if (ring.errFd !== undefined) await this.#setRingFd('SET_VRING_ERR', index, ring.errFd);
  }

  /** SET_VRING_CALL while the ring runs, as QEMU does when a guest masks a vector. */
  setCall(index: number, fd: number | undefined): Promise<void> {
    return this.#setRingFd('SET_VRING_CALL', index, fd);
  }

  /** SET_VRING_KICK of a ring that runs. */
  setKick(index: number, fd: number): Promise<void> {
    return this.#setRingFd('SET_VRING_KICK', index, fd);
  }

  #setAddress(index: number, ring: SharedRing): Promise<void> {
    return this.#tell(
      'SET_VRING_ADDR',
      VRING_ADDR.encode({
        index,
        flags: this.#logging ? RING_FLAG_LOG : 0,
        descriptor: this.toUser(ring.desc),
        available: this.toUser(ring.driver),
        used: this.toUser(ring.device),
        log: ring.device,
      }),
    );
  }

  #setRingFd(name: RequestName, index: number, fd: number | undefined): Promise<void> {
    const payload = NUMBER.encode(BigInt(index) | (fd === undefined ? RING_FD.NO_FD : 0n));
    return this.#tell(name, payload, fd === undefined ? [] : [fd]);
  }

  setEnabled(index: number, on: boolean): Promise<void> {
    return this.#tell('SET_VRING_ENABLE', VRING_STATE.encode({ index, num: on ? 1 : 0 }));
  }

  /** Everything that QEMU sends when its guest sets DRIVER_OK. `rings[i]` is ring i; all are enabled in the end. */
  async start(regions: readonly SharedRegion[], rings: readonly SharedRing[]): Promise<void> {
    await this.sendFeatures();
    await this.setMemory(regions);
    for (const [index, ring] of rings.entries()) await this.startRing(index, ring);
    if (this.#logging && this.#log) await this.#sendLog(this.#log);
    if (hasBit(this.#protocolFeatures, PROTOCOL_FEATURE.STATUS)) await this.setStatus(0xf);
    if ((this.#features & PROTOCOL_FEATURES) !== 0n)
      for (const index of rings.keys()) await this.setEnabled(index, true);
  }

  /** GET_VRING_BASE: stops the ring and resolves with its next index. */
  async stopRing(index: number): Promise<number> {
    const answer = await this.exchange(REQUEST.GET_VRING_BASE, VRING_STATE.encode({ index }));
    const { index: answered, num } = VRING_STATE.decode(answer);
    if (answered !== index)
      throw new VhostPciError('connection', 'EREPLY', `GET_VRING_BASE: ring ${answered} for ring ${index}`);
    this.#rings.delete(index);
    return num;
  }

  /** Stops all rings, as at a guest's reset; the bases by ring index. */
  async stop(): Promise<Map<number, number>> {
    const bases = new Map<number, number>();
    for (const index of [...this.#rings.keys()]) bases.set(index, await this.stopRing(index));
    if (hasBit(this.#protocolFeatures, PROTOCOL_FEATURE.STATUS)) await this.setStatus(0);
    return bases;
  }

  // -- migration ---------------------------------------------------------------------------------------------------

  /** Logging on: log, features, used rings. `fd` stays the caller's and has to stay open. */
  async startLogging(log: SharedLog): Promise<void> {
    await this.#sendLog(log);
    this.#log = log;
    await this.#setLogging(true);
  }

  /** A connection that takes the place of one that went while logging was on: `start` sends LOG_ALL and this log. */
  resumeLogging(log: SharedLog): void {
    this.#log = log;
    this.#logging = true;
  }

  async stopLogging(): Promise<void> {
    await this.#setLogging(false);
    this.#log = undefined;
  }

  async #setLogging(on: boolean): Promise<void> {
    this.#logging = on;
    await this.sendFeatures();
    for (const [index, ring] of this.#rings) await this.#setAddress(index, ring);
  }

  async #sendLog({ fd, size, offset }: SharedLog): Promise<void> {
    const payload = LOG_DESCRIPTION.encode({ size: BigInt(size), offset: BigInt(offset) });
    this.#accepted('SET_LOG_BASE', await this.exchange(REQUEST.SET_LOG_BASE, payload, [fd]));
  }

  /** "A fake RARP to notify the migration is terminated": `mac` is the guest's. */
  sendRarp(mac: Uint8Array): Promise<void> {
    return this.#tell('SEND_RARP', RARP.encode({ mac: Buffer.from(mac) }));
  }

  // -- device ------------------------------------------------------------------------------------------------------

  setMtu(mtu: number): Promise<void> {
    return this.#tell('NET_SET_MTU', NUMBER.encode(BigInt(mtu)));
  }

  setStatus(status: number): Promise<void> {
    return this.#tell('SET_STATUS', NUMBER.encode(BigInt(status)));
  }

  async getStatus(): Promise<number> {
    return Number(await this.#ask('GET_STATUS'));
  }

  resetDevice(): Promise<void> {
    this.#rings.clear();
    return this.#tell('RESET_DEVICE', Buffer.alloc(0));
  }
}
