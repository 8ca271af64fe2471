/**
 * The configuration space of a virtio-pci function: interrupts, PCI Express, and one capability for each virtio structure
 * (VIRTIO 1.3, 4.1.4). What the structures are and where they lie comes from the device type.
 */
import {
  CAP_ID,
  expressCapability,
  MAX_MSI_VECTORS,
  MAX_MSIX_VECTORS,
  type MsixPlace,
  msiCapability,
  msixCapability,
} from '../pci/capabilities.js';
import { type BarSpec, type Capability, ConfigSpace, type FunctionIdentity } from '../pci/config-space.js';
import {
  type BarWindow,
  CFG_TYPE,
  VirtioPciCap,
  VirtioPciCap64,
  VirtioPciCfgCap,
  VirtioPciNotifyCap,
} from './pci-layout.js';

export type VirtioStructure =
  | (BarWindow & { readonly cfgType: (typeof CFG_TYPE)['COMMON' | 'ISR' | 'DEVICE'] })
  | (BarWindow & { readonly cfgType: typeof CFG_TYPE.NOTIFY; readonly multiplier: number })
  | (BarWindow & { readonly cfgType: typeof CFG_TYPE.SHARED_MEMORY; readonly id: number })
  /** A whole vendor data capability; its first two and its length byte are filled in. */
  | { readonly cfgType: typeof CFG_TYPE.VENDOR; readonly bytes: Uint8Array };

export type Interrupts =
  | ({ readonly kind: 'msix' } & MsixPlace)
  /** `vectors` is a power of two. */
  | { readonly kind: 'msi'; readonly vectors: number };

/** How PCI_CFG reaches the registers; offset and length lie within one of the structures. */
export interface RegisterAccess {
  read(bar: number, offset: number, length: number): Uint8Array;
  write(bar: number, offset: number, data: Uint8Array): void;
}

export interface VirtioConfigOptions {
  readonly identity: FunctionIdentity;
  readonly bars: readonly BarSpec[];
  readonly interrupts: Interrupts;
  /** In the order in which a driver should prefer them. */
  readonly structures: readonly VirtioStructure[];
  readonly registers: RegisterAccess;
  /** Function Level Reset. The configuration space itself is not reset by it: that is for the owner, with the rest. */
  readonly onFunctionReset: () => void;
}

/** The number of vectors that a function offers when it could use `wanted`. */
export function vectorCount(kind: Interrupts['kind'], wanted: number): number {
  if (kind === 'msix') return Math.min(Math.max(wanted, 1), MAX_MSIX_VECTORS);
  let vectors = 1;
  while (vectors < wanted && vectors < MAX_MSI_VECTORS) vectors *= 2;
  return vectors;
}

export function buildConfigSpace(options: VirtioConfigOptions): ConfigSpace {
  const { interrupts, structures, registers } = options;
  return new ConfigSpace({
    identity: options.identity,
    bars: options.bars,
    capabilities: [
      interrupts.kind === 'msix' ? msixCapability(interrupts) : msiCapability(interrupts.vectors),
      expressCapability(options.onFunctionReset),
      ...structures.map(structureCapability),
      pciCfgCapability(structures, registers),
    ],
  });
}

function structureCapability(structure: VirtioStructure): Capability {
  const initial = encodeStructure(structure);
  return { name: `virtio structure ${structure.cfgType}`, initial, writable: Buffer.alloc(initial.length) };
}

function encodeStructure(structure: VirtioStructure): Buffer {
  const head = { cap_vndr: CAP_ID.VENDOR, cfg_type: structure.cfgType };
  if (structure.cfgType === CFG_TYPE.VENDOR) {
    const bytes = Buffer.from(structure.bytes);
    bytes.set([head.cap_vndr, 0, bytes.length, head.cfg_type]);
    return bytes;
  }
  const { bar, offset, length } = structure;
  const place = { ...head, bar, offset: offset % 2 ** 32, length: length % 2 ** 32 };
  switch (structure.cfgType) {
    case CFG_TYPE.NOTIFY:
      return VirtioPciNotifyCap.encode({
        ...place,
        cap_len: VirtioPciNotifyCap.size,
        notify_off_multiplier: structure.multiplier,
      });
    case CFG_TYPE.SHARED_MEMORY:
      return VirtioPciCap64.encode({
        ...place,
        cap_len: VirtioPciCap64.size,
        id: structure.id,
        offset_hi: Math.floor(offset / 2 ** 32),
        length_hi: Math.floor(length / 2 ** 32),
      });
    default:
      return VirtioPciCap.encode({ ...place, cap_len: VirtioPciCap.size });
  }
}

/** The structures that PCI_CFG may reach: registers, but no memory (VIRTIO 1.3, 4.1.4.9). */
const REACHABLE: readonly number[] = [CFG_TYPE.COMMON, CFG_TYPE.NOTIFY, CFG_TYPE.ISR, CFG_TYPE.DEVICE];

/**
 * The window into the registers through configuration space. An access that does not lie within one structure, or is not
 * aligned, reads 0 and writes nothing.
 */
function pciCfgCapability(structures: readonly VirtioStructure[], registers: RegisterAccess): Capability {
  const { pci_cfg_data: data } = VirtioPciCfgCap.offsets;
  const windows = structures.filter(
    (s): s is VirtioStructure & BarWindow => REACHABLE.includes(s.cfgType) && s.cfgType !== CFG_TYPE.VENDOR,
  );
  /** What an access to [from, to) of the capability reaches, if it touches the data at all. */
  const target = (bytes: Buffer, from: number, to: number): BarWindow | undefined => {
    const { bar, offset, length } = VirtioPciCfgCap.decode(bytes);
    if (from >= data + length || to <= data) return undefined;
    if (![1, 2, 4].includes(length) || offset % length !== 0) return undefined;
    const inside = windows.some(
      (w) => w.bar === bar && offset >= w.offset && offset + length <= w.offset + w.length,
    );
    return inside ? { bar, offset, length } : undefined;
  };
  return {
    name: 'virtio PCI_CFG',
    initial: VirtioPciCfgCap.encode({
      cap_vndr: CAP_ID.VENDOR,
      cap_len: VirtioPciCfgCap.size,
      cfg_type: CFG_TYPE.PCI,
    }),
    writable: VirtioPciCfgCap.encode({
      bar: 0xff,
      offset: 0xffff_ffff,
      length: 0xffff_ffff,
      pci_cfg_data: Buffer.alloc(4, 0xff),
    }),
    beforeRead: (bytes, from, to) => {
      if (to <= data) return;
      const at = target(bytes, from, to);
      bytes.fill(0, data);
      if (at) bytes.set(registers.read(at.bar, at.offset, at.length), data);
    },
    afterWrite: (bytes, from, to) => {
      const at = target(bytes, from, to);
      if (at) registers.write(at.bar, at.offset, Buffer.from(bytes.subarray(data, data + at.length)));
    },
  };
}
