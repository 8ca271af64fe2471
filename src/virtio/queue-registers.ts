/**
 * What a driver has set up for one queue, and whether a queue can be made of it. Each change returns why it was
 * refused, or undefined. Does not know where the addresses lead: that is for the memory of the queue's owner to say.
 */
import type { RingAddresses } from '../sys/native.js';
import { NO_VECTOR } from './pci-layout.js';

export type AddressField = 'queue_desc' | 'queue_driver' | 'queue_device';

interface Area {
  readonly field: AddressField;
  readonly align: bigint;
  readonly bytes: bigint;
}

/** VIRTIO 1.3, 2.7 and 2.8.10.1: sizes with the event index, which is there whether it is used or not. */
function areas(size: number, packed: boolean): readonly Area[] {
  const n = BigInt(size);
  return [
    { field: 'queue_desc', align: 16n, bytes: 16n * n },
    packed
      ? { field: 'queue_driver', align: 4n, bytes: 4n }
      : { field: 'queue_driver', align: 2n, bytes: 6n + 2n * n },
    packed
      ? { field: 'queue_device', align: 4n, bytes: 4n }
      : { field: 'queue_device', align: 4n, bytes: 6n + 8n * n },
  ];
}

const END_OF_ADDRESSES = 1n << 64n;

export class QueueRegisters {
  readonly #maxSize: number;
  readonly #addresses = { queue_desc: 0n, queue_driver: 0n, queue_device: 0n };
  /** Address 0 is a DMA address like any other, so what counts is that a field was written. */
  readonly #written = new Set<AddressField>();
  size: number;
  vector = NO_VECTOR;
  enabled = false;

  /** `maxSize` 0: a queue without a ring of its own (protocol.md, P4). */
  constructor(maxSize: number) {
    this.#maxSize = maxSize;
    this.size = maxSize;
  }

  address(field: AddressField): bigint {
    return this.#addresses[field];
  }

  /** VIRTIO 1.3, 4.1.4.3.2: a power of two unless the rings are packed. */
  setSize(size: number, packed: boolean): string | undefined {
    const refused = this.#fixed();
    if (refused) return refused;
    if (size < 1 || size > this.#maxSize) return `size ${size}, at most ${this.#maxSize} is possible`;
    if (!packed && (size & (size - 1)) !== 0) return `size ${size} is not a power of two`;
    this.size = size;
    return undefined;
  }

  /** Replaces the bits of `mask`. */
  setAddress(field: AddressField, value: bigint, mask: bigint): string | undefined {
    const refused = this.#fixed();
    if (refused) return refused;
    this.#addresses[field] = (this.#addresses[field] & ~mask) | value;
    this.#written.add(field);
    return undefined;
  }

  enable(packed: boolean): string | undefined {
    const refused = this.#fixed() ?? this.#unfit(packed);
    if (refused) return refused;
    this.enabled = true;
    return undefined;
  }

  get ring(): RingAddresses {
    const { queue_desc: desc, queue_driver: driver, queue_device: device } = this.#addresses;
    return { size: this.size, desc, driver, device };
  }

  #fixed(): string | undefined {
    if (this.#maxSize === 0) return 'it has no ring';
    return this.enabled ? 'it is enabled' : undefined;
  }

  #unfit(packed: boolean): string | undefined {
    const all = areas(this.size, packed);
    for (const { field, align, bytes } of all) {
      const at = this.#addresses[field];
      if (!this.#written.has(field)) return `${field} was not written`;
      if (at % align !== 0n) return `${field} is not aligned to ${align} bytes`;
      if (at + bytes > END_OF_ADDRESSES) return `${field} wraps`;
    }
    for (const a of all)
      for (const b of all)
        if (
          a !== b &&
          this.#addresses[a.field] < this.#addresses[b.field] + b.bytes &&
          this.#addresses[b.field] < this.#addresses[a.field] + a.bytes
        )
          return `${a.field} and ${b.field} overlap`;
    return undefined;
  }
}
