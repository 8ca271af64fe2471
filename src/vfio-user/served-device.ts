/** What a vfio-user server serves. Regions and interrupts have VFIO's numbers (src/pci/handle.ts). */
import type { RegionArea, RingEventfds } from '../pci/handle.js';
import type { DmaTable } from './dma-table.js';
import type { IrqVectors } from './irq-vectors.js';

export interface ServedRegion {
  /** Bytes; a power of two for a BAR, or QEMU ends itself. */
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** What a client may map: areas of the region, found in `fd` at `fdOffset` + area.offset. */
  readonly mappable?: {
    /** Stays the device's; the client gets a duplicate. */
    readonly fd: number;
    readonly fdOffset: number;
    /** Multiples of the page size, inside both the region and the file: a page past its end kills QEMU. */
    readonly areas: readonly RegionArea[];
  };
}

/** A part of a region that a client may write by signalling an eventfd. */
export interface IoFd {
  readonly offset: number;
  /** Width of the access in bytes. */
  readonly size: number;
  /** Stays the device's. */
  readonly fd: number;
}

/** What a device may use while a client is connected. */
export interface Session {
  readonly irqs: IrqVectors;
  readonly dma: DmaTable;
}

/**
 * Requests of one client arrive one after the other: the next waits until a returned promise has settled. An error
 * with an errno as `code` is answered with that errno, any other with EIO.
 */
export interface ServedDevice {
  /** By region number; undefined for an absent one. Looked at for every request: it may change between clients. */
  readonly regions: readonly (ServedRegion | undefined)[];
  /** Vectors of an interrupt index (IRQ.MSIX, …); 0 for an absent one. */
  irqCount(index: number): number;
  /** The bytes; offset and length lie within the region. */
  read(region: number, offset: number, length: number): Buffer | Promise<Buffer>;
  write(region: number, offset: number, data: Buffer): void | Promise<void>;
  /** For docs/protocol.md, P7. */
  ioFds?(region: number): readonly IoFd[];
  /**
   * Hands out the eventfds of at most `count` rings from `first` on (docs/protocol.md, P7); undefined while there is no peer
   * whose rings the client has. They stay the device's, which neither waits on nor forwards them any more.
   */
  takeRings?(first: number, count: number): readonly RingEventfds[] | undefined;
  /** `session.irqs.fd()` of these vectors may have changed. */
  irqsChanged?(index: number, start: number, count: number): void;
  /**
   * Memory was added or removed: tables taken from `dma.table()` before are closed. Queues made from them have to be
   * closed or given the new one: a removal is answered once this has settled.
   */
  dmaChanged(dma: DmaTable): void | Promise<void>;
  reset(): void | Promise<void>;
  attached(session: Session): void;
  /**
   * The client reads no more and has not ended: what it has mapped may still be in use, and the session works but for messages.
   * The session ends when this has settled.
   */
  unheard?(): Promise<void>;
  /** The client is gone, with a reason unless it left in an orderly way. The session's memory goes once this settles. */
  detached(error?: Error): void | Promise<void>;
}
