import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type PciHandle, REGION } from '../../../src/pci/handle.js';
import { walkCapabilities } from '../../../src/pci/walk.js';
import { checkWindow, findStructures } from '../../../src/virtio/pci-capabilities.js';
import type { VirtioStructure } from '../../../src/virtio/pci-config.js';
import { CFG_TYPE, VirtioPciVendorCap } from '../../../src/virtio/pci-layout.js';
import { LAYOUT, makeRig, PEER_MEMORY, STRUCTURES } from './rig.js';

const without = (cfgType: number): VirtioStructure[] => STRUCTURES.filter((s) => s.cfgType !== cfgType);
const replaced = (cfgType: number, change: object): VirtioStructure[] =>
  STRUCTURES.map((s) => (s.cfgType === cfgType ? ({ ...s, ...change } as VirtioStructure) : s));

const find = (structures: readonly VirtioStructure[]) => findStructures(makeRig({}, structures).handle);

/** The rig's function with bytes of its configuration space changed on the way to the driver. */
async function tampered(cfgType: number, change: (cap: Buffer) => void): Promise<PciHandle> {
  const { handle } = makeRig();
  const caps = await walkCapabilities(handle);
  const at = caps.find((c) => c.id === 9 && c.bytes[3] === cfgType)?.offset ?? 0;
  return {
    ...handle,
    read: async (region, offset, length) => {
      const bytes = await handle.read(region, offset, length);
      if (region === REGION.CONFIG && offset === 0) change(bytes.subarray(at));
      return bytes;
    },
  };
}

describe('virtio structures', () => {
  it('are found with all that belongs to them', async () => {
    const found = await find(STRUCTURES);
    expect(found).toMatchObject({
      common: { bar: 0, ...LAYOUT.common },
      notify: { bar: 0, ...LAYOUT.notify },
      isr: { bar: 0, ...LAYOUT.isr },
      device: { bar: 0, ...LAYOUT.device },
    });
    expect([...found.sharedMemory]).toEqual([
      [0, { bar: 2, offset: 0, length: PEER_MEMORY }],
      [1, { bar: 4, offset: 0, length: 0x4000 }],
    ]);
    expect(found.vendorData.map((v) => [v.vendorId, v.bytes.length])).toEqual([[0x1234, 20]]);
  });

  it.each([
    ['common configuration', CFG_TYPE.COMMON],
    ['notification', CFG_TYPE.NOTIFY],
    ['ISR status', CFG_TYPE.ISR],
  ])('are refused without %s', async (name, cfgType) => {
    await expect(find(without(cfgType))).rejects.toMatchObject({
      code: 'EVIRTIOPCI',
      scope: 'device',
      message: `model: not a modern virtio device: no ${name} structure`,
    });
  });

  it('may lack the device configuration', async () => {
    expect((await find(without(CFG_TYPE.DEVICE))).device).toBeUndefined();
  });

  it.each([
    ['past the end of its BAR', CFG_TYPE.NOTIFY, { offset: 0x7800 }, 'ends at 0x8800, past the end of BAR 0'],
    ['in a BAR that is not there', CFG_TYPE.ISR, { bar: 3 }, 'is in BAR 3, which is not there'],
    ['shorter than its fields', CFG_TYPE.COMMON, { length: 55 }, 'has 55 bytes, not 56'],
    ['unaligned', CFG_TYPE.COMMON, { offset: 2 }, 'is not aligned to 4 bytes'],
    ['larger than its BAR', CFG_TYPE.SHARED_MEMORY, { length: 2 ** 40 }, 'past the end of BAR 2'],
    [
      'at an offset of more than 53 bits',
      CFG_TYPE.SHARED_MEMORY,
      { offset: 2 ** 63, length: 1 },
      'past the end',
    ],
  ])('are refused when one lies %s', async (_what, cfgType, change, message) => {
    await expect(find(replaced(cfgType, change))).rejects.toMatchObject({
      code: 'EVIRTIOPCI',
      message: expect.stringContaining(message),
    });
  });

  it('are ignored in a reserved BAR: the next of the type counts', async () => {
    const found = await find([
      { cfgType: CFG_TYPE.ISR, bar: 6, offset: 0, length: 1 },
      ...without(CFG_TYPE.DEVICE),
    ]);
    expect(found.isr).toMatchObject({ bar: 0, offset: 0x1000 });
  });

  it('are taken from the first of several', async () => {
    const found = await find([
      { cfgType: CFG_TYPE.ISR, bar: 0, offset: 0x1234, length: 1 },
      ...without(CFG_TYPE.DEVICE),
    ]);
    expect(found.isr).toEqual({ bar: 0, offset: 0x1234, length: 1 });
  });

  it('are refused when two shared memory regions have one id', async () => {
    await expect(find(replaced(CFG_TYPE.SHARED_MEMORY, { id: 1, bar: 4, length: 1 }))).rejects.toThrow(
      'shared memory 1 is there twice',
    );
  });

  it('are refused when the capability is too short for its type', async () => {
    const handle = await tampered(CFG_TYPE.NOTIFY, (cap) => {
      cap[2] = 16;
    });
    await expect(findStructures(handle)).rejects.toThrow('the notification capability has 16 bytes, not 20');
  });

  it('are accepted with a longer capability than they need', async () => {
    const handle = await tampered(CFG_TYPE.ISR, (cap) => {
      cap[2] = 40;
    });
    expect((await findStructures(handle)).isr.offset).toBe(0x1000);
  });

  it('are refused when a capability leaves its space', async () => {
    const handle = await tampered(CFG_TYPE.PCI, (cap) => {
      cap[2] = 255;
    });
    await expect(findStructures(handle)).rejects.toThrow('longer than its space');
  });

  it('are ignored when their type is reserved', async () => {
    const handle = await tampered(CFG_TYPE.DEVICE, (cap) => {
      cap[3] = 200;
    });
    expect((await findStructures(handle)).device).toBeUndefined();
  });

  it('never make the driver throw anything else, for any content of the capabilities', async () => {
    const { handle } = makeRig();
    const valid = await handle.read(REGION.CONFIG, 0, 256);
    const patch = fc.record({ at: fc.integer({ min: 0x34, max: 255 }), value: fc.nat(255) });
    await fc.assert(
      fc.asyncProperty(fc.array(patch, { maxLength: 6 }), async (patches) => {
        const bytes = Buffer.from(valid);
        for (const { at, value } of patches) bytes[at] = value;
        const found = await findStructures({
          ...handle,
          read: async (_r, o, n) => bytes.subarray(o, o + n),
        }).catch((error) => error);
        if (found instanceof Error) {
          expect(found).toMatchObject({ scope: 'device' });
          return;
        }
        const sizes = { 0: 0x8000, 1: 0x2000, 2: 2 ** 33, 4: 0x4000 };
        const windows = [found.common, found.notify, found.isr, ...found.sharedMemory.values()];
        for (const { bar, offset, length } of windows)
          expect(offset + length).toBeLessThanOrEqual(sizes[bar as keyof typeof sizes]);
      }),
      { numRuns: 500 },
    );
  });
});

describe('a window that a device names', () => {
  const { handle } = makeRig();

  it('is accepted inside its BAR', async () => {
    await expect(
      checkWindow(handle, 'x', { bar: 4, offset: 0x3000, length: 0x1000 }, 0x1000, 4),
    ).resolves.toBeUndefined();
  });

  it('is refused in a BAR number that cannot be', async () => {
    await expect(checkWindow(handle, 'x', { bar: 6, offset: 0, length: 1 }, 1, 1)).rejects.toThrow(
      'x is in BAR 6',
    );
  });
});

it('the head of a vendor capability is what all of them begin with', () => {
  expect(VirtioPciVendorCap.offsets).toMatchObject({ cap_vndr: 0, cap_len: 2, cfg_type: 3, vendor_id: 4 });
});
