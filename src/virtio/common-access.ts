/** Which field of the common configuration an access means (VIRTIO 1.3, 4.1.3.1). Knows no state. */
import { CommonCfg } from './pci-layout.js';

export type CommonField = keyof typeof CommonCfg.fields;

export interface FieldWrite {
  readonly field: CommonField;
  /** The value, in the place that it has in the field. */
  readonly value: bigint;
  /** The bits of the field that are written: all, or one half of a 64-bit field. */
  readonly mask: bigint;
}

const HALF = 0xffff_ffffn;
const ACCESSES = new Map<string, { field: CommonField; shift: bigint; mask: bigint }>();
const WIDTHS = { u8: 1, u16: 2, u32: 4, u64: 8 } as const;

for (const [name, type] of Object.entries(CommonCfg.fields)) {
  const field = name as CommonField;
  const at = CommonCfg.offsets[field];
  const width = WIDTHS[type];
  ACCESSES.set(`${at}/${width}`, { field, shift: 0n, mask: (1n << BigInt(8 * width)) - 1n });
  if (type !== 'u64') continue;
  ACCESSES.set(`${at}/4`, { field, shift: 0n, mask: HALF });
  ACCESSES.set(`${at + 4}/4`, { field, shift: 32n, mask: HALF << 32n });
}

/**
 * A driver writes a field whole, or a half of a 64-bit one; a client that writes 8 bytes at once is understood too.
 * Undefined for anything else.
 */
export function fieldWrite(at: number, data: Uint8Array): FieldWrite | undefined {
  const access = ACCESSES.get(`${at}/${data.length}`);
  if (!access) return undefined;
  let value = 0n;
  for (let i = data.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(data[i]!);
  return { field: access.field, value: value << access.shift, mask: access.mask };
}
