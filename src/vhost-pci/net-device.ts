/**
 * The TypeScript API for packets: a vhost-pci-net device, opened by name, whose peer's packets go to the program. A thin
 * layer over Endpoint and AppPort.
 */
import type { WorkerMode } from '../sys/native.js';
import { type Log, silentLog } from '../util/log.js';
import { AppPort, type AppPortOptions, type Burst } from './driver/app-port.js';
import { openDevice } from './driver/device-name.js';
import { Endpoint, type EndpointEvent, type EndpointStats } from './driver/endpoint.js';
import type { PeerFacts } from './driver/ports.js';

export interface NetDeviceOptions extends AppPortOptions {
  /** How workers wait for packets. Default adaptive. */
  readonly mode?: WorkerMode;
  readonly workers?: number;
  readonly cpus?: readonly number[];
  readonly log?: Log;
  /** Connections, disconnections, and errors that the device goes on from. */
  readonly onEvent?: (event: EndpointEvent) => void;
}

export class NetDevice implements AsyncDisposable {
  readonly #endpoint: Endpoint;
  readonly #port: AppPort;
  #ended: Error | undefined;
  #awaiting: { resolve: (peer: PeerFacts) => void; reject: (error: Error) => void }[] = [];

  /** Starts at once. Throws (scope `usage`) when `device` is no device name, such as vfio-user:/run/vhost-pci.sock. */
  constructor(device: string, options: NetDeviceOptions = {}) {
    const log = options.log ?? silentLog;
    const { mode, workers, cpus, onEvent, log: _, ...portOptions } = options;
    this.#port = new AppPort(portOptions);
    this.#endpoint = Endpoint.start({
      open: openDevice(device, log),
      port: this.#port,
      log,
      ...(mode && { mode }),
      ...(workers !== undefined && { workers }),
      ...(cpus && { cpus }),
      onEvent: (event) => {
        if (event.event === 'connection' && event.state === 'on') this.#connected();
        onEvent?.(event);
      },
    });
    this.#endpoint.ended.then(
      () => this.#over(new Error('the device was closed')),
      (error) => this.#over(error as Error),
    );
  }

  /**
   * The connected peer; waits for one. Rejects when the device cannot be used, or was closed before a peer came.
   */
  peer(): Promise<PeerFacts> {
    const { peer } = this.#port;
    if (peer) return Promise.resolve(peer);
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => this.#awaiting.push({ resolve, reject }));
  }

  get connected(): boolean {
    return this.#endpoint.connected;
  }

  /** Calls back with every burst that the peer sends, on any queue pair. To be called once. */
  onBurst(callback: (burst: Burst) => void): void {
    this.#port.onBurst(callback);
  }

  /** Sends frames to the peer on a queue pair. Returns how many were taken; see `writable`. */
  send(frames: readonly Uint8Array[], queue = 0): number {
    return this.#port.queue(queue).send(frames);
  }

  /** Sends up to `count` frames that `write` puts into place; see AppPortQueue.fill. */
  fill(count: number, write: (slot: Uint8Array, i: number) => number, queue = 0): number {
    return this.#port.queue(queue).fill(count, write);
  }

  /** Resolves when `send` may take more. */
  writable(queue = 0): Promise<void> {
    return this.#port.queue(queue).writable();
  }

  stats(): EndpointStats {
    return this.#endpoint.stats();
  }

  /** Disconnects the peer, waits for the device's confirmation, and gives everything back. Idempotent. */
  async close(): Promise<void> {
    this.#over(new Error('the device was closed'));
    await this.#endpoint.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #over(error: Error): void {
    this.#ended ??= error;
    for (const { reject } of this.#awaiting.splice(0)) reject(this.#ended);
  }

  #connected(): void {
    const { peer } = this.#port;
    if (peer) for (const { resolve } of this.#awaiting.splice(0)) resolve(peer);
  }
}
