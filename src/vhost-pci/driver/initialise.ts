/**
 * Brings a vhost-pci-net device up to the point where only DRIVER_OK is missing, and takes it down again (the seed, "Device
 * Initialization"): features, control queues filled with buffers, interrupts, the shared pages. Follows no messages.
 */

import { barAddress, enableBusMaster } from '../../pci/function.js';
import type { PciHandle, RegionArea } from '../../pci/handle.js';
import type { Mapping, NotifyTarget } from '../../sys/native.js';
import { errorText, VhostPciError } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { checkWindow } from '../../virtio/pci-capabilities.js';
import { VirtioPciDriver } from '../../virtio/pci-driver.js';
import { type BarWindow, PeerNotifyCap } from '../../virtio/pci-layout.js';
import { NET_FEATURE } from '../../virtio-net/features.js';
import { DRIVER_FEATURES, DRIVER_REQUIRED, driverFeatures } from '../features.js';
import { QUEUE, SHMID, VENDOR_CAP } from '../identity.js';
import { readHeader, type SharedPagesLayout } from '../shared-pages.js';
import { DriverControl } from './control.js';
import { Interrupts } from './interrupts.js';

/** The eventfd or register that signals the peer's ring. */
type PeerNotifyTarget = Pick<NotifyTarget, 'fd' | 'mmio'>;

/** What of a BAR is mapped: `mapping` starts at `area.offset` of it. */
export interface MappedBar {
  readonly mapping: Mapping;
  readonly area: RegionArea;
}

export class InitialisedDevice {
  /** Queue pairs that the device has vectors for. */
  readonly pairs: number;
  readonly control: DriverControl;
  readonly interrupts: Interrupts;
  /** BAR4. */
  readonly pages: Mapping;
  readonly layout: SharedPagesLayout;
  readonly #shared: BarWindow;
  readonly #handle: PciHandle;
  readonly #virtio: VirtioPciDriver;
  readonly #peerNotify: readonly PeerNotifyTarget[];

  private constructor(
    handle: PciHandle,
    virtio: VirtioPciDriver,
    parts: {
      pairs: number;
      control: DriverControl;
      interrupts: Interrupts;
      pages: Mapping;
      layout: SharedPagesLayout;
      shared: BarWindow;
      peerNotify: readonly PeerNotifyTarget[];
    },
  ) {
    this.#handle = handle;
    this.#virtio = virtio;
    this.pairs = parts.pairs;
    this.control = parts.control;
    this.interrupts = parts.interrupts;
    this.pages = parts.pages;
    this.layout = parts.layout;
    this.#shared = parts.shared;
    this.#peerNotify = parts.peerNotify;
  }

  /** Throws (scope `device`) when this is no vhost-pci-net device or it refuses. `harvest` is called when messages may wait. */
  static async create(
    handle: PciHandle,
    accept: bigint | undefined,
    log: Log,
    harvest: () => void,
  ): Promise<InitialisedDevice> {
    const undo: (() => unknown)[] = [];
    try {
      await enableBusMaster(handle);
      const virtio = await VirtioPciDriver.open(handle);
      const pairs = virtio.queues - QUEUE.FIRST_RECEIVE;
      if (pairs < 1) throw notOurs(handle, `has ${virtio.queues} queues`);
      const wanted = accept === undefined ? DRIVER_FEATURES : driverFeatures(accept);
      await virtio.negotiate({ wanted, required: DRIVER_REQUIRED, names: NET_FEATURE });

      const { pages, shared } = await mapSharedPages(handle, virtio);
      undo.push(() => pages.close());
      const layout = readHeader(pages);
      const control = await DriverControl.create(handle, log);
      undo.push(() => control[Symbol.asyncDispose]());
      const interrupts = await Interrupts.create(handle, pairs, harvest);
      undo.push(() => interrupts[Symbol.asyncDispose]());

      // Undone first: the device must not use the queues' memory once it is given back.
      undo.push(() => virtio.reset().catch(() => {}));
      for (const [queue, ring] of [
        [QUEUE.CONTROL_RECEIVE, control.receive],
        [QUEUE.CONTROL_TRANSMIT, control.transmit],
      ] as const)
        await virtio.setUpQueue(queue, ring.addresses, interrupts.controlVector);
      let taken = await virtio.setConfigVector(interrupts.controlVector);
      for (let pair = 0; pair < pairs; pair++)
        taken = (await virtio.setQueueVector(QUEUE.FIRST_RECEIVE + pair, interrupts.vector(pair))) && taken;
      if (!taken) throw notOurs(handle, 'does not take the interrupt vectors that it offers');

      const peerNotify = await peerNotifyTargets(handle, virtio, 2 * pairs);
      control.notify = (queue) => {
        const number = queue === 'receive' ? QUEUE.CONTROL_RECEIVE : QUEUE.CONTROL_TRANSMIT;
        virtio
          .notify(number)
          .catch((error) => log.warn(`the device cannot be notified: ${errorText(error)}`));
      };
      return new InitialisedDevice(handle, virtio, {
        pairs,
        control,
        interrupts,
        pages,
        layout,
        shared,
        peerNotify,
      });
    } catch (error) {
      for (const step of undo.reverse()) await step();
      throw error;
    }
  }

  /** From here on the device may send messages. */
  async driverOk(): Promise<void> {
    await this.#virtio.driverOk();
    this.control.notify('receive');
  }

  /** True when only a reset helps the device (VIRTIO 1.3, 2.1.2). */
  needsReset(): Promise<boolean> {
    return this.#virtio.needsReset();
  }

  /** Maps the BAR that holds the peer's memory: its first mappable area. */
  async mapBar(bar: number): Promise<MappedBar> {
    const { areas } = await this.#handle.regionInfo(bar);
    const area = areas[0];
    if (!area)
      throw new VhostPciError('device', 'ENOBAR', `BAR ${bar} of ${this.#handle.name} cannot be mapped`);
    return { mapping: await this.#handle.map(bar, area, true), area };
  }

  /** Where the shared pages are in the PCI address space of the machine that the driver runs in. */
  async sharedAddress(): Promise<bigint> {
    return (await barAddress(this.#handle, this.#shared.bar)) + BigInt(this.#shared.offset);
  }

  /** How the peer's ring is signalled when its doorbell word alone does not do. */
  peerNotifyTarget(ring: number): PeerNotifyTarget {
    return this.#peerNotify[ring] ?? {};
  }

  /** Resets the device and gives everything back; the device may be gone already. */
  async release(): Promise<void> {
    await this.#virtio.reset().catch(() => {
      // Gone: there is nothing to reset.
    });
    await this.interrupts[Symbol.asyncDispose]();
    await this.control[Symbol.asyncDispose]();
    this.pages.close();
  }
}

function notOurs(handle: PciHandle, what: string): VhostPciError {
  return new VhostPciError('device', 'ENODEV', `${handle.name} is no vhost-pci-net device: it ${what}`);
}

async function mapSharedPages(
  handle: PciHandle,
  virtio: VirtioPciDriver,
): Promise<{ pages: Mapping; shared: BarWindow }> {
  const shared = virtio.structures.sharedMemory.get(SHMID.SHARED);
  if (!shared) throw notOurs(handle, 'has no shared page set');
  const { areas } = await handle.regionInfo(shared.bar);
  const area = areas.find(
    (a) => a.offset <= shared.offset && shared.offset + shared.length <= a.offset + a.size,
  );
  if (!area) throw notOurs(handle, `shows a shared page set in BAR ${shared.bar} that cannot be mapped`);
  const pages = await handle.map(shared.bar, { offset: shared.offset, size: shared.length }, true);
  return { pages, shared };
}

async function peerNotifyTargets(
  handle: PciHandle,
  virtio: VirtioPciDriver,
  rings: number,
): Promise<PeerNotifyTarget[]> {
  const data = virtio.structures.vendorData.find(
    (d) =>
      d.vendorId === VENDOR_CAP.VENDOR &&
      d.bytes.length >= PeerNotifyCap.size &&
      PeerNotifyCap.decode(d.bytes).kind === VENDOR_CAP.PEER_NOTIFY,
  );
  if (!data) throw notOurs(handle, 'has no VIRTIO_PCI_CAP_PEER_NOTIFY_CFG');
  const { bar, offset, length, notify_off_multiplier } = PeerNotifyCap.decode(data.bytes);
  const needed = (rings - 1) * notify_off_multiplier + 2;
  await checkWindow(handle, 'the peer notification structure', { bar, offset, length }, needed, 2);
  const targets: PeerNotifyTarget[] = [];
  for (let ring = 0; ring < rings; ring++)
    targets.push(await handle.notifyTarget(bar, offset + ring * notify_off_multiplier, ring));
  return targets;
}
