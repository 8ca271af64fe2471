/**
 * The device's end of the two control virtqueues. Reads and writes the receiving driver's memory only through the
 * queues of the core. Knows no message's meaning.
 */
import { type ControlDeviceQueue, native, type RegionTable, type RingAddresses } from '../../sys/native.js';
import { errorText, VhostPciError } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { decodeMessage, encodeMessage, type Message } from '../messages.js';

export interface DeviceControlHandlers {
  message(message: Message): void;
  /** The driver is to be interrupted for the queue. */
  interrupt(queue: 'receive' | 'transmit'): void;
  /** A queue is malformed: the device needs a reset (VIRTIO 1.3, 2.1.2). */
  broken(error: VhostPciError): void;
}

/** Messages that may wait for a driver that offers no buffers; far more than a link ever has under way. */
const WAITING_LIMIT = 256;
/** Chains taken before the event loop gets its turn again. */
const CHAINS_A_TURN = 256;
/** Chains that are told of in the log; a driver can send any number. */
const IGNORED_TOLD = 8;

export class DeviceControl {
  readonly #handlers: DeviceControlHandlers;
  readonly #log: Log;
  #receive: ControlDeviceQueue | undefined;
  #transmit: ControlDeviceQueue | undefined;
  #waiting: Buffer[] = [];
  /** Chains from the driver that were no message. */
  ignored = 0;

  constructor(handlers: DeviceControlHandlers, log: Log) {
    this.#handlers = handlers;
    this.#log = log;
  }

  /** The driver has enabled a queue. It lives from here on until `reset`. */
  enable(which: 'receive' | 'transmit', ring: RingAddresses, table: () => RegionTable): void {
    this.#guard(() => {
      const memory = table();
      if (!reaches(memory, ring.desc))
        throw new Error(
          "the queue is not in memory that is shared with this process (a receiving VM's QEMU needs share=on for its memory too)",
        );
      const queue = new native.ControlDeviceQueue(memory, ring);
      if (which === 'receive') this.#receive = queue;
      else this.#transmit = queue;
    });
  }

  /** Sends a message, as soon as the driver offers a buffer. */
  send(message: Message): void {
    if (this.#waiting.length >= WAITING_LIMIT) {
      this.#fail(new Error('the driver offers no buffers in the control receiveq'));
      return;
    }
    const { kind } = message;
    const on = 'on' in message && { on: message.on };
    const regions = kind === 'mem-info-bar' && { regions: message.regions.length };
    this.#log.debug({ message: kind, ...on, ...regions }, 'to the driver');
    this.#waiting.push(encodeMessage(message));
    this.#pump();
  }

  /** The driver has notified a control queue. */
  notified(which: 'receive' | 'transmit'): void {
    if (which === 'receive') this.#pump();
    else this.#take();
  }

  /**
   * The driver's memory changed: queues go on where the rings still are, in the new table; a queue whose rings have gone is
   * given up with the memory.
   */
  memoryChanged(table: () => RegionTable | undefined): void {
    if (!this.#receive && !this.#transmit) return;
    this.#guard(() => {
      const now = table();
      if (!now) return;
      for (const queue of [this.#receive, this.#transmit]) queue?.setTable(now);
    });
  }

  reset(): void {
    this.#receive?.close();
    this.#transmit?.close();
    this.#receive = undefined;
    this.#transmit = undefined;
    this.#waiting = [];
  }

  #pump(): void {
    const queue = this.#receive;
    if (!queue || this.#waiting.length === 0) return;
    this.#guard(() => {
      for (let data = this.#waiting[0]; data; data = this.#waiting[0]) {
        const chain = queue.pop();
        if (!chain) break;
        if (chain.writable < data.length) {
          queue.push(chain.head);
          throw new Error(
            `a buffer of ${chain.writable} bytes in the control receiveq, a message has ${data.length}`,
          );
        }
        queue.push(chain.head, data);
        this.#waiting.shift();
      }
      if (queue.needsInterrupt()) this.#handlers.interrupt('receive');
    });
  }

  #take(): void {
    const queue = this.#transmit;
    if (!queue) return;
    const messages: Message[] = [];
    this.#guard(() => {
      let taken = 0;
      for (let chain = queue.pop(); chain; chain = queue.pop()) {
        queue.push(chain.head);
        try {
          messages.push(decodeMessage(chain.readable));
        } catch (error) {
          if (this.ignored++ < IGNORED_TOLD)
            this.#log.warn(`control message from the driver ignored: ${errorText(error)}`);
        }
        // A driver that never stops sending must not keep the loop: it notifies again, or is looked at again.
        if (++taken >= CHAINS_A_TURN) {
          setImmediate(() => this.#take());
          break;
        }
      }
      if (queue.needsInterrupt()) this.#handlers.interrupt('transmit');
    });
    for (const message of messages) {
      this.#log.debug(
        { message: message.kind, ...('on' in message && { on: message.on }) },
        'from the driver',
      );
      this.#handlers.message(message);
    }
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(cause: unknown): void {
    this.reset();
    this.#handlers.broken(
      new VhostPciError('device', 'EBADRING', `control queues given up: ${errorText(cause)}`, { cause }),
    );
  }
}

function reaches(memory: RegionTable, address: bigint): boolean {
  try {
    memory.read(address, 1);
    return true;
  } catch {
    return false;
  }
}
