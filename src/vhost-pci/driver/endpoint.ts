/**
 * A running driver: opens the device, keeps a port joined to whichever peer is there, and starts over when the device
 * itself goes and comes back. What `vhost-pci net` and the TypeScript API are made of.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { formatMac, randomMac } from '../../net/mac.js';
import type { PciHandle } from '../../pci/handle.js';
import {
  type DirtyLog,
  native,
  type PortQueueStats,
  type WorkerEvent,
  type WorkerStats,
} from '../../sys/native.js';
import { errorText, VhostPciError } from '../../util/errors.js';
import { type Log, silentLog } from '../../util/log.js';
import { Attachment } from './attachment.js';
import { Driver } from './driver.js';
import type { Peer } from './peer.js';
import type { PeerAttachment, Port, Undelivered } from './ports.js';
import { type QueueTotals, Totals } from './statistics.js';
import { WorkerPool, type WorkerPoolOptions } from './workers.js';

export interface PeerOn {
  readonly event: 'connection';
  readonly state: 'on';
  readonly pairs: number;
  /** Feature bits negotiated with the peer, in hexadecimal. */
  readonly features: string;
  readonly mtu: number;
  /** The driver's local MAC address. */
  readonly mac: string;
}

export type EndpointEvent =
  | PeerOn
  | { readonly event: 'connection'; readonly state: 'off'; readonly reason: string }
  | { readonly event: 'error'; readonly code: string; readonly message: string; readonly pair?: number };

export interface EndpointOptions extends WorkerPoolOptions {
  /** Opens the device; asked again whenever the device went. Rejects to end the endpoint, unless with ECONNRESET. */
  readonly open: (signal: AbortSignal) => Promise<PciHandle>;
  /** What the peer is joined to. The endpoint disposes of it. */
  readonly port: Port;
  /** Threads shared with another endpoint, which stay the caller's; without it, the endpoint has its own. */
  readonly pool?: WorkerPool;
  readonly log?: Log;
  /** Feature bits to accept (docs/protocol.md, P4); all by default. */
  readonly accept?: bigint;
  /**
   * `direct` (the default): workers that sleep wait on the peer's own eventfds and signal them where the device hands them
   * out (docs/protocol.md, P7). `relay`: all signals go through the device process.
   */
  readonly signals?: 'direct' | 'relay';
  readonly onEvent?: (event: EndpointEvent) => void;
}

export interface EndpointStats {
  readonly connected: boolean;
  readonly queues: readonly QueueTotals[];
  readonly workers: readonly WorkerStats[];
  /** What the peer sent while nobody was at the port's other end; of ports that have another end. */
  readonly undelivered?: Undelivered;
  /** Counts of the port's own queues, from its point of view: `send` is what went into it. */
  readonly port?: readonly PortQueueStats[];
}

export class Endpoint implements AsyncDisposable {
  readonly port: Port;
  /** The local MAC address: random (the seed, "Device Initialization"), and the same for every peer that comes. */
  readonly mac: Buffer = randomMac();
  readonly #options: EndpointOptions;
  readonly #log: Log;
  readonly #pool: WorkerPool;
  readonly #unlisten: () => void;
  readonly #totals = new Totals();
  readonly #abort = new AbortController();
  readonly #running: Promise<void>;
  #driver: Driver | undefined;
  #peer: Peer | undefined;
  #attachment: PeerAttachment | undefined;
  #closing: Promise<void> | undefined;
  /** Why the port is of no use any more: the endpoint ends with this. */
  #portLost: VhostPciError | undefined;
  #portCheck: NodeJS.Timeout | undefined;
  /** Why a device could not be started: told once, however often it is tried. */
  #told = '';

  private constructor(options: EndpointOptions) {
    this.#options = options;
    this.#log = options.log ?? silentLog;
    this.port = options.port;
    this.port.setMac?.(this.mac);
    this.#pool = options.pool ?? ownPool(options);
    this.#unlisten = this.#pool.listen((event) => this.#workerEvent(event));
    this.#running = this.#run().finally(() => {
      clearInterval(this.#portCheck);
      if (this.#portLost) throw this.#portLost;
    });
    // While no peer is there, no worker meets it.
    if (this.port.check) this.#portCheck = setInterval(() => this.#checkPort(), PORT_CHECK_MS).unref();
  }

  /** Starts; the first device may come later. */
  static start(options: EndpointOptions): Endpoint {
    return new Endpoint(options);
  }

  /** Resolves when the endpoint has ended by itself; rejects with the reason when it cannot go on. */
  get ended(): Promise<void> {
    return this.#running;
  }

  get connected(): boolean {
    return this.#attachment !== undefined;
  }

  stats(): EndpointStats {
    const live =
      this.#attachment?.queues.map(({ index, queue }) => ({ pair: index, stats: queue.stats() })) ?? [];
    const undelivered = this.port.undelivered?.();
    const port = this.port.stats?.();
    return {
      connected: this.connected,
      queues: this.#totals.with(live),
      workers: this.#pool.stats(),
      ...(undelivered && { undelivered }),
      ...(port && { port }),
    };
  }

  /** Orderly end: asks the device for OFF, waits for it, and only then lets everything go. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#abort.abort();
    await this.#driver?.close();
    await this.#running.catch(() => {});
    this.#unlisten();
    if (!this.#options.pool) await this.#pool[Symbol.asyncDispose]();
    await this.port[Symbol.asyncDispose]();
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    while (!signal.aborted) {
      let handle: PciHandle | undefined;
      try {
        handle = await this.#options.open(signal);
        if (signal.aborted) return;
        await this.#serve(handle);
      } catch (error) {
        if (signal.aborted) return;
        // A device that fails or goes is told and tried again; a usage error cannot mend itself, and what speaks
        // another protocol is no device.
        const { scope, code } = error as { scope?: string; code?: string };
        if (scope === 'usage' || (!handle && code !== 'ECONNRESET')) throw error;
        const text = errorText(error);
        if (text !== this.#told) this.#error(error);
        this.#told = text;
      } finally {
        await handle?.[Symbol.asyncDispose]();
      }
      // Rejects when the endpoint is closed meanwhile.
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
    }
  }

  async #serve(handle: PciHandle): Promise<void> {
    const driver = await Driver.start(handle, {
      log: this.#log,
      // Threads that never sleep wait for no kick, and leave the system call of a call to the device's relay.
      direct: this.#options.signals !== 'relay' && this.#pool.mode !== 'poll' && native.foreignEventfds(),
      ...(this.#options.accept !== undefined && { accept: this.#options.accept }),
      peerOn: (peer, log) => this.#peerOn(peer, log),
      peerOff: (reason) => this.#peerOff(reason),
      enabled: async (ring) => this.#attachment?.setEnabled(ring),
      rewire: async (signals) => this.#attachment?.rewire(signals),
      dirtyLog: async (log) => this.#attachment?.setDirtyLog(log),
      announce: (frame) => this.port.announce?.(frame),
      mtu: (mtu) => this.port.setMtu?.(mtu),
      error: (error) => this.#error(error),
    });
    this.#told = '';
    this.#driver = driver;
    if (this.#abort.signal.aborted) await driver.close();
    try {
      await driver.ended;
    } finally {
      this.#driver = undefined;
    }
  }

  async #peerOn(peer: Peer, log: DirtyLog | undefined): Promise<void> {
    this.#checkPort();
    if (this.#portLost) throw this.#portLost;
    this.port.peerOn({ features: peer.features, mtu: peer.mtu, pairs: peer.pairs.length });
    this.#peer = peer;
    // Known before its first packet: a ring may turn out to be broken at once.
    this.#attachment = this.port.attach?.(peer) ?? Attachment.of(peer, this.port, this.#pool.workers);
    await this.#attachment.connect(log);
    this.#emit({
      event: 'connection',
      state: 'on',
      mac: formatMac(this.mac),
      pairs: peer.pairs.length,
      features: `0x${peer.features.toString(16)}`,
      mtu: peer.mtu,
    });
  }

  async #peerOff(reason: string): Promise<void> {
    const attachment = this.#attachment;
    if (attachment) {
      await attachment.detach();
      this.#attachment = undefined;
      for (const { index, queue } of attachment.queues) this.#totals.close(index, queue.stats());
    }
    if (!this.#peer) return;
    this.#peer = undefined;
    try {
      this.port.peerOff();
    } catch (error) {
      // A TAP that was deleted: the device has to get its answer all the same.
      if (!this.#portLost) this.#error(error);
    }
    this.#emit({ event: 'connection', state: 'off', reason });
  }

  #workerEvent({ queue, direction, event, cause }: WorkerEvent): void {
    if (event !== 'broken') return;
    const pair = this.#attachment?.queues.find((p) => p.queue === queue);
    if (!pair) {
      // In a shared pool it may be the other endpoint's.
      if (this.#attachment && !this.#closing && !this.#options.pool) {
        this.#checkPort();
        const text = `the ${this.port.kind} port is given up: ${cause}`;
        this.#losePort(new VhostPciError('device', 'EPORT', text));
      }
      return;
    }
    const ring = 2 * pair.index + (direction === 'receive' ? 1 : 0);
    this.#driver?.ringBroken(ring);
    this.#error(
      new VhostPciError(
        'queue',
        'EBADRING',
        `the peer's ring ${ring} is given up: ${cause}. Reset the peer's network device or reboot the peer`,
      ),
      pair.index,
    );
  }

  #checkPort(): void {
    try {
      this.port.check?.();
    } catch (error) {
      this.#losePort(error as VhostPciError);
    }
  }

  /** Without its port nobody serves the peer: its link goes down in order, and the endpoint ends. */
  #losePort(error: VhostPciError): void {
    if (this.#portLost || this.#closing) return;
    this.#portLost = error;
    this.#error(error);
    this.#abort.abort();
    void this.#driver?.close();
  }

  #emit(event: EndpointEvent): void {
    this.#options.onEvent?.(event);
  }

  #error(error: unknown, pair?: number): void {
    this.#log.error(errorText(error));
    this.#emit({
      event: 'error',
      code: error instanceof VhostPciError ? error.code : 'EINTERNAL',
      message: errorText(error),
      ...(pair !== undefined && { pair }),
    });
  }
}

/** How often a port is looked at that may go by itself. */
const PORT_CHECK_MS = 1000;

/** Pause before a device that failed or went is opened again. */
const RETRY_MS = 200;

/** Throws a usage error, with the port disposed of, for a CPU that there is not. */
function ownPool(options: EndpointOptions): WorkerPool {
  try {
    return new WorkerPool(options);
  } catch (error) {
    void options.port[Symbol.asyncDispose]();
    throw error;
  }
}
