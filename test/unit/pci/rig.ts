import { type PciHandle, REGION } from '../../../src/pci/handle.js';

/** A handle whose configuration space is `bytes`. */
export function handleOver(bytes: Buffer): PciHandle {
  const parts: Pick<PciHandle, 'name' | 'read' | 'write'> = {
    name: 'test',
    read: async (region, offset, length) => {
      if (region !== REGION.CONFIG) throw new Error(`read of region ${region}`);
      return Buffer.from(bytes.subarray(offset, offset + length));
    },
    write: async (_region, offset, data) => {
      bytes.set(data, offset);
    },
  };
  return parts as PciHandle;
}
