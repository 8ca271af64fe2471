/** A driver that is moved by hand: sends what a test wants and sees what the device sends. Owns no test. */
import { closeSync } from 'node:fs';
import { type ControlDriverQueue, type Mapping, native } from '../../../src/sys/native.js';
import { bits } from '../../../src/util/flags.js';
import type { Client } from '../../../src/vfio-user/client.js';
import { DRIVER_FEATURES } from '../../../src/vhost-pci/features.js';
import { QUEUE } from '../../../src/vhost-pci/identity.js';
import { decodeMessage, encodeMessage, type Message } from '../../../src/vhost-pci/messages.js';
import { FEATURE } from '../../../src/virtio/features.js';
import { VirtioPciDriver } from '../../../src/virtio/pci-driver.js';
import { type Rig, until } from './rig.js';

export const DMA_ADDRESS = 0x5000_0000n;
const DMA_BYTES = 1 << 20;
const TRANSMIT_AT = DMA_BYTES / 2;
const ENTRIES = 16;

export interface RawOptions {
  /** Bytes of a buffer in the control receiveq; default 4096. */
  readonly bufferBytes?: number;
  /** Buffers offered at the start; default all 16. */
  readonly buffers?: number;
}

export class RawDriver {
  readonly client: Client;
  readonly virtio: VirtioPciDriver;
  readonly memory: Mapping;
  readonly fd: number;
  readonly receive: ControlDriverQueue;
  readonly transmit: ControlDriverQueue;

  private constructor(
    client: Client,
    virtio: VirtioPciDriver,
    fd: number,
    memory: Mapping,
    bufferBytes: number,
  ) {
    this.client = client;
    this.virtio = virtio;
    this.fd = fd;
    this.memory = memory;
    this.receive = new native.ControlDriverQueue(memory, 0, DMA_ADDRESS, ENTRIES, bufferBytes);
    this.transmit = new native.ControlDriverQueue(
      memory,
      TRANSMIT_AT,
      DMA_ADDRESS + BigInt(TRANSMIT_AT),
      ENTRIES,
      16384,
    );
  }

  /** Up to FEATURES_OK, with queues that are not enabled yet. */
  static async open(rig: Rig, options: RawOptions = {}): Promise<RawDriver> {
    const client = await rig.client();
    const fd = native.memfdCreate('raw-driver', DMA_BYTES);
    const memory = new native.Mapping(fd, 0, DMA_BYTES, true);
    const virtio = await VirtioPciDriver.open(client);
    const raw = new RawDriver(client, virtio, fd, memory, options.bufferBytes ?? 4096);
    rig.defer(() => {
      raw.receive.close();
      raw.transmit.close();
      memory.close();
      closeSync(fd);
    });
    await virtio.negotiate({ wanted: DRIVER_FEATURES, required: bits(FEATURE.VERSION_1) });
    await client.mapDma(fd, memory, 0, DMA_ADDRESS, DMA_BYTES);
    return raw;
  }

  /** The same up to DRIVER_OK. */
  static async start(rig: Rig, options: RawOptions = {}): Promise<RawDriver> {
    const raw = await RawDriver.open(rig, options);
    for (let i = 0; i < (options.buffers ?? ENTRIES); i++) raw.receive.addWritable();
    await raw.virtio.setUpQueue(QUEUE.CONTROL_RECEIVE, raw.receive.addresses);
    await raw.virtio.setUpQueue(QUEUE.CONTROL_TRANSMIT, raw.transmit.addresses);
    await raw.virtio.driverOk();
    await raw.virtio.notify(QUEUE.CONTROL_RECEIVE);
    return raw;
  }

  /** Sends bytes as one chain. */
  async bytes(data: Uint8Array): Promise<void> {
    while (this.transmit.harvest());
    if (!this.transmit.addReadable(data)) throw new Error('the control transmitq is full');
    await this.virtio.notify(QUEUE.CONTROL_TRANSMIT);
  }

  send(message: Message): Promise<void> {
    return this.bytes(encodeMessage(message));
  }

  /** The next message of the device; its buffer is offered again. */
  async next(): Promise<Message> {
    const data = await until('a message', 3000, () => this.receive.harvest());
    this.receive.addWritable();
    await this.virtio.notify(QUEUE.CONTROL_RECEIVE);
    return decodeMessage(data);
  }

  /** What the device has sent so far, as words. */
  waiting(): string[] {
    const words: string[] = [];
    for (let data = this.receive.harvest(); data; data = this.receive.harvest()) {
      const message = decodeMessage(data);
      words.push(`${message.kind}${'on' in message ? (message.on ? ' on' : ' off') : ''}`);
      this.receive.addWritable();
    }
    return words;
  }

  /** Answers the memory info and takes what follows up to ON. */
  async turnOn(): Promise<void> {
    for (let m = await this.next(); !(m.kind === 'connection' && m.on); m = await this.next())
      if (m.kind === 'mem-info-bar') await this.send({ kind: 'mem-info-gva', address: 0x1000n });
  }

  /** Resolves when the device says that only a reset helps. */
  async needsReset(): Promise<void> {
    await until('DEVICE_NEEDS_RESET', 2000, () => this.virtio.needsReset());
  }
}
