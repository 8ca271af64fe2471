/**
 * Little-endian struct codec. A struct is declared once, with its size, and everything that needs an offset
 * derives it from the declaration. Holds no protocol and allocates only the decoded object.
 */
import { VhostPciError } from './errors.js';

/** Width in bytes of each scalar; `u64` decodes to a bigint, the others to a number. */
const WIDTH = { u8: 1, u16: 2, u32: 4, u64: 8, i32: 4 } as const;

export type Scalar = keyof typeof WIDTH;
/** A byte array of fixed length, such as a MAC address; decodes to a Buffer copy. */
export type Bytes = { readonly bytes: number };
export type Field = Scalar | Bytes;
export type Fields = { readonly [name: string]: Field };

type Value<F extends Field> = F extends 'u64' ? bigint : F extends Scalar ? number : Buffer;
/** The decoded form of a struct with fields `F`. */
export type Decoded<F extends Fields> = { -readonly [K in keyof F]: Value<F[K]> };

export interface Struct<F extends Fields> {
  readonly name: string;
  /** Size in bytes, padding included. */
  readonly size: number;
  /** Byte offset of each field. */
  readonly offsets: { readonly [K in keyof F]: number };
  readonly fields: F;
  /** Decodes `size` bytes at `at`. Throws `ETRUNCATED` (scope message) when fewer are left. */
  decode(from: Uint8Array, at?: number): Decoded<F>;
  /** Encodes into a new buffer of `size` bytes; absent fields are zero. */
  encode(value: Partial<Decoded<F>>): Buffer;
  /** Encodes into `into` at `at`. */
  encodeInto(into: Uint8Array, at: number, value: Partial<Decoded<F>>): void;
}

export type StructValue<S> = S extends Struct<infer F> ? Decoded<F> : never;

/** Placement of a field that does not follow its predecessor directly: its byte offset. */
export type Layout<F extends Fields> = { readonly [K in keyof F]?: number };

const asBuffer = (b: Uint8Array): Buffer =>
  Buffer.isBuffer(b) ? b : Buffer.from(b.buffer, b.byteOffset, b.byteLength);

const widthOf = (field: Field): number => (typeof field === 'string' ? WIDTH[field] : field.bytes);

function readField(b: Buffer, at: number, field: Field): number | bigint | Buffer {
  if (typeof field !== 'string') return Buffer.from(b.subarray(at, at + field.bytes));
  switch (field) {
    case 'u8':
      return b.readUInt8(at);
    case 'u16':
      return b.readUInt16LE(at);
    case 'u32':
      return b.readUInt32LE(at);
    case 'i32':
      return b.readInt32LE(at);
    case 'u64':
      return b.readBigUInt64LE(at);
  }
}

function writeField(b: Buffer, at: number, field: Field, value: number | bigint | Uint8Array): void {
  if (typeof field !== 'string') {
    const bytes = value as Uint8Array;
    if (bytes.length !== field.bytes)
      throw new VhostPciError('bug', 'EBADSIZE', `${bytes.length} bytes given for ${field.bytes}`);
    b.set(bytes, at);
    return;
  }
  if (field === 'u64') b.writeBigUInt64LE(BigInt(value as bigint), at);
  else if (field === 'i32') b.writeInt32LE(Number(value), at);
  else b.writeUIntLE(Number(value), at, WIDTH[field]);
}

/**
 * Declares a struct. `size` is checked against the fields when the module loads, so that a wrong declaration
 * never reaches the wire. Fields follow each other without gaps unless `layout` places them.
 *
 * @example struct('virtq_desc', 16, { addr: 'u64', len: 'u32', flags: 'u16', next: 'u16' }) // VIRTIO 1.3, 2.7.5
 */
export function struct<const F extends Fields>(
  name: string,
  size: number,
  fields: F,
  layout: Layout<F> = {},
): Struct<F> {
  const names = Object.keys(fields) as (keyof F & string)[];
  const offsets = {} as { [K in keyof F]: number };
  let end = 0;
  for (const key of names) {
    const at = layout[key] ?? end;
    if (at < end) throw new VhostPciError('bug', 'ELAYOUT', `${name}.${key} overlaps its predecessor`);
    offsets[key] = at;
    end = at + widthOf(fields[key] as Field);
  }
  if (end > size)
    throw new VhostPciError('bug', 'ELAYOUT', `${name} declares ${size} bytes, its fields need ${end}`);

  const encodeInto = (into: Uint8Array, at: number, value: Partial<Decoded<F>>): void => {
    const b = asBuffer(into);
    b.fill(0, at, at + size);
    for (const key of names) {
      const v = value[key];
      if (v !== undefined)
        writeField(b, at + offsets[key], fields[key] as Field, v as number | bigint | Uint8Array);
    }
  };
  return {
    name,
    size,
    offsets,
    fields,
    decode(from, at = 0) {
      const b = asBuffer(from);
      if (at + size > b.length)
        throw new VhostPciError(
          'message',
          'ETRUNCATED',
          `${name} needs ${size} bytes, ${Math.max(0, b.length - at)} are there`,
        );
      const out = {} as Record<string, unknown>;
      for (const key of names) out[key] = readField(b, at + offsets[key], fields[key] as Field);
      return out as Decoded<F>;
    },
    encode(value) {
      const b = Buffer.alloc(size);
      encodeInto(b, 0, value);
      return b;
    },
    encodeInto,
  };
}
