/**
 * Device side of the virtio-pci registers in one BAR (VIRTIO 1.3, 4.1.4): the state that a driver sets up and the rules
 * for it. Serves no queue and holds no memory: it tells its owner what the driver has asked for, by events. Accesses that
 * the specification forbids are ignored and counted by cause.
 */
import type { RingAddresses } from '../sys/native.js';
import { VhostPciError } from '../util/errors.js';
import { bits, hasBit } from '../util/flags.js';
import { type CommonField, type FieldWrite, fieldWrite } from './common-access.js';
import { FEATURE, featureWord, refusal } from './features.js';
import {
  CommonCfg,
  ISR,
  NO_VECTOR,
  type NotifyWindow,
  type RegisterLayout,
  type RegisterWindow,
} from './pci-layout.js';
import { type AddressField, QueueRegisters } from './queue-registers.js';
import { describeStatus, illegalStatus, STATUS } from './status.js';

/** Why something that a driver did was ignored. */
export const REFUSAL_CAUSES = ['access', 'status', 'features', 'queue', 'vector', 'notify'] as const;
export type RefusalCause = (typeof REFUSAL_CAUSES)[number];

/** What the owner is told. An event may call back into the device. */
export interface DeviceEvents {
  /** The driver has enabled a queue. Nobody has looked yet whether its addresses lead to memory. */
  queueEnabled(queue: number, ring: RingAddresses): void;
  driverOk(features: bigint): void;
  /** All that the driver had set up is gone. The driver sees status 0 once this has returned. */
  reset(): void;
  notify(queue: number): void;
  peerNotify?(ring: number): void;
  /** Signal this vector; without vectors it is 0 and means INTx. */
  interrupt(vector: number): void;
  /** Without vectors: ISR status has become non-zero, or zero. */
  isrChanged?(pending: boolean): void;
  /** For the log. */
  refused?(cause: RefusalCause, what: string): void;
}

export interface VirtioPciDeviceOptions {
  /** Offered features. */
  readonly features: bigint;
  /** Largest size of each queue; 0 for one that has a vector but no ring of its own (protocol.md, P4). */
  readonly queueSizes: readonly number[];
  /** Number of MSI-X or MSI vectors; 0 for INTx. */
  readonly vectors: number;
  readonly layout: RegisterLayout;
  /** Device-specific configuration as it is now; what it does not fill reads 0. */
  readonly deviceConfig?: () => Uint8Array;
  /** The device type's own reason to refuse a set of features. */
  readonly checkFeatures?: (accepted: bigint) => string | undefined;
  readonly events: DeviceEvents;
}

/** Features that add registers or change their meaning in ways that this model does not have. */
const UNSUPPORTED = bits(
  FEATURE.SR_IOV,
  FEATURE.NOTIFICATION_DATA,
  FEATURE.NOTIF_CONFIG_DATA,
  FEATURE.RING_RESET,
  FEATURE.ADMIN_VQ,
);

export class VirtioPciDevice {
  /** Ignored accesses. */
  readonly refusals: Record<RefusalCause, number>;
  readonly #options: VirtioPciDeviceOptions;
  readonly #events: DeviceEvents;
  #status = 0;
  #deviceFeatureSelect = 0;
  #driverFeatureSelect = 0;
  #driverFeatures = 0n;
  #configVector = NO_VECTOR;
  #queueSelect = 0;
  #queues: QueueRegisters[];
  #isr = 0;
  #generation = 0;
  #configDirty = false;

  /** The fields that a driver may write. */
  readonly #writes: { readonly [field in CommonField]?: (write: FieldWrite) => void } = {
    device_feature_select: ({ value }) => {
      this.#deviceFeatureSelect = Number(value);
    },
    driver_feature_select: ({ value }) => {
      this.#driverFeatureSelect = Number(value);
    },
    driver_feature: ({ value }) => this.#acceptFeatures(value),
    config_msix_vector: ({ value }) => {
      this.#configVector = this.#vector(Number(value), 'configuration changes');
    },
    device_status: ({ value }) => this.#writeStatus(Number(value)),
    queue_select: ({ value }) => {
      this.#queueSelect = Number(value);
    },
    queue_size: ({ value }) => this.#withQueue((queue) => queue.setSize(Number(value), this.#packed)),
    queue_msix_vector: ({ value }) =>
      this.#withQueue((queue) => {
        queue.vector = this.#vector(Number(value), `queue ${this.#queueSelect}`);
        return undefined;
      }),
    queue_enable: ({ value }) => this.#enableQueue(Number(value)),
    queue_desc: (write) => this.#writeAddress('queue_desc', write),
    queue_driver: (write) => this.#writeAddress('queue_driver', write),
    queue_device: (write) => this.#writeAddress('queue_device', write),
  };

  constructor(options: VirtioPciDeviceOptions) {
    if (options.features & UNSUPPORTED)
      throw new VhostPciError('bug', 'EFEATURES', 'a feature is offered that the registers do not have');
    this.#options = options;
    this.#events = options.events;
    this.#queues = options.queueSizes.map((size) => new QueueRegisters(size));
    this.refusals = { access: 0, status: 0, features: 0, queue: 0, vector: 0, notify: 0 };
  }

  get status(): number {
    return this.#status;
  }

  /** The negotiated features; 0n before the device has agreed to them. */
  get features(): bigint {
    return this.#status & STATUS.FEATURES_OK ? this.#driverFeatures : 0n;
  }

  /** The vector of a queue, or undefined when the driver wants none. */
  queueVector(queue: number): number | undefined {
    const vector = this.#queues[queue]?.vector ?? NO_VECTOR;
    return vector === NO_VECTOR ? undefined : vector;
  }

  /** Tells the driver of used buffers; ignored before DRIVER_OK (VIRTIO 1.3, 2.1.2). */
  raiseQueue(queue: number): void {
    this.#raise(ISR.QUEUE, this.#queues[queue]?.vector ?? NO_VECTOR);
  }

  /** Tells the driver that the device configuration has changed. */
  raiseConfig(): void {
    this.#configDirty = true;
    this.#raise(ISR.CONFIG, this.#configVector);
  }

  /** The device cannot go on before the driver resets it. */
  needsReset(): void {
    if (this.#status & STATUS.NEEDS_RESET) return;
    this.#status |= STATUS.NEEDS_RESET;
    this.#raise(ISR.CONFIG, this.#configVector);
  }

  /** What writing 0 to device_status does; for a reset of the whole function too. */
  reset(): void {
    this.#deviceFeatureSelect = 0;
    this.#driverFeatureSelect = 0;
    this.#driverFeatures = 0n;
    this.#configVector = NO_VECTOR;
    this.#queueSelect = 0;
    this.#queues = this.#options.queueSizes.map((size) => new QueueRegisters(size));
    this.#status = 0;
    this.#setIsr(0);
    this.#events.reset();
  }

  /** `length` bytes of the BAR, of any alignment. Throws `ERANGE` (scope message) outside it, as `write` does. */
  read(offset: number, length: number): Buffer {
    this.#checkRange(offset, length);
    const out = Buffer.alloc(length);
    const { common, device, isr } = this.#options.layout;
    const copy = (window: RegisterWindow, image: () => Uint8Array): void => {
      const from = Math.max(offset, window.offset);
      const to = Math.min(offset + length, window.offset + window.length);
      if (from < to) out.set(image().subarray(from - window.offset, to - window.offset), from - offset);
    };
    copy(common, () => this.#commonImage());
    copy(device, () => this.#readDeviceConfig());
    copy({ offset: isr.offset, length: 1 }, () => this.#takeIsr());
    return out;
  }

  write(offset: number, data: Uint8Array): void {
    this.#checkRange(offset, data.length);
    const { common, notify, peerNotify } = this.#options.layout;
    const inside = (w: RegisterWindow): boolean => offset >= w.offset && offset < w.offset + w.length;
    const write = inside(common) ? fieldWrite(offset - common.offset, data) : undefined;
    const run = write && this.#writes[write.field];
    if (write && run) run(write);
    else if (inside(notify)) this.#notified(notify, offset, data, 'queue');
    else if (peerNotify && inside(peerNotify)) this.#notified(peerNotify, offset, data, 'ring');
    else this.#refuse('access', `${data.length} bytes written to 0x${offset.toString(16)}`);
  }

  get #packed(): boolean {
    return hasBit(this.features, FEATURE.PACKED);
  }

  #checkRange(offset: number, length: number): void {
    if (offset >= 0 && length >= 0 && offset + length <= this.#options.layout.size) return;
    throw new VhostPciError(
      'message',
      'ERANGE',
      `access to ${length} bytes at ${offset} leaves the register BAR`,
    );
  }

  #refuse(cause: RefusalCause, what: string): void {
    this.refusals[cause]++;
    this.#events.refused?.(cause, what);
  }

  #raise(isr: number, vector: number): void {
    if ((this.#status & STATUS.DRIVER_OK) === 0) return;
    // The bits tell an INTx handler what happened; a driver with vectors does not look at them.
    this.#setIsr(this.#isr | isr);
    if (this.#options.vectors === 0) this.#events.interrupt(0);
    else if (vector !== NO_VECTOR) this.#events.interrupt(vector);
  }

  #setIsr(isr: number): void {
    const changed = (this.#isr === 0) !== (isr === 0);
    this.#isr = isr;
    if (changed && this.#options.vectors === 0) this.#events.isrChanged?.(isr !== 0);
  }

  /** VIRTIO 1.3, 4.1.4.5: reading the status clears it. */
  #takeIsr(): Buffer {
    const now = Buffer.of(this.#isr);
    this.#setIsr(0);
    return now;
  }

  #commonImage(): Buffer {
    const queue = this.#queues[this.#queueSelect];
    return CommonCfg.encode({
      device_feature_select: this.#deviceFeatureSelect,
      device_feature: featureWord(this.#options.features, this.#deviceFeatureSelect),
      driver_feature_select: this.#driverFeatureSelect,
      driver_feature: featureWord(this.#driverFeatures, this.#driverFeatureSelect),
      config_msix_vector: this.#configVector,
      num_queues: this.#queues.length,
      device_status: this.#status,
      config_generation: this.#generation,
      queue_select: this.#queueSelect,
      queue_size: queue?.size ?? 0,
      queue_msix_vector: queue?.vector ?? NO_VECTOR,
      queue_enable: queue?.enabled ? 1 : 0,
      queue_notify_off: queue ? this.#queueSelect : 0,
      queue_desc: queue?.address('queue_desc') ?? 0n,
      queue_driver: queue?.address('queue_driver') ?? 0n,
      queue_device: queue?.address('queue_device') ?? 0n,
    });
  }

  /** VIRTIO 1.3, 4.1.4.3.1: the generation moves when a change is first read, so that it cannot wrap unseen. */
  #readDeviceConfig(): Uint8Array {
    if (this.#configDirty) this.#generation = (this.#generation + 1) & 0xff;
    this.#configDirty = false;
    const { deviceConfig, layout } = this.#options;
    const image = Buffer.alloc(layout.device.length);
    if (deviceConfig) image.set(deviceConfig().subarray(0, image.length));
    return image;
  }

  /** Bits above 63 are never offered: what is written there is ignored, and reads 0 (VIRTIO 1.3, 4.1.4.3.1). */
  #acceptFeatures(value: bigint): void {
    const select = this.#driverFeatureSelect;
    if (this.#status & STATUS.FEATURES_OK) this.#refuse('features', 'features are written after FEATURES_OK');
    else if (select > 1) {
      if (value !== 0n) this.#refuse('features', `features above 63 are accepted`);
    } else {
      const shift = BigInt(32 * select);
      this.#driverFeatures = (this.#driverFeatures & ~(0xffff_ffffn << shift)) | (value << shift);
    }
  }

  #writeStatus(written: number): void {
    const illegal = illegalStatus(this.#status, written);
    if (written === 0) this.reset();
    else if (illegal) this.#refuse('status', `${describeStatus(this.#status)}: the driver ${illegal}`);
    else this.#addStatus(written & ~this.#status & ~STATUS.NEEDS_RESET);
  }

  #addStatus(added: number): void {
    const accepted = this.#driverFeatures;
    const refused =
      added & STATUS.FEATURES_OK
        ? (refusal(this.#options.features, accepted) ?? this.#options.checkFeatures?.(accepted))
        : undefined;
    // The driver learns of a refusal by reading FEATURES_OK back (VIRTIO 1.3, 3.1.1).
    this.#status |= refused ? added & ~STATUS.FEATURES_OK : added;
    if (refused) this.#refuse('features', `the features are refused: ${refused}`);
    if (added & STATUS.DRIVER_OK) this.#events.driverOk(accepted);
  }

  /** VIRTIO 1.3, 4.1.5.1.2.1: a vector that does not exist reads back as none. */
  #vector(vector: number, what: string): number {
    if (vector === NO_VECTOR || vector < this.#options.vectors) return vector;
    this.#refuse('vector', `vector ${vector} for ${what}, there are ${this.#options.vectors}`);
    return NO_VECTOR;
  }

  #withQueue(change: (queue: QueueRegisters) => string | undefined): void {
    const queue = this.#queues[this.#queueSelect];
    const refused = queue ? change(queue) : 'there is no such queue';
    if (refused) this.#refuse('queue', `queue ${this.#queueSelect}: ${refused}`);
  }

  #writeAddress(field: AddressField, { value, mask }: FieldWrite): void {
    this.#withQueue((queue) => queue.setAddress(field, value, mask));
  }

  #enableQueue(value: number): void {
    this.#withQueue((queue) => {
      if (value !== 1) return `${value} written to queue_enable`;
      if ((this.#status & STATUS.FEATURES_OK) === 0) return 'enabled before FEATURES_OK';
      const refused = queue.enable(this.#packed);
      if (!refused) this.#events.queueEnabled(this.#queueSelect, queue.ring);
      return refused;
    });
  }

  /** The address says what is notified; the value repeats it and is not looked at. */
  #notified(window: NotifyWindow, offset: number, data: Uint8Array, kind: 'queue' | 'ring'): void {
    const index = Math.floor((offset - window.offset) / window.multiplier);
    const whole = data.length === 2 && (offset - window.offset) % window.multiplier === 0;
    const live = (this.#status & (STATUS.DRIVER_OK | STATUS.FAILED)) === STATUS.DRIVER_OK;
    const there = kind === 'ring' || this.#queues[index]?.enabled === true;
    if (!whole || !live || !there)
      this.#refuse('notify', `${data.length} bytes to the notification of ${kind} ${index}`);
    else if (kind === 'queue') this.#events.notify(index);
    else this.#events.peerNotify?.(index);
  }
}
