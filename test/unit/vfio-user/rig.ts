/** A small served device, a raw client that can say anything, and counts of what a test must not leave behind. */
import { closeSync, readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { IRQ, REGION } from '../../../src/pci/handle.js';
import { type Mapping, native } from '../../../src/sys/native.js';
import { Client } from '../../../src/vfio-user/client.js';
import type { DmaTable } from '../../../src/vfio-user/dma-table.js';
import {
  COMMANDS,
  type CommandName,
  encodeMessage,
  HEADER_FLAG,
  Header,
  Version,
} from '../../../src/vfio-user/protocol.js';
import type { IoFd, ServedDevice, ServedRegion, Session } from '../../../src/vfio-user/served-device.js';
import { Server } from '../../../src/vfio-user/server.js';
import { encodeCapabilities } from '../../../src/vfio-user/version.js';
import { PATIENCE_MS } from '../../support/scope.js';

export const FILE_BYTES = 0x10000;
export const BAR2_BYTES = 0x20000;
export const MSIX_VECTORS = 20;

/** Configuration space, registers in BAR0, a memory file in BAR2 (the BAR is twice as large), MSI-X. */
export class TestDevice implements ServedDevice, Disposable {
  readonly config = Buffer.alloc(256);
  readonly registers = Buffer.alloc(0x1000);
  readonly memfd = native.memfdCreate('test-bar2', FILE_BYTES);
  readonly memory: Mapping = new native.Mapping(this.memfd, 0, FILE_BYTES, true);
  readonly bell = native.eventfd();
  readonly regions: (ServedRegion | undefined)[] = new Array(9).fill(undefined);
  readonly log: string[] = [];
  session: Session | undefined;
  dma: DmaTable | undefined;
  /** When set, `detached` waits for it. */
  holdDetach: Promise<void> | undefined;
  /** When set, a write to BAR0 waits for it. */
  holdWrite: Promise<void> | undefined;
  offersIoFds = true;

  constructor() {
    this.config.writeUInt16LE(0x1af4, 0);
    this.config.writeUInt16LE(0x10f2, 2);
    this.regions[REGION.CONFIG] = { size: 256, readable: true, writable: true };
    this.regions[REGION.BAR0] = { size: 0x1000, readable: true, writable: true };
    this.regions[REGION.BAR1] = { size: 0x1000, readable: true, writable: false };
    this.regions[REGION.BAR2] = {
      size: BAR2_BYTES,
      readable: true,
      writable: true,
      mappable: { fd: this.memfd, fdOffset: 0, areas: [{ offset: 0, size: FILE_BYTES }] },
    };
  }

  irqCount(index: number): number {
    return index === IRQ.MSIX ? MSIX_VECTORS : index === IRQ.INTX || index === IRQ.REQ ? 1 : 0;
  }

  read(region: number, offset: number, length: number): Buffer {
    if (region === REGION.BAR2) return this.memory.read(offset, length);
    const from = region === REGION.CONFIG ? this.config : this.registers;
    return Buffer.from(from.subarray(offset, offset + length));
  }

  async write(region: number, offset: number, data: Buffer): Promise<void> {
    this.log.push(`write ${region} ${offset} ${data.toString('hex')}`);
    if (region === REGION.BAR0) await this.holdWrite;
    if (region === REGION.BAR2) this.memory.write(offset, data);
    else data.copy(region === REGION.CONFIG ? this.config : this.registers, offset);
  }

  ioFds(region: number): IoFd[] {
    return this.offersIoFds && region === REGION.BAR0 ? [{ offset: 0x40, size: 2, fd: this.bell }] : [];
  }

  irqsChanged(index: number, start: number, count: number): void {
    this.log.push(`irqs ${index} ${start} ${count}`);
  }

  dmaChanged(dma: DmaTable): void {
    this.dma = dma;
    this.log.push(`dma ${dma.windows.length}`);
  }

  reset(): void {
    this.log.push('reset');
  }

  attached(session: Session): void {
    this.session = session;
    this.log.push('attached');
  }

  async detached(error?: Error): Promise<void> {
    await this.holdDetach;
    this.session = undefined;
    this.dma = undefined;
    this.log.push(error ? `detached: ${error.message}` : 'detached');
  }

  [Symbol.dispose](): void {
    this.memory.close();
    closeSync(this.memfd);
    closeSync(this.bell);
  }
}

export interface RawReply {
  id: number;
  command: number;
  flags: number;
  error: number;
  payload: Buffer;
  fds: number[];
}

/** Speaks whatever bytes a test wants, on one end of a socket pair. */
export class RawClient implements Disposable {
  #fd: number | undefined;
  #buffer = Buffer.alloc(0);
  #fds: number[] = [];
  #id = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  static of(server: Server): RawClient {
    const [ours, theirs] = native.unixPair();
    server.serve(theirs);
    return new RawClient(ours);
  }

  bytes(data: Uint8Array, fds: readonly number[] = []): void {
    const sent = native.sendMessage(this.#fd!, data, fds);
    if (sent !== data.length) throw new Error(`only ${sent} of ${data.length} bytes sent`);
  }

  send(
    command: number,
    payload: Uint8Array = Buffer.alloc(0),
    fds: readonly number[] = [],
    flags = 0,
  ): number {
    const id = this.#id++ & 0xffff;
    this.bytes(encodeMessage({ id, command, flags }, payload), fds);
    return id;
  }

  /** A request and its reply. */
  async ask(name: CommandName, payload?: Uint8Array, fds?: readonly number[]): Promise<RawReply> {
    this.send(COMMANDS[name].command, payload, fds);
    const reply = await this.reply();
    if (!reply) throw new Error(`the server closed on ${name}`);
    return reply;
  }

  async version(json: Uint8Array = encodeCapabilities()): Promise<RawReply> {
    return this.ask('VERSION', Buffer.concat([Version.encode({}), json]));
  }

  /** The next reply, or undefined when the server closed. */
  async reply(patienceMs = PATIENCE_MS): Promise<RawReply | undefined> {
    for (let waited = 0; waited < patienceMs; waited++) {
      if (this.#buffer.length >= Header.size) {
        const header = Header.decode(this.#buffer);
        if (this.#buffer.length >= header.size) {
          const payload = this.#buffer.subarray(Header.size, header.size);
          this.#buffer = this.#buffer.subarray(header.size);
          return { ...header, payload, fds: this.#fds.splice(0) };
        }
      }
      let got: ReturnType<typeof native.receiveMessage>;
      try {
        got = native.receiveMessage(this.#fd!, 1 << 20);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ECONNRESET') return undefined;
        throw error;
      }
      if (!got) {
        await sleep(1);
        continue;
      }
      this.#fds.push(...got.fds);
      if (got.data.length === 0) return undefined;
      this.#buffer = Buffer.concat([this.#buffer, got.data]);
    }
    throw new Error('no reply');
  }

  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }
}

/** True when the reply says that the command failed with this errno, in the form of a bare header. */
export function isError(reply: RawReply | undefined, errno: number): boolean {
  return (
    reply !== undefined &&
    reply.flags === (HEADER_FLAG.REPLY | HEADER_FLAG.ERROR) &&
    reply.error === errno &&
    reply.payload.length === 0
  );
}

export const openFds = (): number => readdirSync('/proc/self/fd').length;

/** Resolves when `condition` holds; throws after a long time without it. */
export async function until(condition: () => boolean): Promise<void> {
  for (let waited = 0; !condition(); waited++) {
    if (waited > PATIENCE_MS) throw new Error('it did not happen');
    await sleep(1);
  }
}

/** A device, its server and a client on a socket pair. Afterwards no fd and no mapping may be left. */
export async function withClient(
  run: (client: Client, device: TestDevice, server: Server) => Promise<void>,
): Promise<void> {
  await withServer(async (server, device) => {
    const [ours, theirs] = native.unixPair();
    server.serve(theirs);
    await using client = await Client.fromFd(ours, 'vfio-user:test', { timeoutMs: PATIENCE_MS });
    await run(client, device, server);
  });
}

export async function withServer(run: (server: Server, device: TestDevice) => Promise<void>): Promise<void> {
  const fds = openFds();
  const mappings = native.mappingCount();
  {
    using device = new TestDevice();
    await using server = new Server(device);
    await run(server, device);
  }
  await until(() => openFds() === fds);
  if (native.mappingCount() > mappings) throw new Error(`${native.mappingCount() - mappings} mappings left`);
}
