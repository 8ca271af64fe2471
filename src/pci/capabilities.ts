/**
 * The standard capabilities that a served function presents: MSI-X, MSI and PCI Express. Knows no virtio, and signals
 * nothing: interrupts are set up by the client's own request, not by the enable bits here.
 */
import { VhostPciError } from '../util/errors.js';
import { struct } from '../util/struct.js';
import type { Capability } from './config-space.js';

/** PCI_CAP_ID_* of linux/pci_regs.h */
export const CAP_ID = { MSI: 0x05, VENDOR: 0x09, EXPRESS: 0x10, MSIX: 0x11 } as const;

/** Largest number of vectors (PCI 3.0, 6.8.1.3 and 6.8.2.3). */
export const MAX_MSI_VECTORS = 32;
export const MAX_MSIX_VECTORS = 2048;

export const MsixCap = struct('msix_capability', 12, {
  cap_id: 'u8',
  cap_next: 'u8',
  control: 'u16',
  table: 'u32',
  pba: 'u32',
}); // PCI 3.0, 6.8.2

export const MSIX_CONTROL = { SIZE: 0x07ff, MASK_ALL: 0x4000, ENABLE: 0x8000 } as const;

const bug = (message: string): VhostPciError => new VhostPciError('bug', 'ECAPABILITY', message);

export interface MsixPlace {
  readonly vectors: number;
  readonly bar: number;
  readonly tableOffset: number;
  readonly pbaOffset: number;
}

export function msixCapability(place: MsixPlace): Capability {
  const { vectors, bar, tableOffset, pbaOffset } = place;
  if (vectors < 1 || vectors > MAX_MSIX_VECTORS) throw bug(`${vectors} MSI-X vectors`);
  if ((tableOffset | pbaOffset) & 7) throw bug('MSI-X table and PBA have to be aligned to 8 bytes');
  return {
    name: 'MSI-X',
    initial: MsixCap.encode({
      cap_id: CAP_ID.MSIX,
      control: vectors - 1,
      table: tableOffset | bar,
      pba: pbaOffset | bar,
    }),
    writable: MsixCap.encode({ control: MSIX_CONTROL.MASK_ALL | MSIX_CONTROL.ENABLE }),
  };
}

export const MsiCap = struct(
  'msi_capability_64',
  14,
  {
    cap_id: 'u8',
    cap_next: 'u8',
    control: 'u16',
    address: 'u64',
    data: 'u16',
  },
  { address: 4 },
); // PCI 3.0, 6.8.1

export const MSI_CONTROL = {
  ENABLE: 0x0001,
  CAPABLE_SHIFT: 1,
  ENABLED_SHIFT: 4,
  ENABLED: 0x0070,
  BITS_64: 0x0080,
} as const;

/** MSI with 64-bit addresses and without per-vector masking. `vectors` is a power of two. */
export function msiCapability(vectors: number): Capability {
  const log2 = Math.log2(vectors);
  if (!Number.isInteger(log2) || vectors > MAX_MSI_VECTORS) throw bug(`${vectors} MSI vectors`);
  return {
    name: 'MSI',
    initial: MsiCap.encode({
      cap_id: CAP_ID.MSI,
      control: MSI_CONTROL.BITS_64 | (log2 << MSI_CONTROL.CAPABLE_SHIFT),
    }),
    // Message addresses are aligned to 4 bytes.
    writable: MsiCap.encode({
      control: MSI_CONTROL.ENABLE | MSI_CONTROL.ENABLED,
      address: 0xffff_ffff_ffff_fffcn,
      data: 0xffff,
    }),
  };
}

/** Version 1 of the structure, up to the link registers of an endpoint. */
export const ExpressCap = struct('pcie_capability_v1', 20, {
  cap_id: 'u8',
  cap_next: 'u8',
  flags: 'u16',
  device_cap: 'u32',
  device_control: 'u16',
  device_status: 'u16',
  link_cap: 'u32',
  link_control: 'u16',
  link_status: 'u16',
}); // PCI Express 3.0, 7.8

const EXP_VERSION_1 = 0x0001;
const DEVCAP_EXT_TAG = 0x0000_0020;
const DEVCAP_ROLE_BASED_ERRORS = 0x0000_8000;
export const DEVCAP_FLR = 0x1000_0000;
/** Relaxed ordering, no snoop, read requests of 512 bytes: the values after a reset. */
const DEVCTL_INITIAL = 0x2810;
export const DEVCTL_FLR = 0x8000;
/** 2.5 GT/s, one lane. */
const LINK_SPEED_WIDTH = 0x0011;
/** ASPM control, read completion boundary, common clock, extended synch. */
const LNKCTL_WRITABLE = 0x00cb;

/**
 * PCI Express endpoint with Function Level Reset. Version 1, because the 60 bytes of version 2 leave no room for the
 * virtio capabilities in the 192 bytes that the list has.
 */
export function expressCapability(onFunctionReset: () => void): Capability {
  const { device_control } = ExpressCap.offsets;
  return {
    name: 'PCI Express',
    initial: ExpressCap.encode({
      cap_id: CAP_ID.EXPRESS,
      flags: EXP_VERSION_1,
      device_cap: DEVCAP_EXT_TAG | DEVCAP_ROLE_BASED_ERRORS | DEVCAP_FLR,
      device_control: DEVCTL_INITIAL,
      link_cap: LINK_SPEED_WIDTH,
      link_status: LINK_SPEED_WIDTH,
    }),
    writable: ExpressCap.encode({ device_control: 0xffff, link_control: LNKCTL_WRITABLE }),
    afterWrite: (bytes) => {
      const control = bytes.readUInt16LE(device_control);
      if ((control & DEVCTL_FLR) === 0) return;
      // The bit starts the reset and always reads 0 (PCI Express 3.0, 7.8.4).
      bytes.writeUInt16LE(control & ~DEVCTL_FLR, device_control);
      onFunctionReset();
    },
  };
}

export const MsixEntry = struct('msix_table_entry', 16, { address: 'u64', data: 'u32', control: 'u32' });
const ENTRY_MASKED = 1;

/**
 * The memory behind MSI-X table and PBA. A driver may read and write the table; whether a vector is masked there has no
 * effect on signalling, as a VFIO client masks by its own means and need not touch the table at all. Nothing is ever
 * held pending, so the PBA reads 0.
 */
export class MsixTable {
  readonly #bytes: Buffer;
  readonly #masks: Buffer;
  readonly #place: MsixPlace;

  /** `size`: bytes of the BAR. */
  constructor(place: MsixPlace, size: number) {
    const { vectors, tableOffset, pbaOffset } = place;
    const tableEnd = tableOffset + vectors * MsixEntry.size;
    const pbaEnd = pbaOffset + 8 * Math.ceil(vectors / 64);
    if (tableEnd > size || pbaEnd > size || (tableOffset < pbaEnd && pbaOffset < tableEnd))
      throw bug(`MSI-X table and PBA for ${vectors} vectors do not fit in ${size} bytes`);
    this.#place = place;
    this.#bytes = Buffer.alloc(size);
    this.#masks = Buffer.alloc(size);
    for (let v = 0; v < vectors; v++)
      MsixEntry.encodeInto(this.#masks, tableOffset + v * MsixEntry.size, {
        address: 0xffff_ffff_ffff_fffcn,
        data: 0xffff_ffff,
        control: ENTRY_MASKED,
      });
    this.reset();
  }

  /** Throws `ERANGE` (scope message) outside the BAR, as `write` does. */
  read(offset: number, length: number): Buffer {
    this.#check(offset, length);
    return Buffer.from(this.#bytes.subarray(offset, offset + length));
  }

  write(offset: number, data: Uint8Array): void {
    this.#check(offset, data.length);
    for (let i = 0; i < data.length; i++) {
      const mask = this.#masks[offset + i]!;
      this.#bytes[offset + i] = (this.#bytes[offset + i]! & ~mask) | (data[i]! & mask);
    }
  }

  /** Every vector is masked after a reset (PCI 3.0, 6.8.2.9). */
  reset(): void {
    this.#bytes.fill(0);
    const { tableOffset, vectors } = this.#place;
    for (let v = 0; v < vectors; v++)
      MsixEntry.encodeInto(this.#bytes, tableOffset + v * MsixEntry.size, { control: ENTRY_MASKED });
  }

  #check(offset: number, length: number): void {
    if (offset >= 0 && length >= 0 && offset + length <= this.#bytes.length) return;
    throw new VhostPciError(
      'message',
      'ERANGE',
      `access to ${length} bytes at ${offset} leaves the MSI-X BAR`,
    );
  }
}
