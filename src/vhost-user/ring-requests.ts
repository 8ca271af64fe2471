/**
 * The requests that concern rings: sizes, addresses, descriptors, start and stop. A ring that cannot work breaks alone
 * (RingError); an index that names no ring drops the connection.
 */
import { native } from '../sys/native.js';
import { VhostPciError } from '../util/errors.js';
import { OwnedFd, type ReceivedFds } from './descriptors.js';
import type { BackEndDevice } from './device.js';
import type { RingAddressMessage, RingRequestHandler } from './messages.js';
import { type MutablePeerState, settled } from './peer-state.js';
import { RING_FLAG_LOG } from './protocol.js';
import {
  checkRingBase,
  checkRingSize,
  placeRing,
  type RingAreas,
  RingError,
  type RingState,
} from './ring-state.js';

const refuse = (code: string, message: string): VhostPciError =>
  new VhostPciError('connection', code, message);

const sameAreas = (a: RingAreas, b: RingAreas): boolean =>
  a.desc === b.desc && a.driver === b.driver && a.device === b.device;

export class RingRequests implements RingRequestHandler {
  readonly #state: MutablePeerState;
  readonly #device: BackEndDevice;

  constructor(state: MutablePeerState, device: BackEndDevice) {
    this.#state = state;
    this.#device = device;
  }

  setNum(index: number, num: number): void {
    const ring = this.#ring(index);
    checkRingSize(index, num, this.#state.features);
    if (ring.started && num !== ring.size)
      throw new RingError(index, 'EBUSY', 'another size while the ring is started');
    ring.size = num;
  }

  setAddress(m: RingAddressMessage): void {
    const ring = this.#ring(m.index);
    if ((m.flags & ~RING_FLAG_LOG) !== 0)
      throw refuse('EFLAGS', `ring ${m.index}: unknown flags 0x${m.flags.toString(16)}`);
    const areas = { desc: m.descriptor, driver: m.available, device: m.used };
    if (ring.started && ring.userAreas && !sameAreas(areas, ring.userAreas))
      throw new RingError(m.index, 'EBUSY', 'other addresses while the ring is started');
    ring.userAreas = areas;
    ring.logged = (m.flags & RING_FLAG_LOG) !== 0;
    ring.logAddress = m.log;
    if (ring.started) this.#place(ring);
  }

  setBase(index: number, base: number): void {
    const ring = this.#ring(index);
    if (ring.started && base !== ring.base)
      throw new RingError(index, 'EBUSY', 'another base while the ring is started');
    ring.base = base;
  }

  async getBase(index: number): Promise<number> {
    const ring = this.#ring(index);
    if (ring.started) await this.#stop(ring);
    else ring.broken = undefined;
    return ring.base;
  }

  setKick(index: number, fds: ReceivedFds): void {
    const ring = this.#ring(index);
    const old = ring.setFd('kick', this.#takeEventFd(fds));
    try {
      if (!ring.started) this.#start(ring);
      else this.#device.ringsChanged();
    } finally {
      old?.[Symbol.dispose]();
    }
  }

  setCall(index: number, fds: ReceivedFds): void {
    this.#setRingFd(this.#ring(index), 'call', fds);
  }

  setErr(index: number, fds: ReceivedFds): void {
    const ring = this.#ring(index);
    this.#setRingFd(ring, 'err', fds);
    if (ring.broken !== undefined && ring.err) native.eventfdSignal(ring.err.fd);
  }

  setEnabled(index: number, enable: number): void {
    const ring = this.#ring(index);
    if (enable > 1) throw refuse('EBADVALUE', `ring ${index}: ${enable} is neither 0 nor 1`);
    ring.enabled = enable === 1;
    this.#device.ringsChanged();
  }

  /** Gives a ring up until it is stopped, and tells the front-end through the ring's error eventfd. */
  break(index: number, cause: string): void {
    const ring = this.#state.rings[index];
    if (!ring || this.#state.over || !this.#giveUp(ring, cause)) return;
    this.#device.ringsChanged();
  }

  /** False when it was broken before: the first cause stays. */
  #giveUp(ring: RingState, cause: string): boolean {
    if (ring.broken !== undefined) return false;
    ring.broken = cause;
    if (ring.err) native.eventfdSignal(ring.err.fd);
    return true;
  }

  #ring(index: number): RingState {
    const ring = this.#state.rings[index];
    if (!ring) throw refuse('EINDEX', `ring ${index} of ${this.#state.rings.length}`);
    return ring;
  }

  #takeEventFd(fds: ReceivedFds): OwnedFd | undefined {
    const fd = fds.takeOne();
    return fd === undefined ? undefined : new OwnedFd(fd);
  }

  #setRingFd(ring: RingState, which: 'call' | 'err', fds: ReceivedFds): void {
    const old = ring.setFd(which, this.#takeEventFd(fds));
    try {
      this.#device.ringsChanged();
    } finally {
      old?.[Symbol.dispose]();
    }
  }

  #start(ring: RingState): void {
    // Started in any case: a broken ring too stays so until GET_VRING_BASE.
    ring.started = true;
    checkRingSize(ring.index, ring.size, this.#state.features);
    if (!ring.userAreas) throw new RingError(ring.index, 'ENOADDR', 'started without addresses');
    checkRingBase(ring, this.#state.features);
    this.#place(ring);
    this.#device.ringsChanged();
  }

  /** Without a memory table the ring waits for one; with a table it has to be inside. */
  #place(ring: RingState): void {
    const { memory, features } = this.#state;
    ring.areas = memory && placeRing(ring, memory, features);
    if (memory && !ring.areas)
      throw new RingError(ring.index, 'EFAULT', 'its addresses are in no memory region');
  }

  /**
   * After a change of memory; the device hears of it from the caller. A ring that is no longer inside waits: REM_MEM_REG may be followed by an ADD_MEM_REG of
   * the same memory cut differently.
   */
  replaceAll(): void {
    for (const ring of this.#state.rings) if (ring.started) this.#replace(ring);
  }

  #replace(ring: RingState): void {
    const { memory, features } = this.#state;
    try {
      ring.areas = memory && placeRing(ring, memory, features);
    } catch (error) {
      ring.areas = undefined;
      this.#giveUp(ring, (error as Error).message);
    }
  }

  async #stop(ring: RingState): Promise<void> {
    ring.stopped(await settled(this.#state, this.#device.stopRing(ring.index)));
  }

  async stopAll(): Promise<void> {
    for (const ring of this.#state.rings) if (ring.started) await this.#stop(ring);
  }

  enableAll(enabled: boolean): void {
    for (const ring of this.#state.rings) ring.enabled = enabled;
    this.#device.ringsChanged();
  }
}
