/**
 * A device that is moved by hand: the real PCI function, with control messages of the test's making, and a virtio-net peer
 * in its memory file. Owns no test.
 */

import { IRQ } from '../../../src/pci/handle.js';
import { type ControlDeviceQueue, type DriverQueue, native } from '../../../src/sys/native.js';
import type { ServedDevice, Session } from '../../../src/vfio-user/served-device.js';
import { Server } from '../../../src/vfio-user/server.js';
import { PciFunction } from '../../../src/vhost-pci/device/function.js';
import { PeerWindow } from '../../../src/vhost-pci/device/window.js';
import { BAR, PCI_ID, QUEUE, REGISTER_BLOCK } from '../../../src/vhost-pci/identity.js';
import {
  encodeMessage,
  type MemInfoBar,
  type Message,
  VIRTQ_FLAG,
  type Virtq,
} from '../../../src/vhost-pci/messages.js';
import { CommonCfg } from '../../../src/virtio/pci-layout.js';
import { MEMORY_BYTES, type Receiver, type Rig, until } from './rig.js';

export const GUEST = 0x4000_0000n;
export const FEATURES = (1n << 32n) | (1n << 15n);

export class RawDevice {
  readonly function: PciFunction;
  /** Messages of the driver. */
  readonly heard: Message[] = [];
  session: Session | undefined;
  /** DRIVER_OK, so often. */
  ready = 0;
  /** Answers OFF with OFF, as a driver that leaves needs it. */
  answersOff = false;
  #control: ControlDeviceQueue | undefined;

  constructor(rig: Rig, options: { readonly served?: (real: ServedDevice) => Partial<ServedDevice> } = {}) {
    const window = PeerWindow.create(rig.memoryFile, MEMORY_BYTES);
    this.function = new PciFunction(
      window,
      { queuePairs: 2, interrupts: 'msix', pciId: PCI_ID, log: rig.log },
      {
        driverOk: () => {
          this.ready++;
        },
        driverGone: () => this.#forget(),
        takesRings: () => false,
        message: (message) => {
          this.heard.push(message);
          if (this.answersOff && message.kind === 'connection') void this.send(message);
        },
      },
    );
    const real = this.function;
    const device: ServedDevice = {
      regions: real.regions,
      irqCount: (index) => real.irqCount(index),
      read: (region, offset, length) => real.read(region, offset, length),
      write: (region, offset, data) => real.write(region, offset, data),
      ioFds: (region) => real.ioFds(region),
      irqsChanged: (index) => real.irqsChanged(index),
      dmaChanged: () => real.dmaChanged(),
      reset: () => real.reset(),
      attached: (session) => {
        this.session = session;
        real.attached(session);
      },
      detached: (error) => {
        this.session = undefined;
        real.detached(error);
        this.#forget();
      },
      ...options.served?.(real),
    };
    const server = new Server(device, { path: rig.vfioUser, log: rig.log });
    rig.defer(async () => {
      await server[Symbol.asyncDispose]();
      await real[Symbol.asyncDispose]();
    });
  }

  /** Resolves when a driver has set DRIVER_OK so often. */
  async driver(times = 1): Promise<void> {
    await until('DRIVER_OK', 5000, () => this.ready >= times);
  }

  /** Addresses that the driver gave for a queue. */
  ring(queue: number): { size: number; desc: bigint; driver: bigint; device: bigint } {
    const { function: fn } = this;
    const common = REGISTER_BLOCK.common;
    const select = Buffer.alloc(2);
    select.writeUInt16LE(queue);
    fn.write(BAR.REGISTERS, common + CommonCfg.offsets.queue_select, select);
    const c = CommonCfg.decode(fn.read(BAR.REGISTERS, common, CommonCfg.size));
    return { size: c.queue_size, desc: c.queue_desc, driver: c.queue_driver, device: c.queue_device };
  }

  /** Sends bytes as one chain through the control receiveq. */
  async bytes(...messages: readonly Uint8Array[]): Promise<void> {
    const session = this.session!;
    this.#control ??= new native.ControlDeviceQueue(session.dma.table(), this.ring(QUEUE.CONTROL_RECEIVE));
    for (const data of messages) {
      const chain = await until('a buffer', 2000, () => this.#control!.pop());
      this.#control.push(chain.head, data);
    }
    this.interrupt();
  }

  send(...messages: readonly Message[]): Promise<void> {
    return this.bytes(...messages.map(encodeMessage));
  }

  interrupt(): void {
    this.session?.irqs.trigger(IRQ.MSIX, 0);
  }

  /** The next message of this kind that has not been asked for yet. */
  async answer<K extends Message['kind']>(kind: K): Promise<Extract<Message, { kind: K }>> {
    const i = await until(kind, 3000, () => {
      const found = this.heard.findIndex((m) => m.kind === kind);
      return found < 0 ? undefined : found + 1;
    });
    return this.heard.splice(i - 1, 1)[0] as Extract<Message, { kind: K }>;
  }

  info(change: Partial<MemInfoBar> = {}): MemInfoBar {
    const regions = [{ gpa: GUEST, size: BigInt(MEMORY_BYTES), bar_offset: 0n }];
    return { kind: 'mem-info-bar', bar: 2, features: FEATURES, mtu: 0, regions, ...change };
  }

  /** Memory, rings and ON of a sound peer. */
  async turnOn(peer: MemoryPeer): Promise<void> {
    await this.send(this.info());
    await this.answer('mem-info-gva');
    await this.send({ kind: 'virtq-info', virtqs: peer.virtqs() }, { kind: 'connection', on: true });
  }

  /** Its queue goes with the driver's memory. */
  #forget(): void {
    this.#control?.close();
    this.#control = undefined;
  }
}

/** One queue pair of a virtio-net driver in the window of a device, without any connection. */
export class MemoryPeer {
  readonly queue: DriverQueue;

  constructor(rig: Rig, device: RawDevice) {
    this.queue = new native.DriverQueue({
      mapping: device.function.window.mapping,
      offset: 0,
      address: GUEST,
      size: 64,
      bufferBytes: 2048,
      features: FEATURES,
    });
    rig.defer(() => this.queue.close());
  }

  /** Polled on both sides: no eventfd. */
  virtqs(change: Partial<Virtq> = {}): Virtq[] {
    const flags = VIRTQ_FLAG.STARTED | VIRTQ_FLAG.POLL;
    return [this.queue.receiveq, this.queue.transmitq].map((r) => ({
      next_avail: 0,
      flags,
      enable: 1,
      num: r.size,
      reserved: 0,
      desc: r.desc,
      avail: r.driver,
      used: r.device,
      ...change,
    }));
  }
}

export interface RawBench {
  readonly device: RawDevice;
  readonly peer: MemoryPeer;
  readonly receiver: Receiver;
}

/** A driver that is ready at a device that is moved by hand, and a peer that the device has not told of. */
export async function rawBench(rig: Rig): Promise<RawBench> {
  const device = new RawDevice(rig);
  const peer = new MemoryPeer(rig, device);
  const receiver = rig.receiver({ mode: 'poll' });
  // Before the driver ends, which waits for the answer to its OFF.
  rig.defer(() => {
    device.answersOff = true;
  });
  await device.driver();
  return { device, peer, receiver };
}
