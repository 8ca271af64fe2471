/**
 * Device process, driver and in-tree peer in one process, joined by real sockets in a folder of their own. What a test
 * starts here ends with it, and nothing may be left: descriptors and mappings are compared. Owns no test.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { expect } from 'vitest';
import { native, type PortQueue, type SinkQueue, type VerifyResult } from '../../../src/sys/native.js';
import type { Log } from '../../../src/util/log.js';
import { Client } from '../../../src/vfio-user/client.js';
import { DeviceProcess, type DeviceProcessOptions } from '../../../src/vhost-pci/device/process.js';
import { openDevice } from '../../../src/vhost-pci/driver/device-name.js';
import {
  Endpoint,
  type EndpointEvent,
  type EndpointOptions,
} from '../../../src/vhost-pci/driver/endpoint.js';
import { EchoPort } from '../../../src/vhost-pci/driver/ports.js';
import { PCI_ID } from '../../../src/vhost-pci/identity.js';
import { NetPeer, type NetPeerOptions } from '../../../src/virtio-net/peer.js';
import { Scope, until } from '../../support/scope.js';

export { until };

export const MIB = 1 << 20;
export const MEMORY_BYTES = 4 * MIB;

export const openFds = (): number => readdirSync('/proc/self/fd').length;

export interface LogLine {
  readonly level: number;
  readonly msg: string;
  /** Kind of a control message, and its `on`. */
  readonly message?: string;
  readonly on?: boolean;
}

/** A log that is kept as objects. */
export function recordingLog(): { log: Log; lines: LogLine[] } {
  const lines: LogLine[] = [];
  const log = pino({ level: 'debug' }, { write: (text: string) => lines.push(JSON.parse(text)) });
  return { log, lines };
}

/** An endpoint with what it reported. */
export interface Receiver {
  readonly endpoint: Endpoint;
  readonly events: EndpointEvent[];
  readonly errors: () => string[];
}

export class Rig {
  readonly vhostUser: string;
  readonly vfioUser: string;
  readonly memoryFile: string;
  readonly lines: LogLine[];
  readonly log: Log;
  readonly #scope: Scope;
  readonly #fds = openFds();
  readonly #mappings = native.mappingCount();

  constructor(scope = new Scope()) {
    this.#scope = scope;
    const folder = scope.folder();
    this.vhostUser = join(folder, 'vhost-user');
    this.vfioUser = join(folder, 'vfio-user');
    this.memoryFile = join(folder, 'memory');
    ({ log: this.log, lines: this.lines } = recordingLog());
  }

  /** Another device's paths and log; what is started there ends with this rig. */
  twin(): Rig {
    return new Rig(this.#scope);
  }

  defer(undo: () => void | Promise<void>): void {
    this.#scope.defer(undo);
  }

  /** A device process with a window, unless `window` says otherwise. */
  async device(
    options: Partial<DeviceProcessOptions> & { readonly adopt?: boolean } = {},
  ): Promise<DeviceProcess> {
    const { adopt, ...rest } = options;
    const device = await DeviceProcess.start({
      ...(rest.fd === undefined && { socketPath: this.vhostUser }),
      vfioUser: this.vfioUser,
      queuePairs: 1,
      interrupts: 'msix',
      pciId: PCI_ID,
      log: this.log,
      ...(!adopt && { window: { path: this.memoryFile, size: MEMORY_BYTES } }),
      ...rest,
    });
    this.defer(() => device[Symbol.asyncDispose]());
    return device;
  }

  /** A driver that echoes, unless a port is given. */
  receiver(options: Partial<EndpointOptions> = {}): Receiver {
    const events: EndpointEvent[] = [];
    const endpoint = Endpoint.start({
      open: openDevice(`vfio-user:${this.vfioUser}`, this.log),
      port: new EchoPort(),
      mode: 'interrupt',
      onEvent: (event) => events.push(event),
      ...options,
    });
    this.defer(() => endpoint.close());
    return {
      endpoint,
      events,
      errors: () => events.flatMap((e) => (e.event === 'error' ? [e.message] : [])),
    };
  }

  /** A vfio-user client, for drivers that are moved by hand. */
  async client(): Promise<Client> {
    const client = await Client.connect(this.vfioUser);
    this.defer(() => client[Symbol.asyncDispose]());
    return client;
  }

  /** A peer in the window's file, connected and not started. */
  async peer(options: Partial<NetPeerOptions> & { readonly adopt?: boolean } = {}): Promise<NetPeer> {
    const { adopt, ...rest } = options;
    const peer = await NetPeer.connect({
      socketPath: this.vhostUser,
      memoryBytes: MEMORY_BYTES,
      ringSize: 64,
      ...(!adopt && { memoryFile: this.memoryFile }),
      ...rest,
    });
    this.defer(() => peer[Symbol.asyncDispose]());
    return peer;
  }

  /** The same, started. */
  async startedPeer(options: Parameters<Rig['peer']>[0] = {}): Promise<NetPeer> {
    const peer = await this.peer(options);
    await peer.start();
    return peer;
  }

  /** Kinds of the control messages, such as "> mem-info-bar" (to the driver) and "< connection off" (from it). */
  messages(): string[] {
    const name = (l: LogLine): string => `${l.message}${l.on === undefined ? '' : l.on ? ' on' : ' off'}`;
    return this.lines.flatMap((l) =>
      l.msg === 'to the driver' ? [`> ${name(l)}`] : l.msg === 'from the driver' ? [`< ${name(l)}`] : [],
    );
  }

  logged(pattern: RegExp): boolean {
    return this.lines.some((l) => pattern.test(l.msg));
  }

  /** Ends everything; throws when descriptors or mappings are left. */
  async end(context?: Parameters<Scope['end']>[0]): Promise<void> {
    this.#scope.onFailure(() => this.lines.map((l) => `${l.level} ${l.msg} ${l.message ?? ''}`).join('\n'));
    await this.#scope.end(context);
    const detail = (): string =>
      `: ${openFds() - this.#fds} descriptors, ${native.mappingCount() - this.#mappings} mappings are left`;
    await until(
      'nothing is left',
      2000,
      () => openFds() <= this.#fds && native.mappingCount() <= this.#mappings,
      detail,
    );
  }
}

export async function isOn(receiver: Receiver, times = 1): Promise<void> {
  await until(
    `${times} connections`,
    5000,
    () => receiver.events.filter((e) => e.event === 'connection' && e.state === 'on').length >= times,
    () => `\n${JSON.stringify(receiver.events)}`,
  );
}

export async function isOff(receiver: Receiver, times = 1): Promise<void> {
  await until(
    `${times} disconnections`,
    5000,
    () => receiver.events.filter((e) => e.event === 'connection' && e.state === 'off').length >= times,
    () => `\n${JSON.stringify(receiver.events)}`,
  );
}

const NOWHERE = Buffer.from([0x02, 0, 0, 0, 0, 0xfe]);

/**
 * Sends `count` numbered frames on each of the peer's queue pairs, and takes what comes back until it is as many. Returns
 * what the checks of the frames said.
 */
export async function exchange(
  peer: NetPeer,
  count: number,
  bytes = 200,
  ms = 10_000,
): Promise<VerifyResult[]> {
  await using traffic = await Traffic.start(peer, { count, bytes });
  await until(
    'all frames are back',
    ms,
    () => traffic.results().every((r) => r.packets >= count),
    () => `: ${JSON.stringify(traffic.results())}`,
  );
  return traffic.results();
}

/** Frames out of and into a peer, on a worker of their own. */
export class Traffic implements AsyncDisposable {
  readonly #peer: NetPeer;
  readonly #worker = new native.Worker({ mode: 'interrupt' });
  readonly #sources: PortQueue[];
  readonly #sinks: SinkQueue[];
  #ended = false;

  private constructor(peer: NetPeer, { count, bytes = 200 }: { count?: number; bytes?: number }) {
    this.#peer = peer;
    const frames = { bytes, destination: NOWHERE, source: NOWHERE, ...(count !== undefined && { count }) };
    this.#sources = peer.queues.map((_, stream) => new native.SourceQueue({ ...frames, stream }));
    this.#sinks = peer.queues.map((_, stream) => new native.SinkQueue({ stream }));
  }

  /** `count` frames on each pair; without it, until the end. */
  static async start(peer: NetPeer, options: { count?: number; bytes?: number } = {}): Promise<Traffic> {
    const traffic = new Traffic(peer, options);
    for (const [i, queue] of peer.queues.entries()) {
      await traffic.#worker.connect(queue, traffic.#sinks[i]!, 'hold');
      await traffic.#worker.connect(traffic.#sources[i]!, queue, 'hold');
    }
    return traffic;
  }

  results(): VerifyResult[] {
    return this.#sinks.map((sink) => sink.verified());
  }

  /** Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    for (const queue of this.#peer.queues) await this.#worker.detach(queue);
    await this.#worker.stop();
    for (const queue of [...this.#sources, ...this.#sinks]) queue.close();
  }
}

export const whole = (packets: number): unknown =>
  expect.objectContaining({ packets, lost: 0, altered: 0, reordered: 0, foreign: 0 });
