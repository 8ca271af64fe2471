/**
 * The vhost-pci-net driver (the seed, "Device Operation"): follows the device's control messages and makes sure that the
 * peer's memory is touched only between ON and OFF. What is done with a peer is the owner's business; the owner's callbacks
 * run one after the other, in the order of the messages.
 */
import { rarpAnnouncement } from '../../net/rarp.js';
import type { PciHandle } from '../../pci/handle.js';
import type { DirtyLog, RingSignals } from '../../sys/native.js';
import { errorText, VhostPciError } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { type MemInfoBar, type Message, VIRTQ_FLAG, type Virtq } from '../messages.js';
import { doorbellOffset, SLEEP_OFFSET } from '../shared-pages.js';
import { InitialisedDevice, type MappedBar } from './initialise.js';
import { dirtyLogAt, type LogBase } from './log-base.js';
import { isStarted, Peer, peerTable, ringSignals } from './peer.js';
import { PeerEventfds } from './peer-eventfds.js';

export interface DriverOwner {
  readonly log: Log;
  /** Feature bits to accept; all that this driver knows by default. */
  readonly accept?: bigint;
  /** To wait on the peer's own eventfds and signal them, where the device hands them out (docs/protocol.md, P7). */
  readonly direct?: boolean;
  /** The peer may be touched until `peerOff` is called. With a log, no write may go without it, not even the first. */
  peerOn(peer: Peer, log: DirtyLog | undefined): Promise<void>;
  /** When this resolves, nothing touches the peer's memory any more. Also called after a `peerOn` that failed. */
  peerOff(reason: string): Promise<void>;
  /** The peer's front-end allowed or forbade rings; asked by the peer's virtqueue index. */
  enabled(ring: (index: number) => boolean): Promise<void>;
  /** Rings have other signals from now on; asked by the peer's virtqueue index. */
  rewire(signals: (ring: number) => RingSignals): Promise<void>;
  /** When this resolves, every write is logged (undefined: no more logging). */
  dirtyLog(log: DirtyLog | undefined): Promise<void>;
  /** Sends this frame out of the receiving side: the peer has moved. */
  announce(frame: Uint8Array): void;
  mtu(mtu: number): void;
  /** Something that the user has to know; the driver goes on. */
  error(error: unknown): void;
}

/** How long the device may take to confirm the disconnection. */
const LEAVE_LIMIT_MS = 5000;
/** Pause before the device's status is looked at: with a single vector every kick of the peer is an occasion. */
const CHECK_MS = 100;
/** Code of a peer's memory that this process has no room for. */
const UNMAPPED = 'ENOMAP';

export class Driver {
  /** Resolves with the reason when the device is gone or the driver was closed; all is let go by then. */
  readonly ended: Promise<string>;
  readonly #owner: DriverOwner;
  readonly #log: Log;
  readonly #device: InitialisedDevice;
  readonly #handle: PciHandle;
  #end!: (reason: string) => void;
  /** Messages are worked off one after the other. */
  #work: Promise<void> = Promise.resolve();
  #info: MemInfoBar | undefined;
  #memory: MappedBar | undefined;
  #virtqs: readonly Virtq[] = [];
  #logBase: LogBase | undefined;
  #logging = false;
  #peer: Peer | undefined;
  #eventfds: PeerEventfds | undefined;
  #offConfirmed: (() => void) | undefined;
  #closing: Promise<void> | undefined;
  /** The device is gone or has failed: nothing is said to it any more. */
  #failed = false;
  #check: NodeJS.Timeout | undefined;

  private constructor(handle: PciHandle, device: InitialisedDevice, owner: DriverOwner) {
    this.#handle = handle;
    this.#device = device;
    this.#owner = owner;
    this.#log = owner.log;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    handle.gone.then((error) => this.#lost(error));
  }

  /**
   * Initialises the device up to DRIVER_OK. Throws (scope `device` or `usage`) when this is no vhost-pci-net device or it
   * refuses. The handle stays the caller's.
   */
  static async start(handle: PciHandle, owner: DriverOwner): Promise<Driver> {
    let driver: Driver | undefined;
    const device = await InitialisedDevice.create(handle, owner.accept, owner.log, () => driver?.harvest());
    driver = new Driver(handle, device, owner);
    try {
      await device.driverOk();
    } catch (error) {
      driver.#closing = Promise.resolve();
      await device.release();
      throw error;
    }
    driver.harvest();
    return driver;
  }

  /** Takes what waits in the control receiveq. */
  harvest(): void {
    if ((this.#closing && !this.#offConfirmed) || this.#failed) return;
    try {
      const messages = this.#device.control.harvest();
      if (messages.length === 0) this.#checkSoon();
      for (const message of messages) {
        this.#log.debug(
          { message: message.kind, ...('on' in message && { on: message.on }) },
          'from the device',
        );
        this.#enqueue(async () => {
          try {
            await this.#handleMessage(message);
          } finally {
            if (!this.#failed) this.#device.control.done();
          }
        });
      }
    } catch (error) {
      void this.#fail(error);
    }
  }

  /** A ring of the peer was given up: tells the device, which signals the ring's err eventfd. */
  ringBroken(ring: number): void {
    this.#enqueue(async () => {
      if (this.#peer) this.#device.control.send({ kind: 'broken', ring });
    });
  }

  /** An interrupt without a message may be a change of the device's status (VIRTIO 1.3, 2.1.2), or a kick of the peer. */
  #checkSoon(): void {
    this.#check ??= setTimeout(() => {
      this.#check = undefined;
      if (this.#closing || this.#failed) return;
      this.#device.needsReset().then(
        (needed) => {
          if (needed) void this.#fail(new VhostPciError('device', 'ERESET', 'the device needs a reset'));
        },
        () => {
          // Gone, which `handle.gone` tells.
        },
      );
    }, CHECK_MS);
    this.#check.unref();
  }

  /**
   * The device's side of a control queue is impossible, or it asks for a reset: lets go of the peer, resets it and ends, so
   * that the owner can start over.
   */
  async #fail(error: unknown): Promise<void> {
    if (this.#failed) return;
    this.#owner.error(error);
    await this.#lost(new VhostPciError('device', 'EDEVICE', `the device failed: ${errorText(error)}`));
    this.#offConfirmed?.();
  }

  /**
   * Lets go of the peer, asks the device for OFF and waits for it (the seed: the driver MUST NOT unload until it is updated
   * with OFF), then resets the device. When the device does not answer within the limit, that is reported.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const confirmed = new Promise<'off'>((resolve) => {
      this.#offConfirmed = () => resolve('off');
    });
    await this.#enqueue(async () => {
      const virtqs = await this.#letGo('the driver is closing');
      if (!this.#failed) this.#sendLeft(virtqs);
      else this.#offConfirmed?.();
    });
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<'late'>((resolve) => {
      timer = setTimeout(resolve, LEAVE_LIMIT_MS, 'late');
    });
    const outcome = await Promise.race([confirmed, limit, this.#handle.gone]);
    clearTimeout(timer);
    this.#offConfirmed = undefined;
    if (outcome === 'late')
      this.#owner.error(
        new VhostPciError(
          'device',
          'ETIMEDOUT',
          `the device did not confirm the disconnection within ${LEAVE_LIMIT_MS / 1000} s; the driver unloads without it`,
        ),
      );
    await this.#work;
    await this.#device.release();
    this.#end('closed');
  }

  /** The device is gone: nothing that it said holds any more. */
  async #lost(error: Error): Promise<void> {
    this.#failed = true;
    await this.#enqueue(async () => void (await this.#letGo(error.message)));
    if (this.#closing) return;
    this.#closing = Promise.resolve();
    await this.#device.release();
    this.#end(error.message);
  }

  #enqueue(work: () => Promise<void>): Promise<void> {
    this.#work = this.#work.then(work).catch((error) => {
      const { code } = error as { code?: string };
      if (code === UNMAPPED || (code === 'EBADRING' && !(error instanceof VhostPciError)))
        void this.#fail(error);
      else this.#owner.error(error);
    });
    return this.#work;
  }

  async #handleMessage(message: Message): Promise<void> {
    switch (message.kind) {
      case 'mem-info-bar':
        return this.#memInfo(message);
      case 'virtq-info':
        return this.#virtqInfo(message.virtqs);
      case 'connection':
        return message.on ? this.#turnOn() : this.#turnOff();
      case 'log-base':
        this.#logBase = message;
        return;
      case 'logging':
        return this.#setLogging(message.on);
      case 'announce':
        return this.#owner.announce(rarpAnnouncement(message.mac));
      case 'mtu':
        return this.#owner.mtu(message.mtu);
      default:
        this.#log.warn(`the device sent ${message.kind}, which only a driver sends; ignored`);
    }
  }

  /** The seed, "Peer Memory Info": map the BAR, tell where. Nothing is read through the mapping before ON. */
  async #memInfo(info: MemInfoBar): Promise<void> {
    await this.#letGo('the peer changed');
    if (this.#closing) return;
    const memory = await this.#device.mapBar(info.bar).catch((cause) => {
      throw unmapped(cause);
    });
    this.#memory = memory;
    this.#info = info;
    const address = memory.mapping.address - BigInt(memory.area.offset);
    this.#device.control.send({ kind: 'mem-info-gva', address });
  }

  async #virtqInfo(virtqs: readonly Virtq[]): Promise<void> {
    if (!this.#peer) {
      this.#virtqs = virtqs;
      return;
    }
    if (virtqs.some((q) => q.flags & VIRTQ_FLAG.MOVED)) await this.#takeAgain();
    // While ON only `enable` changes (P5).
    this.#virtqs = this.#virtqs.map((q, i) => ({ ...q, enable: virtqs[i]?.enable ?? 0 }));
    await this.#owner.enabled((ring) => (virtqs[ring]?.enable ?? 0) !== 0);
    this.#device.control.send({ kind: 'virtq-info', virtqs: this.#peer.stoppedVirtqs(this.#virtqs) });
  }

  async #turnOn(): Promise<void> {
    const info = this.#info;
    const memory = this.#memory;
    if (this.#peer || this.#closing) return;
    if (!info || !memory)
      throw new VhostPciError(
        'device',
        'EPROTO',
        'the device sent ON before the memory info; it was ignored',
      );
    this.#eventfds?.[Symbol.dispose]();
    this.#eventfds = await this.#takeEventfds();
    const table = peerTable(info, memory.area, memory.mapping);
    let peer: Peer;
    try {
      peer = new Peer(info, table, this.#virtqs, (ring) => this.#signals(ring));
    } finally {
      // The queues keep it for as long as they live.
      table.close();
    }
    for (const { ring } of peer.refused) this.#device.control.send({ kind: 'broken', ring });
    const refused = peer.refused.map(
      ({ ring, cause }) => new VhostPciError('device', 'EBADRING', `peer rings: ring ${ring}: ${cause}`),
    );
    // Nothing is left to serve: it stays off.
    if (peer.pairs.length === 0 && refused[0]) throw refused[0];
    for (const error of refused) this.#owner.error(error);
    this.#peer = peer;
    if (peer.pairs.length === 0)
      this.#owner.error(new VhostPciError('device', 'EPROTO', 'the device sent ON without started rings'));
    try {
      await this.#owner.peerOn(peer, this.#logging ? await this.#dirtyLog(memory) : undefined);
    } catch (error) {
      await this.#letGo('it could not be served');
      throw error;
    }
  }

  async #turnOff(): Promise<void> {
    if (this.#offConfirmed) {
      this.#offConfirmed();
      return;
    }
    this.#sendLeft(await this.#letGo('the device reported it'));
    this.#logging = false;
  }

  /** Where the rings were left, and that they were (P5). */
  #sendLeft(virtqs: readonly Virtq[]): void {
    if (virtqs.length > 0) this.#device.control.send({ kind: 'virtq-info', virtqs });
    this.#device.control.send({ kind: 'connection', on: false });
  }

  async #setLogging(on: boolean): Promise<void> {
    this.#logging = on;
    // A peer that is served has its memory mapped.
    if (this.#peer && this.#memory)
      await this.#owner.dirtyLog(on ? await this.#dirtyLog(this.#memory) : undefined);
    this.#device.control.send({ kind: 'logging', on });
  }

  #dirtyLog(memory: MappedBar): Promise<DirtyLog> {
    return dirtyLogAt(this.#device, this.#logBase, memory);
  }

  /** Nothing touches the peer's memory when this resolves; it is unmapped. Resolves to the rings as they were left. */
  async #letGo(reason: string): Promise<readonly Virtq[]> {
    const peer = this.#peer;
    let virtqs = this.#virtqs;
    this.#virtqs = [];
    if (peer) {
      await this.#owner.peerOff(reason);
      virtqs = peer.stoppedVirtqs(virtqs);
      this.#peer = undefined;
      peer.close();
    }
    this.#eventfds?.[Symbol.dispose]();
    this.#eventfds = undefined;
    this.#memory?.mapping.close();
    this.#memory = undefined;
    this.#info = undefined;
    return virtqs.some(isStarted) ? virtqs : [];
  }

  async #takeEventfds(): Promise<PeerEventfds | undefined> {
    if (!this.#owner.direct) return undefined;
    // What goes wrong here ends the connection to the device, which `handle.gone` tells.
    return PeerEventfds.take(this.#handle, this.#virtqs.length).catch(() => undefined);
  }

  /** The peer has replaced eventfds. Without an answer OFF is on its way, and those at hand do until then. */
  async #takeAgain(): Promise<void> {
    const before = this.#eventfds;
    const now = await this.#takeEventfds();
    if (!now) return;
    this.#eventfds = now;
    try {
      await this.#owner.rewire((ring) => ringSignals(this.#virtqs[ring] as Virtq, this.#signals(ring)));
    } finally {
      before?.[Symbol.dispose]();
    }
  }

  #signals(ring: number): RingSignals {
    const kickFd = this.#device.interrupts.pairFd(ring >> 1);
    return {
      ...(kickFd !== undefined && { kickFd }),
      notify: {
        ...this.#device.peerNotifyTarget(ring),
        doorbell: { mapping: this.#device.pages, offset: doorbellOffset(ring), sleepOffset: SLEEP_OFFSET },
      },
      ...this.#eventfds?.signals(ring),
    };
  }
}

/**
 * A system call failed for want of memory or descriptors. The device is let go of, which takes the peer's link down, and
 * opened again: the peer is told the truth meanwhile, and served once there is room.
 */
function unmapped(cause: unknown): unknown {
  if (cause instanceof VhostPciError) return cause;
  const text = `the peer's memory cannot be mapped: ${errorText(cause)}. Raise the limits of this process ("ulimit -v", "ulimit -n")`;
  return new VhostPciError('device', UNMAPPED, text, { cause });
}
