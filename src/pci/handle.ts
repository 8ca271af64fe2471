/**
 * How a driver reaches a PCI device: registers, mappings, DMA and interrupts. vfio-user's client and kernel VFIO
 * implement it; what is above knows neither. Region and interrupt numbers are VFIO's (linux/vfio.h).
 */
import type { Mapping, NotifyTarget } from '../sys/native.js';

/** VFIO_PCI_*_REGION_INDEX */
export const REGION = {
  BAR0: 0,
  BAR1: 1,
  BAR2: 2,
  BAR3: 3,
  BAR4: 4,
  BAR5: 5,
  ROM: 6,
  CONFIG: 7,
  VGA: 8,
} as const;
/** VFIO_PCI_*_IRQ_INDEX */
export const IRQ = { INTX: 0, MSI: 1, MSIX: 2, ERR: 3, REQ: 4 } as const;

export interface RegionArea {
  readonly offset: number;
  readonly size: number;
}

export interface RegionInfo {
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Parts that can be mapped; empty when none can. */
  readonly areas: readonly RegionArea[];
}

/** A peer's own eventfds of one of its rings, as far as it has them. */
export interface RingEventfds {
  /** Signalled by the peer. */
  readonly kick?: number;
  /** To be signalled for the peer. */
  readonly call?: number;
}

export interface PciHandle extends AsyncDisposable {
  /** As the user named it: `vfio-user:/run/x.sock`, `0000:01:00.0`. */
  readonly name: string;
  /** Resolves once the device is gone (server ended, unplug asked for), with the reason. Never rejects. */
  readonly gone: Promise<Error>;

  regionInfo(region: number): Promise<RegionInfo>;
  read(region: number, offset: number, length: number): Promise<Buffer>;
  /** Resolves when the device has taken the write. */
  write(region: number, offset: number, data: Uint8Array): Promise<void>;
  /** Maps one of the region's areas. The caller closes the mapping. */
  map(region: number, area: RegionArea, writable: boolean): Promise<Mapping>;
  /** How a worker thread reaches the 16-bit register at `offset` without JavaScript. */
  notifyTarget(region: number, offset: number, value: number): Promise<NotifyTarget>;

  /**
   * For devices whose interrupts and notifications a peer's eventfds are behind (docs/protocol.md, P7): those of rings 0 to
   * `count` - 1, which the caller uses from now on instead, and closes. Fewer or none when the device keeps them.
   */
  takeRings?(count: number): Promise<RingEventfds[]>;

  /** Lets the device read and write `size` bytes of the memfd `fd` from `offset`, at DMA address `address`. */
  mapDma(fd: number, mapping: Mapping, offset: number, address: bigint, size: number): Promise<void>;
  unmapDma(address: bigint, size: number): Promise<void>;

  /** Number of vectors of an interrupt index; 0 when the device has none. */
  irqCount(index: number): Promise<number>;
  /** Signals `fds[i]` for vector i from now on; an empty list turns the index off. */
  setIrqs(index: number, fds: readonly number[]): Promise<void>;
  reset(): Promise<void>;
}
