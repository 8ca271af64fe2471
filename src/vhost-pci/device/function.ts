/**
 * The vhost-pci-net PCI function as a vfio-user server serves it: configuration space, registers, the peer's memory in BAR2,
 * the shared pages in BAR4, interrupts, and the control queues behind it (docs/protocol.md, P1 to P6). It shows one memory
 * file for as long as it lives; what the driver says goes to the owner.
 */
import { closeSync } from 'node:fs';
import { MsixTable } from '../../pci/capabilities.js';
import type { ConfigSpace } from '../../pci/config-space.js';
import { IRQ, REGION, type RingEventfds } from '../../pci/handle.js';
import { type Mapping, native } from '../../sys/native.js';
import type { Log } from '../../util/log.js';
import type { IoFd, ServedDevice, ServedRegion, Session } from '../../vfio-user/served-device.js';
import { unmetRequirement } from '../../virtio/features.js';
import { buildConfigSpace, vectorCount } from '../../virtio/pci-config.js';
import { VirtioPciDevice } from '../../virtio/pci-device.js';
import { CFG_TYPE, PeerNotifyCap, type RegisterLayout } from '../../virtio/pci-layout.js';
import { NET_FEATURE, OFFLOAD_REQUIREMENTS } from '../../virtio-net/features.js';
import { DRIVER_FEATURES } from '../features.js';
import {
  BAR,
  BLOCK_SIZE,
  CLASS_CODE,
  CONTROL_QUEUE_SIZE,
  MSIX_SIZE,
  NOTIFY_MULTIPLIER,
  PCI_ID,
  QUEUE,
  REGISTER_BLOCK,
  REGISTERS_SIZE,
  SHMID,
  VENDOR_CAP,
} from '../identity.js';
import type { Message } from '../messages.js';
import { type SharedPagesLayout, sharedPagesLayout, writeHeader } from '../shared-pages.js';
import { DeviceControl } from './control.js';
import { Notifications } from './notifications.js';
import type { PeerWindow } from './window.js';

export interface FunctionOptions {
  readonly queuePairs: number;
  readonly interrupts: 'msix' | 'msi';
  readonly pciId: { readonly vendor: number; readonly device: number };
  readonly log: Log;
}

export interface FunctionOwner {
  driverOk(features: bigint): void;
  /** The driver reset the device, or went away: it has no peer memory any more that it may touch. */
  driverGone(): void;
  /** The driver has to let go of the peer; resolves when it has, or is late. It can be sent messages for the last time. */
  driverUnheard?(): Promise<void>;
  /** The receiver has closed its connection. */
  receiverGone?(): void;
  message(message: Message): void;
  /** The driver asks for the peer's eventfds; false while it has no peer. */
  takesRings(): boolean;
}

const LAYOUT: RegisterLayout = {
  size: REGISTERS_SIZE,
  common: { offset: REGISTER_BLOCK.common, length: BLOCK_SIZE },
  isr: { offset: REGISTER_BLOCK.isr, length: BLOCK_SIZE },
  device: { offset: REGISTER_BLOCK.config, length: BLOCK_SIZE },
  notify: { offset: REGISTER_BLOCK.notify, length: BLOCK_SIZE, multiplier: NOTIFY_MULTIPLIER },
  peerNotify: { offset: REGISTER_BLOCK.peerNotify, length: BLOCK_SIZE, multiplier: NOTIFY_MULTIPLIER },
};

/** How often the control queues are looked at when the driver's notifications do not arrive. */
const UNHEARD_POLL_MS = 10;

const CONTROL = { receive: QUEUE.CONTROL_RECEIVE, transmit: QUEUE.CONTROL_TRANSMIT } as const;

export class PciFunction implements ServedDevice, AsyncDisposable {
  readonly regions: readonly (ServedRegion | undefined)[];
  readonly window: PeerWindow;
  readonly layout: SharedPagesLayout;
  /** The shared pages of BAR4. */
  readonly pages: Mapping;
  readonly notifications: Notifications;
  readonly #options: FunctionOptions;
  readonly #owner: FunctionOwner;
  readonly #log: Log;
  readonly #pagesFd: number;
  readonly #config: ConfigSpace;
  readonly #virtio: VirtioPciDevice;
  readonly #msix: MsixTable | undefined;
  readonly #control: DeviceControl;
  readonly #irqIndex: number;
  readonly #vectors: number;
  #session: Session | undefined;
  #driver = false;

  /** Takes over the window, also when it throws (EMFILE, ENOMEM). */
  constructor(window: PeerWindow, options: FunctionOptions, owner: FunctionOwner) {
    this.window = window;
    this.#options = options;
    this.#owner = owner;
    this.#log = options.log;
    this.#irqIndex = options.interrupts === 'msix' ? IRQ.MSIX : IRQ.MSI;
    this.#vectors = vectorCount(options.interrupts, options.queuePairs + 1);
    this.layout = sharedPagesLayout(window.size);
    const undo: (() => void)[] = [() => window[Symbol.dispose]()];
    try {
      const fd = native.memfdCreate('vhost-pci-shared', this.layout.size, true);
      undo.push(() => closeSync(fd));
      const pages = new native.Mapping(fd, 0, this.layout.size, true);
      undo.push(() => pages.close());
      writeHeader(pages, this.layout);
      this.notifications = new Notifications(pages, options.queuePairs);
      this.#pagesFd = fd;
      this.pages = pages;
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
    this.#control = new DeviceControl(
      {
        message: (message) => owner.message(message),
        interrupt: (queue) => this.#virtio.raiseQueue(CONTROL[queue]),
        broken: (error) => {
          this.#log.error(`the driver's control queues: ${error.message}; it has to reset the device`);
          this.#virtio.needsReset();
          this.#driverGone();
        },
      },
      options.log,
    );
    this.#virtio = this.#makeVirtio();
    const msix = { vectors: this.#vectors, bar: BAR.MSIX, tableOffset: 0, pbaOffset: BLOCK_SIZE };
    this.#msix = options.interrupts === 'msix' ? new MsixTable(msix, MSIX_SIZE) : undefined;
    this.#config = this.#makeConfig(msix);
    this.regions = this.#makeRegions();
  }

  /** Where the receiving guest sees the dirty bitmap: BAR4 as it is programmed (docs/protocol.md, P5). */
  get bitmapAddress(): bigint {
    return this.#config.barAddress(BAR.SHARED) + BigInt(this.layout.bitmapOffset);
  }

  /** Sends a control message to the driver; without one, there is nobody to tell. */
  send(message: Message): void {
    if (this.#driver) this.#control.send(message);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.notifications[Symbol.asyncDispose]();
    this.pages.close();
    closeSync(this.#pagesFd);
    this.window[Symbol.dispose]();
  }

  // -- ServedDevice ------------------------------------------------------------------------------------------

  irqCount(index: number): number {
    return index === this.#irqIndex ? this.#vectors : 0;
  }

  read(region: number, offset: number, length: number): Buffer {
    if (region === REGION.CONFIG) return this.#config.read(offset, length);
    if (region === BAR.REGISTERS) return this.#virtio.read(offset, length);
    if (region === BAR.MSIX && this.#msix) return this.#msix.read(offset, length);
    if (region === BAR.SHARED) return this.pages.read(offset, length);
    return this.#windowRead(offset, length);
  }

  write(region: number, offset: number, data: Buffer): void {
    if (region === REGION.CONFIG) this.#config.write(offset, data);
    else if (region === BAR.REGISTERS) this.#virtio.write(offset, data);
    else if (region === BAR.MSIX && this.#msix) this.#msix.write(offset, data);
    else if (region === BAR.SHARED) this.pages.write(offset, data);
    else this.#windowWrite(offset, data);
  }

  ioFds(region: number): readonly IoFd[] {
    if (region !== BAR.REGISTERS) return [];
    return this.notifications.doorbellFds.map((fd, ring) => ({
      offset: REGISTER_BLOCK.peerNotify + ring * NOTIFY_MULTIPLIER,
      size: 2,
      fd,
    }));
  }

  takeRings(first: number, count: number): readonly RingEventfds[] | undefined {
    return this.#driver && this.#owner.takesRings() ? this.notifications.take(first, count) : undefined;
  }

  irqsChanged(index: number): void {
    if (index === this.#irqIndex) this.#routeVectors();
  }

  dmaChanged(): void {
    this.#control.memoryChanged(() => this.#session?.dma.table());
  }

  reset(): void {
    this.#virtio.reset();
    this.#config.reset();
    this.#msix?.reset();
  }

  attached(session: Session): void {
    this.#session = session;
    this.reset();
  }

  /** Memory and interrupts are shared still, and suffice for a last word with the driver. */
  async unheard(): Promise<void> {
    if (!this.#driver) return;
    const poll = setInterval(() => {
      this.#control.notified('receive');
      this.#control.notified('transmit');
    }, UNHEARD_POLL_MS);
    try {
      await this.#owner.driverUnheard?.();
    } finally {
      clearInterval(poll);
    }
  }

  detached(error?: Error): void {
    this.#log.info(error ? `receiver disconnected: ${error.message}` : 'receiver disconnected');
    this.#session = undefined;
    this.reset();
    this.#owner.receiverGone?.();
  }

  // ----------------------------------------------------------------------------------------------------------

  #makeVirtio(): VirtioPciDevice {
    return new VirtioPciDevice({
      features: DRIVER_FEATURES,
      queueSizes: [CONTROL_QUEUE_SIZE, CONTROL_QUEUE_SIZE, ...Array(this.#options.queuePairs).fill(0)],
      vectors: this.#vectors,
      layout: LAYOUT,
      checkFeatures: (accepted) => unmetRequirement(accepted, NET_FEATURE, OFFLOAD_REQUIREMENTS),
      events: {
        queueEnabled: (queue, ring) => {
          const dma = this.#session?.dma;
          if (dma && queue === QUEUE.CONTROL_RECEIVE)
            this.#control.enable('receive', ring, () => dma.table());
          if (dma && queue === QUEUE.CONTROL_TRANSMIT)
            this.#control.enable('transmit', ring, () => dma.table());
        },
        driverOk: (features) => {
          this.#driver = true;
          this.#routeVectors();
          this.#owner.driverOk(features);
        },
        reset: () => {
          this.#control.reset();
          this.#driverGone();
          this.#routeVectors();
        },
        notify: (queue) => {
          if (queue === QUEUE.CONTROL_RECEIVE) this.#control.notified('receive');
          if (queue === QUEUE.CONTROL_TRANSMIT) this.#control.notified('transmit');
        },
        peerNotify: (ring) => this.notifications.notifyPeer(ring),
        interrupt: (vector) => this.#session?.irqs.trigger(this.#irqIndex, vector),
        refused: (cause, what) => this.#log.debug(`the driver's access was ignored (${cause}): ${what}`),
      },
    });
  }

  #makeConfig(msix: { vectors: number; bar: number; tableOffset: number; pbaOffset: number }): ConfigSpace {
    const { pciId, interrupts } = this.#options;
    const at = (offset: number) => ({ bar: BAR.REGISTERS, offset, length: BLOCK_SIZE });
    return buildConfigSpace({
      identity: {
        vendorId: pciId.vendor,
        deviceId: pciId.device,
        revision: 1,
        classCode: CLASS_CODE,
        subsystemVendorId: PCI_ID.subsystemVendor,
        subsystemId: PCI_ID.subsystem,
      },
      bars: [
        { index: BAR.REGISTERS, size: REGISTERS_SIZE, bits: 32, prefetchable: false },
        ...(interrupts === 'msix'
          ? [{ index: BAR.MSIX, size: MSIX_SIZE, bits: 32, prefetchable: false } as const]
          : []),
        { index: BAR.PEER_MEMORY, size: this.window.barSize, bits: 64, prefetchable: true },
        { index: BAR.SHARED, size: this.layout.size, bits: 64, prefetchable: true },
      ],
      interrupts: interrupts === 'msix' ? { kind: 'msix', ...msix } : { kind: 'msi', vectors: this.#vectors },
      structures: [
        { cfgType: CFG_TYPE.COMMON, ...at(REGISTER_BLOCK.common) },
        { cfgType: CFG_TYPE.NOTIFY, ...at(REGISTER_BLOCK.notify), multiplier: NOTIFY_MULTIPLIER },
        { cfgType: CFG_TYPE.ISR, ...at(REGISTER_BLOCK.isr) },
        { cfgType: CFG_TYPE.DEVICE, ...at(REGISTER_BLOCK.config) },
        {
          cfgType: CFG_TYPE.SHARED_MEMORY,
          bar: BAR.PEER_MEMORY,
          offset: 0,
          length: this.window.size,
          id: SHMID.PEER_MEMORY,
        },
        {
          cfgType: CFG_TYPE.SHARED_MEMORY,
          bar: BAR.SHARED,
          offset: 0,
          length: this.layout.size,
          id: SHMID.SHARED,
        },
        {
          cfgType: CFG_TYPE.VENDOR,
          bytes: PeerNotifyCap.encode({
            vendor_id: VENDOR_CAP.VENDOR,
            kind: VENDOR_CAP.PEER_NOTIFY,
            bar: BAR.REGISTERS,
            offset: REGISTER_BLOCK.peerNotify,
            length: BLOCK_SIZE,
            notify_off_multiplier: NOTIFY_MULTIPLIER,
          }),
        },
      ],
      registers: {
        read: (_bar, offset, length) => this.#virtio.read(offset, length),
        write: (_bar, offset, data) => this.#virtio.write(offset, data),
      },
      onFunctionReset: () => this.reset(),
    });
  }

  #makeRegions(): (ServedRegion | undefined)[] {
    const registers = (size: number): ServedRegion => ({ size, readable: true, writable: true });
    const memory = (size: number, fd: number, mapped: number): ServedRegion => ({
      ...registers(size),
      mappable: { fd, fdOffset: 0, areas: [{ offset: 0, size: mapped }] },
    });
    const regions: (ServedRegion | undefined)[] = Array(9).fill(undefined);
    regions[BAR.REGISTERS] = registers(REGISTERS_SIZE);
    if (this.#msix) regions[BAR.MSIX] = registers(MSIX_SIZE);
    // The area ends with the file: a page past its end would kill the receiver's QEMU.
    regions[BAR.PEER_MEMORY] = memory(this.window.barSize, this.window.fd, this.window.size);
    regions[BAR.SHARED] = memory(this.layout.size, this.#pagesFd, this.layout.size);
    regions[REGION.CONFIG] = registers(4096);
    return regions;
  }

  #driverGone(): void {
    if (!this.#driver) return;
    this.#driver = false;
    this.#owner.driverGone();
  }

  #routeVectors(): void {
    for (let pair = 0; pair < this.#options.queuePairs; pair++) {
      const vector = this.#driver ? this.#virtio.queueVector(QUEUE.FIRST_RECEIVE + pair) : undefined;
      this.notifications.setVector(
        pair,
        vector === undefined ? undefined : this.#session?.irqs.fd(this.#irqIndex, vector),
      );
    }
  }

  /** Accesses through the socket to memory that is normally mapped; what lies past the file reads 0. */
  #windowRead(offset: number, length: number): Buffer {
    const out = Buffer.alloc(length);
    const inside = Math.min(length, this.window.size - offset);
    if (inside > 0) this.window.mapping.read(offset, inside).copy(out);
    return out;
  }

  #windowWrite(offset: number, data: Buffer): void {
    const inside = Math.min(data.length, this.window.size - offset);
    if (inside > 0) this.window.mapping.write(offset, data.subarray(0, inside));
  }
}
