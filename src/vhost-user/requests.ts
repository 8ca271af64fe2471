/**
 * What the requests of a front-end mean: checks them against the state, changes it, tells the device. Knows no socket
 * and no message layout; back-end.ts calls it and turns errors into answers.
 */
import { PeerMemory, type RawRegion } from '../memory/peer-memory.js';
import { VhostPciError } from '../util/errors.js';
import { bits, hasBit } from '../util/flags.js';
import { OwnedFd, type ReceivedFds } from './descriptors.js';
import type { BackEndDevice } from './device.js';
import type { RequestHandler } from './messages.js';
import { DirtyLogFile, logBytes, type MutablePeerState, settled } from './peer-state.js';
import { MAX_TABLE_REGIONS, PROTOCOL_FEATURE, VHOST_FEATURE } from './protocol.js';
import { RingRequests } from './ring-requests.js';

/** Regions of ADD_MEM_REG; QEMU asks for it and keeps below. */
const MAX_MEMORY_SLOTS = 64;
/** The MTU that IPv4 needs at least (RFC 791), and what fits virtio's u16. */
const MTU_RANGE = [68n, 65535n] as const;

const VHOST_BITS = bits(VHOST_FEATURE.LOG_ALL, VHOST_FEATURE.PROTOCOL_FEATURES);

export const OFFERED_PROTOCOL_FEATURES = bits(
  PROTOCOL_FEATURE.MQ,
  PROTOCOL_FEATURE.LOG_SHMFD,
  PROTOCOL_FEATURE.RARP,
  PROTOCOL_FEATURE.REPLY_ACK,
  PROTOCOL_FEATURE.MTU,
  PROTOCOL_FEATURE.RESET_DEVICE,
  PROTOCOL_FEATURE.CONFIGURE_MEM_SLOTS,
  PROTOCOL_FEATURE.STATUS,
);

const refuse = (code: string, message: string): VhostPciError =>
  new VhostPciError('connection', code, message);

export class Requests implements RequestHandler {
  readonly #state: MutablePeerState;
  readonly #device: BackEndDevice;
  readonly rings: RingRequests;

  constructor(state: MutablePeerState, device: BackEndDevice) {
    this.#state = state;
    this.#device = device;
    this.rings = new RingRequests(state, device);
  }

  // -- features --------------------------------------------------------------------------------------------------

  getFeatures(): bigint {
    return this.#device.offeredFeatures | VHOST_BITS;
  }

  async setFeatures(features: bigint): Promise<void> {
    const state = this.#state;
    const extra = features & ~this.getFeatures();
    if (extra !== 0n) throw refuse('EFEATURE', `features that were not offered: 0x${extra.toString(16)}`);
    const virtio = features & ~VHOST_BITS;
    const logging = hasBit(features, VHOST_FEATURE.LOG_ALL);
    if (logging && !hasBit(state.protocolFeatures, PROTOCOL_FEATURE.LOG_SHMFD))
      throw refuse('ENOLOG', 'LOG_ALL without LOG_SHMFD: there is no way to get a log');
    if (virtio !== state.features && state.anyStarted)
      throw refuse('EBUSY', 'other features while rings are started');
    if (logging) checkLog(state.log, state.memory);
    if (!state.negotiated || virtio !== state.features) this.#device.featuresSet(virtio);
    state.features = virtio;
    state.negotiated = true;
    // "Upon receiving a SET_FEATURES message without PROTOCOL_FEATURES set, the back-end must enable all rings."
    if (!hasBit(features, VHOST_FEATURE.PROTOCOL_FEATURES)) this.rings.enableAll(true);
    if (logging !== state.logging) await this.#switchLogging(logging);
  }

  getProtocolFeatures(): bigint {
    return OFFERED_PROTOCOL_FEATURES;
  }

  setProtocolFeatures(features: bigint): void {
    const extra = features & ~OFFERED_PROTOCOL_FEATURES;
    if (extra !== 0n)
      throw refuse('EFEATURE', `protocol features that were not offered: 0x${extra.toString(16)}`);
    this.#state.protocolFeatures = features;
  }

  getQueueNum(): bigint {
    return BigInt(this.#device.queuePairs);
  }

  // -- device ----------------------------------------------------------------------------------------------------

  setOwner(): void {
    // "Can be used on the back-end as a session start flag": a connection is a session here.
  }

  disableRings(): void {
    this.rings.enableAll(false);
  }

  async resetDevice(): Promise<void> {
    await this.#stopAll();
    const state = this.#state;
    for (const ring of state.rings) ring.reset();
    if (state.logging) await this.#switchLogging(false);
    // The memory stays: with CONFIGURE_MEM_SLOTS QEMU sends only what differs from the regions it sent before.
    state.features = 0n;
    state.negotiated = false;
    state.status = 0;
    this.#device.reset();
  }

  async getVringBase(index: number): Promise<number> {
    const base = await this.rings.getBase(index);
    await this.#afterStop();
    return base;
  }

  async #stopAll(): Promise<void> {
    await this.rings.stopAll();
    await this.#afterStop();
  }

  /** QEMU frees its log after the last ring, and sends another one when rings start again with LOG_ALL. */
  async #afterStop(): Promise<void> {
    const { anyStarted, logging, log } = this.#state;
    if (!anyStarted && logging && log) await this.#setLog(undefined);
  }

  getStatus(): bigint {
    return BigInt(this.#state.status);
  }

  async setStatus(status: bigint): Promise<void> {
    if (status > 0xffn) throw refuse('ESTATUS', `0x${status.toString(16)} is no device status`);
    // VIRTIO 1.3, 2.1: writing 0 resets the device. A front-end has stopped its rings before.
    if (status === 0n) await this.#stopAll();
    this.#state.status = Number(status);
    this.#device.statusChanged(this.#state.status);
  }

  sendRarp(mac: Buffer): void {
    this.#device.announce(mac);
  }

  setMtu(mtu: bigint): void {
    if (mtu < MTU_RANGE[0] || mtu > MTU_RANGE[1])
      throw new VhostPciError('message', 'EMTU', `an MTU of ${mtu} is not possible`);
    this.#device.mtu(Number(mtu));
  }

  // -- memory ----------------------------------------------------------------------------------------------------

  getMaxMemSlots(): bigint {
    return BigInt(MAX_MEMORY_SLOTS);
  }

  async setMemTable(regions: readonly RawRegion[], fds: ReceivedFds): Promise<void> {
    await this.#setMemory(new PeerMemory(regions, fds.takeAll(), MAX_TABLE_REGIONS));
  }

  async addMemReg(region: RawRegion, fds: ReceivedFds): Promise<void> {
    const fd = fds.takeOne()!;
    const { memory } = this.#state;
    await this.#setMemory(
      memory ? memory.with(region, fd, MAX_MEMORY_SLOTS) : new PeerMemory([region], [fd], MAX_MEMORY_SLOTS),
    );
  }

  async remMemReg(region: RawRegion): Promise<void> {
    const { memory } = this.#state;
    if (!memory) throw refuse('ENOREGION', 'there is no memory region to remove');
    await this.#setMemory(memory.without(region));
  }

  /** Takes over `memory`. */
  async #setMemory(memory: PeerMemory | undefined): Promise<void> {
    const state = this.#state;
    try {
      if (state.logging) checkLog(state.log, memory);
    } catch (error) {
      memory?.[Symbol.dispose]();
      throw error;
    }
    const old = state.memory;
    state.memory = memory;
    try {
      this.rings.replaceAll();
      await settled(this.#state, this.#device.memoryChanged(memory));
    } finally {
      old?.[Symbol.dispose]();
    }
    if (state.anyStarted) this.#device.ringsChanged();
  }

  // -- dirty log -------------------------------------------------------------------------------------------------

  async setLogBase(size: bigint, offset: bigint, fds: ReceivedFds): Promise<void> {
    const state = this.#state;
    const log = new DirtyLogFile(fds.takeOne()!, size, offset);
    try {
      checkLog(log, state.memory);
    } catch (error) {
      log[Symbol.dispose]();
      throw error;
    }
    // QEMU sends a second log, larger, when memory is added during a migration: the old one gets its last bits first.
    await this.#setLog(log);
  }

  setLogFd(fds: ReceivedFds): void {
    this.#state.logSignal?.[Symbol.dispose]();
    this.#state.logSignal = new OwnedFd(fds.takeOne()!);
    this.#device.logSignalChanged();
  }

  async #setLog(log: DirtyLogFile | undefined): Promise<void> {
    const state = this.#state;
    const old = state.log;
    state.log = log;
    try {
      if (state.logging) await settled(this.#state, this.#device.logChanged(log));
    } finally {
      old?.[Symbol.dispose]();
    }
    if (state.logging && state.anyStarted) this.#device.ringsChanged();
  }

  async #switchLogging(on: boolean): Promise<void> {
    const state = this.#state;
    state.logging = on;
    if (state.log || (on && state.anyStarted))
      await settled(this.#state, this.#device.logChanged(on ? state.log : undefined));
    // Afterwards the front-end frees its log; the next migration brings another one.
    if (!on) {
      state.log?.[Symbol.dispose]();
      state.log = undefined;
    }
    if (state.anyStarted) this.#device.ringsChanged();
  }
}

function checkLog(log: DirtyLogFile | undefined, memory: PeerMemory | undefined): void {
  if (!log || !memory) return;
  if (!log.covers(memory))
    throw refuse(
      'ELOGSIZE',
      `a log of ${log.size} bytes is too small, the memory needs ${logBytes(memory.end)}`,
    );
  if (log.overlaps(memory)) throw refuse('EOVERLAP', 'the log overlaps the memory that it is for');
}
