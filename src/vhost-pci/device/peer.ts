/**
 * One peer on its vhost-user connection, as the device process sees it: turns the back-end's events into what the driver is
 * to see, and keeps each ring's place while the driver comes and goes.
 */
import type { PeerMemory } from '../../memory/peer-memory.js';
import { type Mapping, native } from '../../sys/native.js';
import { VhostPciError } from '../../util/errors.js';
import { hasBit } from '../../util/flags.js';
import type { Log } from '../../util/log.js';
import { BackEnd } from '../../vhost-user/back-end.js';
import type { BackEndDevice } from '../../vhost-user/device.js';
import { logBytes, type PeerLog } from '../../vhost-user/peer-state.js';
import type { PeerRingState } from '../../vhost-user/ring-state.js';
import { FEATURE } from '../../virtio/features.js';
import { basePosition, PackedDesc, packedBase, positionByUsed } from '../../virtio/packed-position.js';
import { STATUS } from '../../virtio/status.js';
import { BAR, PAGE } from '../identity.js';
import { VIRTQ_FLAG, type Virtq } from '../messages.js';
import { DirtyLogMover } from './dirty-log.js';
import type { PciFunction } from './function.js';
import { type Link, type PublishedPeer, STOP_SETTLE_MS } from './link.js';
import type { Refusals } from './refusals.js';

export interface PeerOwner {
  readonly offeredFeatures: bigint;
  readonly queuePairs: number;
  readonly link: Link;
  readonly log: Log;
  readonly refusals: Refusals;
  /** The PCI function that shows memory of this file, made if need be. Throws (scope `connection`) to refuse the file. */
  functionFor(memory: PeerMemory): Promise<PciFunction>;
  /** The function in place, whatever it shows. */
  readonly function: PciFunction | undefined;
  /** The connection is over and everything of it released. */
  peerEnded(): void;
}

/** How long a front-end may take between starting its rings and enabling the first pair. */
const ENABLE_LIMIT_MS = 1000;

export class PeerConnection implements BackEndDevice {
  readonly #owner: PeerOwner;
  readonly #backEnd: BackEnd;
  #mover: DirtyLogMover | undefined;
  #mtu = 0;
  /** Runs while there are started rings and none is enabled; then they are given to the driver as they are. */
  #enabling: NodeJS.Timeout | undefined;
  #stayDisabled = false;
  /** Where the driver left a ring; the ring goes on from there. */
  readonly #left = new Map<number, number>();
  /** Rings that a driver has been given: where it got to is known only from `#left`, or from the used ring. */
  readonly #given = new Set<number>();
  /** A driver has been given rings over this connection. */
  #served = false;

  /** Takes over `fd`, a connected socket. */
  constructor(fd: number, owner: PeerOwner) {
    this.#owner = owner;
    this.#backEnd = new BackEnd(fd, this, owner.log);
    void this.#backEnd.done.then(() => owner.peerEnded());
  }

  get features(): bigint {
    return this.#backEnd.state.features;
  }

  get done(): Promise<void> {
    return this.#backEnd.done;
  }

  /** Its end has begun: another peer may be waiting for it. */
  get isClosing(): boolean {
    return this.#backEnd.isClosed;
  }

  close(): void {
    this.#backEnd.close();
  }

  /** What the driver is to see now; undefined while no queue pair is ready. */
  published(): PublishedPeer | undefined {
    const { memory, rings, features } = this.#backEnd.state;
    const fn = this.#owner.function;
    if (this.#backEnd.isClosed || !memory || !fn?.window.is(memory.file)) return undefined;
    const ready = (i: number): boolean => this.#ready(rings[i]) && this.#ready(rings[i ^ 1]);
    if (!rings.some((_, i) => ready(i))) return undefined;
    if (this.#owner.link.phase === 'off' && !this.#anyEnabled() && !this.#stayDisabled) return undefined;
    // Nothing may be written that nobody would log.
    if (this.#backEnd.state.logging && !this.#mover) return undefined;
    const log = this.#mover && { gpa: fn.bitmapAddress, size: BigInt(fn.layout.bitmapBytes) };
    return {
      info: {
        bar: BAR.PEER_MEMORY,
        features,
        mtu: this.#mtu,
        regions: memory.regions.map((r) => ({
          gpa: r.gpa,
          size: BigInt(r.size),
          bar_offset: BigInt(r.fileOffset),
        })),
      },
      virtqs: rings.map((ring, i) => (ready(i) ? this.#virtq(ring) : ABSENT)),
      ...(log && { log }),
    };
  }

  /** The driver has let go: remembers where. `indices` is undefined when it went without a word. */
  driverStopped(indices: readonly Virtq[] | undefined): void {
    for (const ring of this.#given) {
      const at = indices?.[ring];
      if (at && at.flags & VIRTQ_FLAG.STARTED) this.#left.set(ring, at.next_avail);
    }
    // It may have ended between a write and the bit that tells of it.
    if (!indices && this.#given.size > 0 && this.#mover) {
      this.#owner.log.warn('the driver went while the peer is migrated: every page counts as written');
      this.#mover.markAll();
    }
    this.#mover?.flush();
  }

  /** The driver has the rings now. */
  driverStarted(virtqs: readonly Virtq[]): void {
    this.#served = true;
    virtqs.forEach((q, i) => {
      if (!(q.flags & VIRTQ_FLAG.STARTED)) return;
      this.#given.add(i);
      this.#left.delete(i);
    });
  }

  ringBroken(ring: number): void {
    this.#owner.log.error(`the driver gave ring ${ring} of the peer up: its contents are malformed`);
    this.#backEnd.breakRing(ring, 'the driver found it malformed');
  }

  // -- BackEndDevice -----------------------------------------------------------------------------------------

  get offeredFeatures(): bigint {
    return this.#owner.offeredFeatures;
  }

  get queuePairs(): number {
    return this.#owner.queuePairs;
  }

  featuresSet(): void {
    this.#owner.link.changed();
  }

  async memoryChanged(memory: PeerMemory | undefined): Promise<void> {
    await this.#owner.link.letGo(this.#migrating);
    // The log goes on with the regions that there are now, and the function that shows them.
    this.#endLog();
    if (memory) {
      await this.#owner.functionFor(memory);
      const { logging, log } = this.#backEnd.state;
      if (logging && log && !this.#backEnd.isClosed) this.#beginLog(log);
    }
    this.#owner.link.changed();
  }

  ringsChanged(): void {
    const notifications = this.#owner.function?.notifications;
    for (const ring of this.#backEnd.state.rings)
      if (notifications?.setRing(ring.index, ring.kick, ring.call)) this.#owner.link.ringsMoved();
    this.#watchEnabling();
    this.#owner.link.changed();
  }

  /**
   * Front-ends enable rings right after they started them. What the peer sends in between must not be discarded, as a
   * driver has to do with a disabled ring; it waits. Rings that stay disabled are drained (vhost-user, ring states).
   */
  #watchEnabling(): void {
    const started = this.#backEnd.state.rings.some((ring) => this.#ready(ring));
    if (started && !this.#anyEnabled()) {
      this.#enabling ??= setTimeout(() => {
        this.#stayDisabled = true;
        this.#owner.link.changed();
      }, ENABLE_LIMIT_MS);
    } else this.#forgetEnabling();
  }

  #forgetEnabling(): void {
    clearTimeout(this.#enabling);
    this.#enabling = undefined;
    this.#stayDisabled = false;
  }

  async stopRing(index: number): Promise<number> {
    // The front-end takes the answer for the end of all writes. Without one QEMU 11.1 moves the guest all the same.
    await this.#owner.link.letGo(this.#migrating);
    const ring = this.#backEnd.state.rings[index] as PeerRingState;
    const at = this.#nextAvail(ring);
    this.#left.delete(index);
    this.#given.delete(index);
    this.#forgetEnabling();
    this.#mover?.flush();
    // The back-end closes the kick eventfd next.
    this.#owner.function?.notifications.setRing(index, undefined, ring.call);
    // Other pairs may go on.
    this.#owner.link.changed(STOP_SETTLE_MS);
    return this.#packed ? packedBase(at) : at;
  }

  async logChanged(log: PeerLog | undefined): Promise<void> {
    if (log && this.#owner.function && this.#backEnd.state.memory) {
      this.#beginLog(log);
      await this.#owner.link.setLogging(true);
    } else if (this.#backEnd.state.logging) {
      // Until there is a log, the rings are held back.
      await this.#owner.link.letGo(this.#migrating);
      this.#endLog();
    } else if (this.#mover) {
      await this.#owner.link.setLogging(false);
      this.#endLog();
    }
  }

  logSignalChanged(): void {
    const signal = this.#backEnd.state.logSignal;
    if (signal) this.#mover?.signalTo(signal.fd);
  }

  announce(mac: Buffer): void {
    if (this.#owner.link.phase === 'on') this.#owner.function?.send({ kind: 'announce', mac });
  }

  mtu(mtu: number): void {
    this.#mtu = mtu;
    if (this.#owner.link.phase === 'on') this.#owner.function?.send({ kind: 'mtu', mtu });
  }

  reset(): void {
    this.#owner.link.changed();
  }

  statusChanged(status: number): void {
    this.#owner.log.debug(`the peer's device status is 0x${status.toString(16)}`);
    // QEMU leaves private memory out of its table without a word. By now a table would have come: it precedes the rings.
    // Nobody can serve it: its link is down (D8).
    if (status & STATUS.DRIVER_OK && !this.#backEnd.state.memory)
      throw new VhostPciError(
        'connection',
        'ENOMEMORY',
        'the peer has started without memory: give the memory backend of its QEMU share=on, and start it again',
      );
  }

  async closed(error?: Error): Promise<void> {
    clearTimeout(this.#enabling);
    if (error) this.#owner.refusals.tell('peer disconnected', error);
    else this.#owner.log.info('peer disconnected');
    await this.#owner.link.letGo();
    for (const ring of this.#backEnd.state.rings)
      this.#owner.function?.notifications.setRing(ring.index, undefined, undefined);
    this.#endLog();
  }

  // ----------------------------------------------------------------------------------------------------------

  /** Writes have to be in the log, and there is a front-end that reads it. */
  readonly #migrating = (): boolean => this.#backEnd.state.logging && !this.#backEnd.hungUp;

  #anyEnabled(): boolean {
    const { rings } = this.#backEnd.state;
    return rings.some((ring, i) => {
      const other = rings[i ^ 1];
      return this.#ready(ring) && this.#ready(other) && ring.enabled && other?.enabled;
    });
  }

  #ready(ring: PeerRingState | undefined): boolean {
    return ring !== undefined && this.#backEnd.state.heldBy(ring) === undefined;
  }

  #virtq(ring: PeerRingState): Virtq {
    return {
      next_avail: this.#nextAvail(ring),
      flags: VIRTQ_FLAG.STARTED | (ring.kick ? 0 : VIRTQ_FLAG.POLL),
      enable: ring.enabled ? 1 : 0,
      num: ring.size,
      reserved: 0,
      desc: ring.areas?.desc ?? 0n,
      avail: ring.areas?.driver ?? 0n,
      used: ring.areas?.device ?? 0n,
    };
  }

  get #packed(): boolean {
    return hasBit(this.features, FEATURE.PACKED);
  }

  /**
   * Where the ring goes on. The ring says it, not the base: a driver that went without a word has at least used that much
   * (what it had taken and not returned is served again), virtio_user gives base 0 to the next back-end of a ring that is
   * far beyond it, and QEMU gives an old base of a packed ring when the last back-end went without a word. With an orderly
   * end the two are equal.
   */
  #nextAvail(ring: PeerRingState): number {
    const left = this.#left.get(ring.index);
    if (left !== undefined) return left;
    const base = this.#packed ? basePosition(ring.base) : ring.base;
    const { memory } = this.#backEnd.state;
    const fn = this.#owner.function;
    if (!memory || !ring.areas || !fn) return base;
    try {
      if (this.#packed) {
        const bytes = ring.size * PackedDesc.size;
        const offset = memory.guestToOffset(ring.areas.desc, bytes);
        return (
          (offset === undefined ? undefined : positionByUsed(fn.window.mapping.read(offset, bytes))) ?? base
        );
      }
      // VIRTIO 1.3, 2.7.8: struct virtq_used has its index behind 16 bits of flags.
      const offset = memory.guestToOffset(ring.areas.device + 2n, 2);
      return offset === undefined ? base : fn.window.mapping.load16(offset);
    } catch (error) {
      this.#owner.log.error(`ring ${ring.index}: its used index cannot be read: ${(error as Error).message}`);
      return base;
    }
  }

  /** Moves dirty bits into `log` from now on. Throws (scope `connection`) when that cannot be. */
  #beginLog(log: PeerLog): void {
    const fn = this.#owner.function;
    const { memory } = this.#backEnd.state;
    if (!fn || !memory) return;
    const { mapping, offset } = mapLog(log, Number(logBytes(memory.end)));
    let mover: DirtyLogMover;
    try {
      const failed = (error: VhostPciError): void => this.#backEnd.close(error);
      mover = new DirtyLogMover(fn.pages, fn.layout, mapping, memory.regions, failed, offset);
    } catch (error) {
      mapping.close();
      throw error;
    }
    this.#endLog();
    this.#mover = mover;
    this.logSignalChanged();
    // A connection that begins with a log takes the place of one that broke in the middle of a migration, perhaps with
    // the process that served it: what was written last, nobody moved. If it is a new guest, this costs one more pass.
    if (!this.#served) mover.markAll();
  }

  #endLog(): void {
    this.#mover?.flush();
    this.#mover?.[Symbol.dispose]();
    this.#mover = undefined;
  }
}

const ABSENT: Virtq = {
  next_avail: 0,
  flags: 0,
  enable: 0,
  num: 0,
  reserved: 0,
  desc: 0n,
  avail: 0n,
  used: 0n,
};

/** Maps the first `bytes` of a log, whatever its size is, from the page on that it starts in. */
function mapLog(log: PeerLog, bytes: number): { mapping: Mapping; offset: number } {
  const offset = log.offset % PAGE;
  try {
    const size = offset + Math.min(log.size, bytes);
    return { mapping: new native.Mapping(log.fd, log.offset - offset, size, true), offset };
  } catch (cause) {
    throw new VhostPciError(
      'connection',
      'ELOGMAP',
      `the dirty log cannot be mapped: ${(cause as Error).message}`,
      {
        cause,
      },
    );
  }
}
