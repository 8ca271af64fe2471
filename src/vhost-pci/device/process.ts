/**
 * The device process: a vhost-user back-end for the peer on one side, a vfio-user server with the vhost-pci-net function for
 * the receiver on the other. Admits peers and receivers, and pairs them.
 */
import { closeSync } from 'node:fs';
import { totalmem } from 'node:os';
import type { PeerMemory } from '../../memory/peer-memory.js';
import { UnixServer } from '../../sys/unix-server.js';
import { errorText, usageError, VhostPciError } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { Server } from '../../vfio-user/server.js';
import { describeFeatures } from '../../virtio/features.js';
import { NET_FEATURE } from '../../virtio-net/features.js';
import { agreedFeatures, excessFeatures, peerFeatures } from '../features.js';
import type { Message } from '../messages.js';
import { type FunctionOptions, type FunctionOwner, PciFunction } from './function.js';
import { Link, type LinkEnds } from './link.js';
import { PeerConnection, type PeerOwner } from './peer.js';
import { ReceiverPlug } from './receiver-qmp.js';
import { Refusals } from './refusals.js';
import { PeerWindow } from './window.js';

export interface DeviceProcessOptions extends FunctionOptions {
  /** Listen for the peer's front-end here, or take this connected socket. */
  readonly socketPath?: string;
  readonly fd?: number;
  /** Listen for the receiver here. */
  readonly vfioUser: string;
  /** Window mode; without it, adopt mode. */
  readonly window?: { readonly path: string; readonly size: number };
  /** Adopt mode: the running VM that the device is plugged into while there is a peer. Wants MSI. */
  readonly receiver?: { readonly qmp: string; readonly bus: string };
}

const ONE_PEER = new VhostPciError('connection', 'EBUSY', 'the device serves one peer at a time');

/** How long a second front-end waits for the first to end. */
const GRACE_MS = 300;
/** Bytes of a memory file for each byte of the host's memory: the bitmap of BAR4 grows with the file. */
const MEMORY_FACTOR = 4;
/** How long a peer with other memory is kept waiting until the receiving VM has let go of the former's. */
const UNPLUG_LIMIT_MS = 10_000;
/** How long a driver may take to let go when it cannot be heard: its processors may wait for answers of ours (QEMU: 5 s). */
const UNHEARD_LIMIT_MS = 15_000;
/** The same when this process ends. */
const LAST_UNPLUG_LIMIT_MS = 5000;

export class DeviceProcess implements AsyncDisposable, PeerOwner, FunctionOwner, LinkEnds {
  /** Resolves when there is nothing left to serve: the connection given with `fd` has ended. */
  readonly ended: Promise<void>;
  readonly link: Link;
  readonly log: Log;
  readonly refusals: Refusals;
  readonly queuePairs: number;
  readonly #options: DeviceProcessOptions;
  #end!: () => void;
  #function: PciFunction | undefined;
  #server: Server | undefined;
  #listener: UnixServer | undefined;
  #peer: PeerConnection | undefined;
  #nextPeer: { readonly fd: number; readonly timer: NodeJS.Timeout } | undefined;
  /** What the driver accepted; undefined until one has been there. */
  #accepted: bigint | undefined;
  /** A driver has been there: from then on a peer is admitted only while there is one (D8). */
  #hadDriver = false;
  #replacing = false;
  /** Hot-plug, and its device is on its way out: nobody is admitted. */
  readonly #plug: ReceiverPlug | undefined;
  #retiring: Promise<void> | undefined;
  /** The present peer was sent away, and is expected back. */
  #dismissed = false;
  #closed = false;

  private constructor(options: DeviceProcessOptions) {
    this.#options = options;
    this.log = options.log;
    this.refusals = new Refusals(options.log);
    this.queuePairs = options.queuePairs;
    this.link = new Link(this, options.log);
    const { receiver, vfioUser, log } = options;
    this.#plug = receiver && new ReceiverPlug({ ...receiver, vfioUser, log });
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** Throws usage errors for paths that cannot be used. */
  static async start(options: DeviceProcessOptions): Promise<DeviceProcess> {
    const device = new DeviceProcess(options);
    try {
      if (options.window) {
        if (options.window.size > MEMORY_FACTOR * totalmem())
          throw usageError(
            `--peer-memory-size ${options.window.size}: more than ${MEMORY_FACTOR} times the ${totalmem()} bytes of this host`,
          );
        const window = PeerWindow.create(options.window.path, options.window.size);
        device.#install(window);
        if (window.shortage > 0)
          device.log.warn(
            `the file system of ${options.window.path} has ${window.shortage} bytes too little for all of the peer's ` +
              'memory: its QEMU ends by SIGBUS when there is none left. Make room, or name another place',
          );
      } else {
        // Listened on when a peer brings its memory; a path that cannot be is told now.
        new UnixServer(options.vfioUser, (fd) => closeSync(fd)).close();
      }
      if (options.fd !== undefined) device.#accept(options.fd);
      else device.#admit();
    } catch (error) {
      await device[Symbol.asyncDispose]();
      throw error;
    }
    return device;
  }

  get function(): PciFunction | undefined {
    return this.#function;
  }

  get offeredFeatures(): bigint {
    return peerFeatures(this.#accepted);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#listener?.close();
    const next = this.#takeNext();
    if (next !== undefined) closeSync(next);
    // The peer first, while the driver is still there to let go of it.
    this.#peer?.close();
    await this.#peer?.done;
    if (this.#plug && !(await this.#plug.unplug(LAST_UNPLUG_LIMIT_MS)))
      this.log.warn('the device is left in the receiving VM, which has not let go of it in time');
    await this.#plug?.[Symbol.asyncDispose]();
    await this.#retiring;
    await this.#uninstall();
    this.link.close();
    this.#end();
  }

  // -- peers -------------------------------------------------------------------------------------------------

  /** Listens for peers while they are admitted; else the path is gone, and a front-end's attempts fail at once. */
  #admit(): void {
    const path = this.#options.socketPath;
    if (path === undefined || this.#closed) return;
    if (this.#admits) {
      this.#listener ??= new UnixServer(path, (fd) => this.#accept(fd));
    } else {
      this.#listener?.close();
      this.#listener = undefined;
    }
  }

  get #admits(): boolean {
    return !this.#retiring && (!this.#hadDriver || this.link.driverReady);
  }

  #accept(fd: number): void {
    if (!this.#peer) this.#serve(fd);
    else if (this.#nextPeer) this.#refuse(fd);
    // The end of a killed front-end and the arrival of its successor may be seen in either order.
    else this.#nextPeer = { fd, timer: setTimeout(() => this.#graceOver(), GRACE_MS) };
  }

  #serve(fd: number): void {
    try {
      this.#peer = new PeerConnection(fd, this);
      this.#dismissed = false;
      this.log[this.refusals.repeating ? 'debug' : 'info']('peer connected');
    } catch (error) {
      // Out of file descriptors or memory: this front-end loses, the device goes on.
      this.log.error(`a peer could not be served: ${errorText(error)}`);
    }
  }

  /** A peer that is on its way out is waited for, however long its driver takes to let go. */
  #graceOver(): void {
    if (!this.#nextPeer || this.#peer?.isClosing) return;
    this.#refuse(this.#nextPeer.fd);
    this.#nextPeer = undefined;
  }

  #refuse(fd: number): void {
    this.refusals.tell('a second vhost-user front-end was refused', ONE_PEER);
    closeSync(fd);
  }

  /** PeerOwner: the connection is over. */
  peerEnded(): void {
    this.#peer = undefined;
    if (this.#options.fd !== undefined) this.#end();
    else if (this.#plug && this.#function && !this.#dismissed && !this.#closed) {
      this.#retiring = this.#retire(this.#plug);
      this.#admit();
    }
    const next = this.#takeNext();
    if (next === undefined) return;
    if (this.#admits) this.#serve(next);
    else closeSync(next);
  }

  #takeNext(): number | undefined {
    const next = this.#nextPeer;
    clearTimeout(next?.timer);
    this.#nextPeer = undefined;
    return next?.fd;
  }

  async functionFor(memory: PeerMemory): Promise<PciFunction> {
    const { window } = this.#options;
    if (this.#function?.window.is(memory.file)) return this.#function;
    if (window)
      throw new VhostPciError(
        'connection',
        'EMEMORY',
        `the peer's memory is not ${window.path}: start its QEMU with -object memory-backend-file,id=mem,` +
          `size=${window.size},mem-path=${window.path},share=on and memory-backend=mem (or -numa node,memdev=mem)`,
      );
    if (memory.file.size > MEMORY_FACTOR * totalmem())
      throw new VhostPciError(
        'connection',
        'EMEMORY',
        `the peer's memory file has ${memory.file.size} bytes, the host has ${totalmem()}`,
      );
    // Another file is another device (D5): nobody has driven it yet, and the peer that brought it stays.
    this.#replacing = true;
    try {
      if (this.#plug && !(await this.#plug.unplug(UNPLUG_LIMIT_MS)))
        throw new VhostPciError(
          'connection',
          'EMEMORY',
          'the receiving VM has not let go of the memory of the peer before: this one has to come again',
        );
      await this.#uninstall();
    } finally {
      this.#replacing = false;
    }
    this.#hadDriver = false;
    this.#accepted = undefined;
    this.#admit();
    const fn = this.#install(PeerWindow.adopt(memory.fd));
    this.#plug?.plug();
    return fn;
  }

  /** The peer went by itself, its memory with it: so does the device (the seed: "a new device will be created"). */
  async #retire(plug: ReceiverPlug): Promise<void> {
    try {
      let out = false;
      while (!out && !this.#closed) out = await plug.unplug(UNPLUG_LIMIT_MS);
      if (this.#closed) return;
      await this.#uninstall();
      this.#retiring = undefined;
      this.#hadDriver = false;
      this.#accepted = undefined;
      this.#admit();
    } catch (error) {
      this.log.error(`no peer can connect: ${errorText(error)}`);
    }
  }

  // -- the function and its receiver -------------------------------------------------------------------------

  #install(window: PeerWindow): PciFunction {
    const fn = new PciFunction(window, this.#options, this);
    try {
      this.#server = new Server(fn, { path: this.#options.vfioUser, log: this.log });
    } catch (error) {
      void fn[Symbol.asyncDispose]();
      throw error;
    }
    this.#function = fn;
    return fn;
  }

  async #uninstall(): Promise<void> {
    const fn = this.#function;
    await this.#server?.[Symbol.asyncDispose]();
    this.#server = undefined;
    this.#function = undefined;
    await fn?.[Symbol.asyncDispose]();
  }

  driverOk(features: bigint): void {
    const accepted = agreedFeatures(features);
    this.#hadDriver = true;
    this.#accepted = accepted;
    const excess = excessFeatures(this.#peer?.features ?? 0n, accepted);
    if (excess !== 0n) {
      this.log.warn(
        `the driver does not accept ${describeFeatures(excess, NET_FEATURE)}, which the peer has negotiated: ` +
          'the peer is disconnected to negotiate again, and may have to be reset',
      );
      this.#dismissed = true;
      this.#peer?.close();
    }
    this.link.driverOk();
    try {
      this.#admit();
    } catch (error) {
      this.log.error(`no peer can connect: ${errorText(error)}`);
    }
  }

  driverGone(): void {
    this.link.driverGone();
    if (!this.#replacing) this.#refusePeers();
  }

  /** Between the end of the peer's connection and its link going down, QEMU serves the rings itself: nobody else may. */
  async driverUnheard(): Promise<void> {
    this.log.warn(
      'the receiver reads no answers any more: QEMU gives a request up after its x-msg-timeout, and the connection with it. The driver is asked to let go; the receiving VM has to be started again, or the device plugged in anew',
    );
    if (!(await this.link.dismiss(UNHEARD_LIMIT_MS)))
      this.log.error(
        'the driver has not let go of the peer, which is disconnected all the same: its rings may be broken until its network device is reset',
      );
  }

  receiverGone(): void {
    this.#plug?.receiverGone();
  }

  message(message: Message): void {
    this.link.message(message);
  }

  takesRings(): boolean {
    return this.link.ringsTaken();
  }

  // -- LinkEnds ----------------------------------------------------------------------------------------------

  wanted() {
    return this.#peer?.published();
  }

  send(message: Message): void {
    this.#function?.send(message);
  }

  driverLeft(): void {
    this.#refusePeers();
  }

  ringBroken(ring: number): void {
    this.#peer?.ringBroken(ring);
  }

  started(virtqs: Parameters<LinkEnds['started']>[0]): void {
    this.refusals.forget();
    this.#peer?.driverStarted(virtqs);
  }

  stopped(virtqs: Parameters<LinkEnds['stopped']>[0]): void {
    this.#function?.notifications.takeBack();
    this.#peer?.driverStopped(virtqs);
  }

  /** D8: without a driver the peer's link is down. */
  #refusePeers(): void {
    this.#dismissed = true;
    this.#admit();
    this.#peer?.close();
  }
}
