/**
 * Driver side of virtio over PCI: initialization, queues and configuration through a PciHandle (VIRTIO 1.3, 3.1.1 and 4.1).
 * Trusts nothing that the device answers. Owns neither the handle nor the memory of the queues.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { PciHandle } from '../pci/handle.js';
import type { NotifyTarget, RingAddresses } from '../sys/native.js';
import { VhostPciError } from '../util/errors.js';
import { bits } from '../util/flags.js';
import { describeFeatures, FEATURE, type FeatureNames } from './features.js';
import { findStructures, type VirtioStructures } from './pci-capabilities.js';
import { CommonCfg, NO_VECTOR } from './pci-layout.js';
import { describeStatus, STATUS } from './status.js';

type CommonField = keyof typeof CommonCfg.fields;
type Width = 1 | 2 | 4;
const WIDTHS = { u8: 1, u16: 2, u32: 4 } as const;

const RESET_POLLS = 500;
const RESET_POLL_MS = 2;
const CONFIG_READS = 64;

export interface FeatureChoice {
  /** Accepted when the device offers them. */
  readonly wanted: bigint;
  /** Without these the device is refused. VERSION_1 always is. */
  readonly required: bigint;
  /** The device type's names, for messages. */
  readonly names?: FeatureNames;
}

export class VirtioPciDriver {
  readonly handle: PciHandle;
  readonly structures: VirtioStructures;
  readonly queues: number;
  /** Serialises what needs several accesses: queue_select and the feature selects are one register for all. */
  #turn: Promise<unknown> = Promise.resolve();
  #status = 0;
  #features = 0n;

  private constructor(handle: PciHandle, structures: VirtioStructures, queues: number) {
    this.handle = handle;
    this.structures = structures;
    this.queues = queues;
  }

  /** Finds the device's structures, without changing it. Throws `EVIRTIOPCI` or `ECAPLIST` (scope device). */
  static async open(handle: PciHandle): Promise<VirtioPciDriver> {
    const structures = await findStructures(handle);
    const { bar, offset } = structures.common;
    const queues = await handle.read(bar, offset + CommonCfg.offsets.num_queues, 2);
    return new VirtioPciDriver(handle, structures, queues.readUInt16LE(0));
  }

  /** Negotiated features; 0n before. */
  get features(): bigint {
    return this.#features;
  }

  /** Resets the device and waits until it says so (VIRTIO 1.3, 4.1.4.3.2). */
  reset(): Promise<void> {
    return this.#alone(() => this.#reset());
  }

  /** From reset to FEATURES_OK. Returns what both sides agreed on. */
  negotiate(choice: FeatureChoice): Promise<bigint> {
    return this.#orFail(async () => {
      await this.#reset();
      await this.#addStatus(STATUS.ACKNOWLEDGE);
      await this.#addStatus(STATUS.DRIVER);
      const offered = await this.#offered();
      const required = choice.required | bits(FEATURE.VERSION_1);
      const missing = required & ~offered;
      if (missing !== 0n)
        throw this.#error('EFEATURES', `does not offer ${describeFeatures(missing, choice.names)}`);
      const accepted = offered & (choice.wanted | required);
      for (let word = 0; word < 2; word++) {
        await this.#write('driver_feature_select', word);
        await this.#write('driver_feature', Number((accepted >> BigInt(32 * word)) & 0xffff_ffffn));
      }
      await this.#addStatus(STATUS.FEATURES_OK);
      this.#features = accepted;
      return accepted;
    });
  }

  /** The largest size of a queue; 0 when it is not there, or has no ring of its own. */
  queueSize(queue: number): Promise<number> {
    return this.#orFail(async () => {
      await this.#select(queue);
      return this.#read('queue_size');
    });
  }

  /** Names the vector of a queue. False when the device has no such vector: it then gives no interrupt. */
  setQueueVector(queue: number, vector: number): Promise<boolean> {
    return this.#orFail(async () => {
      await this.#select(queue);
      return this.#writeVector('queue_msix_vector', vector);
    });
  }

  setConfigVector(vector: number): Promise<boolean> {
    return this.#orFail(() => this.#writeVector('config_msix_vector', vector));
  }

  /** Gives a queue its rings and enables it; with a vector, its interrupt too. Throws when the device refuses either. */
  setUpQueue(queue: number, ring: RingAddresses, vector = NO_VECTOR): Promise<void> {
    return this.#orFail(async () => {
      await this.#select(queue);
      const largest = await this.#read('queue_size');
      if (ring.size > largest)
        throw this.#error('EQUEUE', `queue ${queue} has at most ${largest} entries, not ${ring.size}`);
      await this.#write('queue_size', ring.size);
      if ((await this.#read('queue_size')) !== ring.size)
        throw this.#error('EQUEUE', `queue ${queue} does not take ${ring.size} entries`);
      if (!(await this.#writeVector('queue_msix_vector', vector)))
        throw this.#error('EVECTOR', `queue ${queue} does not take vector ${vector}`);
      await this.#write64('queue_desc', ring.desc);
      await this.#write64('queue_driver', ring.driver);
      await this.#write64('queue_device', ring.device);
      await this.#write('queue_enable', 1);
      if ((await this.#read('queue_enable')) !== 1)
        throw this.#error('EQUEUE', `queue ${queue} cannot be enabled`);
    });
  }

  /** How a queue is notified, from any thread. */
  async notifyTarget(queue: number): Promise<NotifyTarget> {
    return this.handle.notifyTarget(this.structures.notify.bar, await this.#notifyOffset(queue), queue);
  }

  /** Notifies a queue from here. */
  async notify(queue: number): Promise<void> {
    await this.handle.write(this.structures.notify.bar, await this.#notifyOffset(queue), le(queue, 2));
  }

  /** The device may use the queues from now on. */
  driverOk(): Promise<void> {
    return this.#orFail(() => this.#addStatus(STATUS.DRIVER_OK));
  }

  /** True when the device has met an error from which only a reset helps. */
  async needsReset(): Promise<boolean> {
    return ((await this.#read('device_status')) & STATUS.NEEDS_RESET) !== 0;
  }

  /** Tells the device that the driver has given up on it. */
  fail(): Promise<void> {
    return this.#alone(() => this.#fail());
  }

  /** Reads the ISR status, which clears it. */
  async readIsr(): Promise<number> {
    const { bar, offset } = this.structures.isr;
    return (await this.handle.read(bar, offset, 1)).readUInt8(0);
  }

  /** Device configuration, all of one generation (VIRTIO 1.3, 2.5.1). */
  readConfig(at: number, length: number): Promise<Buffer> {
    return this.#alone(async () => {
      const { device } = this.structures;
      if (!device || at < 0 || at + length > device.length)
        throw this.#error('ECONFIG', `has no ${length} bytes of configuration at ${at}`);
      let before = await this.#read('config_generation');
      for (let i = 0; i < CONFIG_READS; i++) {
        const bytes = await this.handle.read(device.bar, device.offset + at, length);
        const after = await this.#read('config_generation');
        if (after === before) return bytes;
        before = after;
      }
      throw this.#error('ECONFIG', 'changes its configuration faster than it can be read');
    });
  }

  #notifyOffset(queue: number): Promise<number> {
    return this.#orFail(async () => {
      await this.#select(queue);
      const { offset, length, multiplier } = this.structures.notify;
      const at = (await this.#read('queue_notify_off')) * multiplier;
      // VIRTIO 1.3, 4.1.4.4.1
      if (at + 2 > length) throw this.#error('EQUEUE', `queue ${queue} is notified outside the structure`);
      return offset + at;
    });
  }

  async #reset(): Promise<void> {
    this.#status = 0;
    this.#features = 0n;
    await this.#write('device_status', 0);
    for (let i = 0; i < RESET_POLLS; i++) {
      if ((await this.#read('device_status')) === 0) return;
      await sleep(RESET_POLL_MS);
    }
    throw this.#error('ERESET', `is not reset after ${(RESET_POLLS * RESET_POLL_MS) / 1000} s`);
  }

  /** Adds a bit and reads it back: a device that refuses a step leaves the bit unset (VIRTIO 1.3, 3.1.1). */
  async #addStatus(bit: number): Promise<void> {
    await this.#write('device_status', this.#status | bit);
    const status = await this.#read('device_status');
    const expected = this.#status | bit;
    if ((status & expected) !== expected || (status & STATUS.NEEDS_RESET) !== 0)
      throw this.#error('ESTATUS', `refuses ${describeStatus(bit)}: its status is ${describeStatus(status)}`);
    this.#status = expected;
  }

  async #offered(): Promise<bigint> {
    let offered = 0n;
    for (let word = 0; word < 2; word++) {
      await this.#write('device_feature_select', word);
      offered |= BigInt(await this.#read('device_feature')) << BigInt(32 * word);
    }
    return offered;
  }

  async #select(queue: number): Promise<void> {
    if (queue < 0 || queue >= this.queues)
      throw this.#error('EQUEUE', `has ${this.queues} queues, no queue ${queue}`);
    await this.#write('queue_select', queue);
  }

  /** VIRTIO 1.3, 4.1.5.1.2.2: reading back tells whether the device took it. */
  async #writeVector(field: 'queue_msix_vector' | 'config_msix_vector', vector: number): Promise<boolean> {
    await this.#write(field, vector);
    return (await this.#read(field)) === vector;
  }

  async #read(field: CommonField): Promise<number> {
    const { bar, offset } = this.structures.common;
    const width = widthOf(field);
    return (await this.handle.read(bar, offset + CommonCfg.offsets[field], width)).readUIntLE(0, width);
  }

  #write(field: CommonField, value: number): Promise<void> {
    const { bar, offset } = this.structures.common;
    return this.handle.write(bar, offset + CommonCfg.offsets[field], le(value, widthOf(field)));
  }

  /** VIRTIO 1.3, 4.1.3.1: in two halves. */
  async #write64(field: 'queue_desc' | 'queue_driver' | 'queue_device', value: bigint): Promise<void> {
    const { bar, offset } = this.structures.common;
    const at = offset + CommonCfg.offsets[field];
    await this.handle.write(bar, at, le(Number(value & 0xffff_ffffn), 4));
    await this.handle.write(bar, at + 4, le(Number(value >> 32n), 4));
  }

  #error(code: string, what: string): VhostPciError {
    return new VhostPciError('device', code, `${this.handle.name} ${what}`);
  }

  /** Runs after all that was asked for before. */
  #alone<T>(run: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(run);
    this.#turn = mine.catch(() => {});
    return mine;
  }

  /** A step that goes wrong ends the initialization (VIRTIO 1.3, 3.1.1). */
  #orFail<T>(run: () => Promise<T>): Promise<T> {
    return this.#alone(async () => {
      try {
        return await run();
      } catch (error) {
        // The device may be gone, which the first error tells better.
        await this.#fail().catch(() => {});
        throw error;
      }
    });
  }

  async #fail(): Promise<void> {
    this.#status |= STATUS.FAILED;
    await this.#write('device_status', this.#status);
  }
}

function widthOf(field: CommonField): Width {
  const type = CommonCfg.fields[field];
  if (type === 'u64') throw new VhostPciError('bug', 'EWIDTH', `${field} is accessed in halves`);
  return WIDTHS[type];
}

function le(value: number, width: Width): Buffer {
  const out = Buffer.alloc(width);
  out.writeUIntLE(value, 0, width);
  return out;
}
