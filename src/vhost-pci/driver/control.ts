/**
 * The driver's end of the two control virtqueues: memory, buffers, and messages in and out. Knows the queues, not
 * what the messages mean.
 */
import { closeSync } from 'node:fs';
import type { PciHandle } from '../../pci/handle.js';
import { type ControlDriverQueue, type Mapping, native } from '../../sys/native.js';
import { errorText } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { CONTROL_BUFFER_BYTES, CONTROL_QUEUE_SIZE } from '../identity.js';
import { decodeMessage, encodeMessage, type Message } from '../messages.js';

/**
 * One 2 MiB mapping at a 2 MiB-aligned address: an emulated IOMMU then announces it to the device as a single
 * range instead of hundreds of pages.
 */
const DMA_BYTES = 2 << 20;
const DMA_ADDRESS = 0x1000_0000n;
/** Chains that are told of in the log; a device can send any number. */
const IGNORED_TOLD = 8;

export class DriverControl implements AsyncDisposable {
  readonly receive: ControlDriverQueue;
  readonly transmit: ControlDriverQueue;
  /** Chains that were no message; the last one's reason is in the log. */
  ignored = 0;
  readonly #handle: PciHandle;
  readonly #fd: number;
  readonly #memory: Mapping;
  readonly #log: Log;
  #waiting: Buffer[] = [];
  /** Called when the device has to be told about new buffers. Set once the queues are enabled. */
  notify: (queue: 'receive' | 'transmit') => void = () => {};

  private constructor(handle: PciHandle, fd: number, memory: Mapping, log: Log) {
    this.#handle = handle;
    this.#fd = fd;
    this.#memory = memory;
    this.#log = log;
    const each = native.ControlDriverQueue.bytes(CONTROL_QUEUE_SIZE, CONTROL_BUFFER_BYTES);
    // The transmitq starts on a page of its own; both fit into DMA_BYTES.
    const transmitAt = Math.ceil(each / 4096) * 4096;
    this.receive = new native.ControlDriverQueue(
      memory,
      0,
      DMA_ADDRESS,
      CONTROL_QUEUE_SIZE,
      CONTROL_BUFFER_BYTES,
    );
    this.transmit = new native.ControlDriverQueue(
      memory,
      transmitAt,
      DMA_ADDRESS + BigInt(transmitAt),
      CONTROL_QUEUE_SIZE,
      TRANSMIT_BUFFER_BYTES,
    );
  }

  /** Allocates the queues' memory and lets the device reach it. */
  static async create(handle: PciHandle, log: Log): Promise<DriverControl> {
    const fd = native.memfdCreate('vhost-pci-control', DMA_BYTES);
    let memory: Mapping | undefined;
    try {
      memory = new native.Mapping(fd, 0, DMA_BYTES, true);
      await handle.mapDma(fd, memory, 0, DMA_ADDRESS, DMA_BYTES);
      const control = new DriverControl(handle, fd, memory, log);
      while (control.receive.addWritable());
      return control;
    } catch (error) {
      memory?.close();
      closeSync(fd);
      throw error;
    }
  }

  /** Sends a message; waits in line when the device is slow to take them. */
  send(message: Message): void {
    this.#waiting.push(encodeMessage(message));
    this.#pump();
  }

  /**
   * Takes what the device has returned: messages, and transmit buffers. Each message has to be followed by a `done` when it
   * has been dealt with: its buffer goes back to the device only then, so that a device cannot send faster than that.
   * Throws `EBADRING` when the device has put something impossible into a ring.
   */
  harvest(): Message[] {
    this.#pump();
    const messages: Message[] = [];
    for (let n = 0; n < CONTROL_QUEUE_SIZE; n++) {
      const bytes = this.receive.harvest();
      if (!bytes) break;
      try {
        messages.push(decodeMessage(bytes));
      } catch (error) {
        if (this.ignored++ < IGNORED_TOLD)
          this.#log.warn(`control message from the device ignored: ${errorText(error)}`);
        this.done();
      }
    }
    return messages;
  }

  /** A message has been dealt with: the device may send another. Throws as `harvest`. */
  done(): void {
    this.receive.addWritable();
    if (this.receive.needsNotify()) this.notify('receive');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.unmapDma(DMA_ADDRESS, DMA_BYTES).catch(() => {
      // The device is gone, and its mapping with it.
    });
    this.receive.close();
    this.transmit.close();
    this.#memory.close();
    closeSync(this.#fd);
  }

  #pump(): void {
    while (this.transmit.harvest());
    let sent = false;
    for (let data = this.#waiting[0]; data && this.transmit.addReadable(data); data = this.#waiting[0]) {
      this.#waiting.shift();
      sent = true;
    }
    if (sent && this.transmit.needsNotify()) this.notify('transmit');
  }
}

/** Holds the driver's longest message, the virtq info of 128 pairs (10,250 bytes). */
const TRANSMIT_BUFFER_BYTES = 12 << 10;
