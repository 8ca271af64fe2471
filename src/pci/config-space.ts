/**
 * Configuration space of a served PCI function: 4096 bytes, each with a mask of the bits that a driver may change.
 * Byte-exact for accesses of any width and alignment. Decodes no addresses: what a BAR contains is its owner's business.
 * Field offsets are those of linux/pci_regs.h.
 */
import { VhostPciError } from '../util/errors.js';
import { struct } from '../util/struct.js';

export const CONFIG_SPACE_SIZE = 4096;
/** End of the part that the capability list may use; the rest is PCI Express extended space. */
export const STANDARD_SPACE_SIZE = 256;
export const FIRST_CAPABILITY = 0x40;

/** Type 0 header (PCI 3.0, 6.1). */
export const ConfigHeader = struct('pci_config_header', 64, {
  vendor_id: 'u16',
  device_id: 'u16',
  command: 'u16',
  status: 'u16',
  revision_id: 'u8',
  class_prog: 'u8',
  class_device: 'u16',
  cache_line_size: 'u8',
  latency_timer: 'u8',
  header_type: 'u8',
  bist: 'u8',
  bars: { bytes: 24 },
  cardbus_cis: 'u32',
  subsystem_vendor_id: 'u16',
  subsystem_id: 'u16',
  rom_address: 'u32',
  capability_list: 'u8',
  reserved: { bytes: 7 },
  interrupt_line: 'u8',
  interrupt_pin: 'u8',
  min_gnt: 'u8',
  max_lat: 'u8',
});

export const COMMAND = { MEMORY: 0x2, MASTER: 0x4, PARITY: 0x40, SERR: 0x100, INTX_DISABLE: 0x400 } as const;
export const STATUS_INTERRUPT = 0x08;
export const STATUS_CAP_LIST = 0x10;
export const BAR_TYPE_64 = 0x4;
const BAR_PREFETCHABLE = 0x8;
export const BAR_COUNT = 6;

/** One memory BAR. A 64-bit one takes the next number too. */
export interface BarSpec {
  readonly index: number;
  /** Bytes; a power of two, at least 16. */
  readonly size: number;
  readonly bits: 32 | 64;
  readonly prefetchable: boolean;
}

/**
 * A capability as the function presents it. Byte 0 is its id; byte 1, the link, is filled in by the configuration
 * space. Both hooks get the live bytes and the range [from, to) of the access inside the capability.
 */
export interface Capability {
  readonly name: string;
  readonly initial: Uint8Array;
  /** The bits that a driver may change, as long as `initial`. */
  readonly writable: Uint8Array;
  /** Brings bytes up to date before they are read. */
  readonly beforeRead?: (bytes: Buffer, from: number, to: number) => void;
  readonly afterWrite?: (bytes: Buffer, from: number, to: number) => void;
}

export interface FunctionIdentity {
  readonly vendorId: number;
  readonly deviceId: number;
  readonly revision: number;
  /** 24 bits: class, subclass, programming interface. */
  readonly classCode: number;
  readonly subsystemVendorId: number;
  readonly subsystemId: number;
}

export interface ConfigSpaceOptions {
  readonly identity: FunctionIdentity;
  readonly bars: readonly BarSpec[];
  /** In the order of the list. */
  readonly capabilities: readonly Capability[];
}

interface Placed {
  readonly capability: Capability;
  readonly at: number;
}

const bug = (message: string): VhostPciError => new VhostPciError('bug', 'ECONFIG', message);

export class ConfigSpace {
  readonly #bytes = Buffer.alloc(CONFIG_SPACE_SIZE);
  readonly #masks = Buffer.alloc(CONFIG_SPACE_SIZE);
  readonly #initial: Buffer;
  readonly #placed: Placed[] = [];
  readonly #bars = new Map<number, BarSpec>();

  constructor(options: ConfigSpaceOptions) {
    const { identity } = options;
    ConfigHeader.encodeInto(this.#bytes, 0, {
      vendor_id: identity.vendorId,
      device_id: identity.deviceId,
      status: options.capabilities.length > 0 ? STATUS_CAP_LIST : 0,
      revision_id: identity.revision,
      class_prog: identity.classCode & 0xff,
      class_device: identity.classCode >>> 8,
      subsystem_vendor_id: identity.subsystemVendorId,
      subsystem_id: identity.subsystemId,
    });
    ConfigHeader.encodeInto(this.#masks, 0, {
      command: COMMAND.MEMORY | COMMAND.MASTER | COMMAND.PARITY | COMMAND.SERR | COMMAND.INTX_DISABLE,
      cache_line_size: 0xff,
      interrupt_line: 0xff,
    });
    for (const bar of options.bars) this.#addBar(bar);
    this.#addCapabilities(options.capabilities);
    this.#initial = Buffer.from(this.#bytes);
  }

  /** `length` bytes at `offset`. Throws `ERANGE` (scope message) outside the 4096 bytes. */
  read(offset: number, length: number): Buffer {
    this.#check(offset, length);
    for (const { capability, at } of this.#overlapping(offset, length)) {
      if (!capability.beforeRead) continue;
      const size = capability.initial.length;
      capability.beforeRead(
        this.#bytes.subarray(at, at + size),
        Math.max(0, offset - at),
        Math.min(size, offset + length - at),
      );
    }
    return Buffer.from(this.#bytes.subarray(offset, offset + length));
  }

  /** Changes the writable bits among the bytes at `offset`. Throws `ERANGE` (scope message) outside. */
  write(offset: number, data: Uint8Array): void {
    this.#check(offset, data.length);
    for (let i = 0; i < data.length; i++) {
      const mask = this.#masks[offset + i]!;
      this.#bytes[offset + i] = (this.#bytes[offset + i]! & ~mask) | (data[i]! & mask);
    }
    for (const { capability, at } of this.#overlapping(offset, data.length)) {
      if (!capability.afterWrite) continue;
      const size = capability.initial.length;
      capability.afterWrite(
        this.#bytes.subarray(at, at + size),
        Math.max(0, offset - at),
        Math.min(size, offset + data.length - at),
      );
    }
  }

  /** Address that a BAR is programmed with; 0n while it is not. */
  barAddress(index: number): bigint {
    const bar = this.#bars.get(index);
    if (!bar) return 0n;
    const at = barOffset(index);
    const low = BigInt((this.#bytes.readUInt32LE(at) & ~0xf) >>> 0);
    return bar.bits === 64 ? (BigInt(this.#bytes.readUInt32LE(at + 4)) << 32n) | low : low;
  }

  get command(): number {
    return this.#bytes.readUInt16LE(ConfigHeader.offsets.command);
  }

  /** The Interrupt Status bit of the Status register (VIRTIO 1.3, 4.1.4.5.1). */
  setInterruptStatus(pending: boolean): void {
    const at = ConfigHeader.offsets.status;
    const status = this.#bytes.readUInt16LE(at) & ~STATUS_INTERRUPT;
    this.#bytes.writeUInt16LE(pending ? status | STATUS_INTERRUPT : status, at);
  }

  /**
   * Back to the initial values, but for BARs and interrupt line: a virtual machine monitor that keeps these registers
   * itself does not write them again after a reset of the function, and nothing here decodes them.
   */
  reset(): void {
    const { bars, interrupt_line, cardbus_cis } = ConfigHeader.offsets;
    const kept = Buffer.from(this.#bytes.subarray(bars, cardbus_cis));
    const line = this.#bytes[interrupt_line]!;
    this.#initial.copy(this.#bytes);
    kept.copy(this.#bytes, bars);
    this.#bytes[interrupt_line] = line;
  }

  #check(offset: number, length: number): void {
    if (offset >= 0 && length >= 0 && offset + length <= CONFIG_SPACE_SIZE) return;
    throw new VhostPciError(
      'message',
      'ERANGE',
      `access to ${length} bytes at ${offset} leaves the configuration space`,
    );
  }

  *#overlapping(offset: number, length: number): Iterable<Placed> {
    for (const placed of this.#placed)
      if (offset < placed.at + placed.capability.initial.length && placed.at < offset + length) yield placed;
  }

  /** A BAR is sized by writing ones: the bits below its size stay 0 (PCI 3.0, 6.2.5.1). */
  #addBar(bar: BarSpec): void {
    const last = bar.bits === 64 ? bar.index + 1 : bar.index;
    const size = BigInt(bar.size);
    if (bar.index < 0 || last >= BAR_COUNT) throw bug(`no room for BAR ${bar.index}`);
    if (size < 16n || (size & (size - 1n)) !== 0n)
      throw bug(`BAR ${bar.index} has ${bar.size} bytes, not a power of two`);
    if (bar.bits === 32 && size > 0x8000_0000n) throw bug(`BAR ${bar.index} needs 64 bits`);
    for (const other of this.#bars.values()) {
      const otherLast = other.bits === 64 ? other.index + 1 : other.index;
      if (bar.index <= otherLast && other.index <= last)
        throw bug(`BARs ${other.index} and ${bar.index} overlap`);
    }
    this.#bars.set(bar.index, bar);
    const at = barOffset(bar.index);
    const mask = BigInt.asUintN(64, -size);
    this.#bytes.writeUInt32LE(
      (bar.bits === 64 ? BAR_TYPE_64 : 0) | (bar.prefetchable ? BAR_PREFETCHABLE : 0),
      at,
    );
    this.#masks.writeUInt32LE(Number(mask & 0xffff_fff0n), at);
    if (bar.bits === 64) this.#masks.writeUInt32LE(Number(mask >> 32n), at + 4);
  }

  #addCapabilities(capabilities: readonly Capability[]): void {
    let link: number = ConfigHeader.offsets.capability_list;
    let at = FIRST_CAPABILITY;
    for (const capability of capabilities) {
      const { initial, writable, name } = capability;
      if (writable.length !== initial.length) throw bug(`the write mask of ${name} has another size`);
      if (at + initial.length > STANDARD_SPACE_SIZE) throw bug(`no room for the capability ${name}`);
      this.#bytes.set(initial, at);
      this.#masks.set(writable, at);
      this.#bytes[at + 1] = 0;
      this.#masks.fill(0, at, at + 2);
      this.#bytes[link] = at;
      link = at + 1;
      this.#placed.push({ capability, at });
      at += (initial.length + 3) & ~3;
    }
  }
}

/** Offset of a BAR register. */
export function barOffset(index: number): number {
  return ConfigHeader.offsets.bars + 4 * index;
}
