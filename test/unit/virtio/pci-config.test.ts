import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CAP_ID, DEVCTL_FLR, ExpressCap } from '../../../src/pci/capabilities.js';
import { REGION } from '../../../src/pci/handle.js';
import { type FoundCapability, walkCapabilities } from '../../../src/pci/walk.js';
import { buildConfigSpace, vectorCount } from '../../../src/virtio/pci-config.js';
import {
  CFG_TYPE,
  CommonCfg,
  PeerNotifyCap,
  VirtioPciCap,
  VirtioPciCap64,
  VirtioPciCfgCap,
  VirtioPciNotifyCap,
} from '../../../src/virtio/pci-layout.js';
import { LAYOUT, makeRig, PEER_MEMORY, type Rig, STRUCTURES } from './rig.js';

async function virtioCaps(rig: Rig): Promise<Map<number, FoundCapability[]>> {
  const caps = new Map<number, FoundCapability[]>();
  for (const cap of await walkCapabilities(rig.handle)) {
    if (cap.id !== CAP_ID.VENDOR) continue;
    const type = cap.bytes[3] ?? 0;
    caps.set(type, [...(caps.get(type) ?? []), cap]);
  }
  return caps;
}

const bytesOf = (found: FoundCapability[] | undefined, i = 0): Buffer => {
  const cap = found?.[i];
  if (!cap) throw new Error('no such capability');
  return cap.bytes;
};

describe('configuration space of a virtio-pci function', () => {
  it('has MSI-X and PCI Express, and the virtio structures in the given order', async () => {
    const rig = makeRig();
    const caps = await walkCapabilities(rig.handle);
    expect(caps.map((c) => (c.id === CAP_ID.VENDOR ? `virtio ${c.bytes[3]}` : c.id))).toEqual([
      CAP_ID.MSIX,
      CAP_ID.EXPRESS,
      'virtio 1',
      'virtio 2',
      'virtio 3',
      'virtio 4',
      'virtio 8',
      'virtio 8',
      'virtio 9',
      'virtio 5',
    ]);
  });

  it('describes where the structures are', async () => {
    const caps = await virtioCaps(makeRig());
    expect(VirtioPciCap.decode(bytesOf(caps.get(CFG_TYPE.ISR)))).toMatchObject({
      cap_len: 16,
      bar: 0,
      offset: 0x1000,
      length: 0x1000,
    });
    expect(VirtioPciNotifyCap.decode(bytesOf(caps.get(CFG_TYPE.NOTIFY)))).toMatchObject({
      cap_len: 20,
      offset: 0x3000,
      notify_off_multiplier: 4,
    });
    expect(VirtioPciCap64.decode(bytesOf(caps.get(CFG_TYPE.SHARED_MEMORY)))).toMatchObject({
      cap_len: 24,
      bar: 2,
      id: 0,
      length: PEER_MEMORY % 2 ** 32,
      length_hi: 1,
    });
    expect(VirtioPciCap64.decode(bytesOf(caps.get(CFG_TYPE.SHARED_MEMORY), 1))).toMatchObject({
      bar: 4,
      id: 1,
    });
    expect(PeerNotifyCap.decode(bytesOf(caps.get(CFG_TYPE.VENDOR)))).toMatchObject({
      cap_vndr: 9,
      cap_len: 20,
      cfg_type: 9,
      vendor_id: 0x1234,
      offset: 0x4000,
      length: 16,
    });
  });

  it('fits with MSI instead of MSI-X, too', async () => {
    const identity = {
      vendorId: 1,
      deviceId: 2,
      revision: 1,
      classCode: 0,
      subsystemVendorId: 0,
      subsystemId: 0,
    };
    const space = buildConfigSpace({
      identity,
      bars: [],
      interrupts: { kind: 'msi', vectors: 4 },
      structures: STRUCTURES,
      registers: { read: () => Buffer.alloc(4), write: () => {} },
      onFunctionReset: () => {},
    });
    const handle = {
      ...makeRig().handle,
      read: async (_r: number, o: number, n: number) => space.read(o, n),
    };
    const caps = await walkCapabilities(handle);
    expect(caps.map((c) => c.id)).toContain(CAP_ID.MSI);
    expect(caps.map((c) => c.id)).not.toContain(CAP_ID.MSIX);
    expect(caps).toHaveLength(10);
  });

  it('passes a Function Level Reset on', async () => {
    const rig = makeRig();
    const express = (await walkCapabilities(rig.handle)).find((c) => c.id === CAP_ID.EXPRESS);
    const control = Buffer.alloc(2);
    control.writeUInt16LE(DEVCTL_FLR);
    rig.config.write((express?.offset ?? 0) + ExpressCap.offsets.device_control, control);
    expect(rig.functionResets).toBe(1);
  });

  it.each([
    ['msix', 0, 1],
    ['msix', 9, 9],
    ['msix', 5000, 2048],
    ['msi', 1, 1],
    ['msi', 5, 8],
    ['msi', 100, 32],
  ] as const)('has, by %s, for %i wanted vectors %i', (kind, wanted, vectors) => {
    expect(vectorCount(kind, wanted)).toBe(vectors);
  });
});

describe('PCI_CFG window', () => {
  /** Reads or writes a register through configuration space, as VIRTIO 1.3, 4.1.4.9 says. */
  async function windowAt(rig: Rig, bar: number, offset: number, length: number): Promise<number> {
    const at = (await virtioCaps(rig)).get(CFG_TYPE.PCI)?.[0]?.offset ?? 0;
    const bytes = Buffer.alloc(12);
    rig.config.write(at + VirtioPciCfgCap.offsets.bar, Buffer.of(bar));
    bytes.writeUInt32LE(offset, 0);
    bytes.writeUInt32LE(length, 4);
    rig.config.write(at + VirtioPciCfgCap.offsets.offset, bytes.subarray(0, 8));
    return at + VirtioPciCfgCap.offsets.pci_cfg_data;
  }

  it('reads a register', async () => {
    const rig = makeRig();
    const data = await windowAt(rig, 0, CommonCfg.offsets.num_queues, 2);
    expect(rig.config.read(data, 2).readUInt16LE(0)).toBe(4);
  });

  it('writes a register', async () => {
    const rig = makeRig();
    const data = await windowAt(rig, 0, CommonCfg.offsets.device_status, 1);
    rig.config.write(data, Buffer.of(1));
    expect(rig.device.status).toBe(1);
    expect(rig.config.read(data, 1)[0]).toBe(1);
  });

  it('notifies a queue', async () => {
    const rig = makeRig();
    const data = await windowAt(rig, 0, LAYOUT.notify.offset, 2);
    rig.config.write(data, Buffer.from([0, 0]));
    expect(rig.device.refusals.notify).toBe(1);
  });

  it.each([
    ['the peer memory', 2, 0, 4],
    ['a BAR that is not there', 7, 0, 4],
    ['a hole between the structures', 0, 0x5000, 4],
    ['what follows the last structure', 0, 0x4000, 2],
    ['an unaligned place', 0, 2, 4],
    ['three bytes', 0, 0, 3],
    ['nothing', 0, 0, 0],
    ['4 GiB', 0, 0, 0xffff_ffff],
  ])('does not reach %s', async (_what, bar, offset, length) => {
    const rig = makeRig();
    const data = await windowAt(rig, bar, offset, length);
    rig.config.write(data, Buffer.alloc(4, 0xff));
    expect(rig.config.read(data, 4)).toEqual(Buffer.alloc(4));
    expect(Object.values(rig.device.refusals)).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('reads nothing for an access that does not touch the data', async () => {
    const rig = makeRig();
    rig.device.write(CommonCfg.offsets.device_status, Buffer.of(1));
    rig.device.write(CommonCfg.offsets.device_status, Buffer.of(3));
    const data = await windowAt(rig, 0, LAYOUT.isr.offset, 1);
    let reads = 0;
    const read = rig.device.read.bind(rig.device);
    rig.device.read = (offset, length) => {
      reads++;
      return read(offset, length);
    };
    rig.config.read(data - 4, 4);
    expect(reads).toBe(0);
    rig.config.read(data, 4);
    expect(reads).toBe(1);
  });

  it('never throws, for any accesses to configuration space', async () => {
    const rig = makeRig();
    const at = (await virtioCaps(rig)).get(CFG_TYPE.PCI)?.[0]?.offset ?? 0;
    const word = fc.oneof(
      fc.constantFrom(0, 1, 2, 4, 0x1000, 0x3000, 0x7ffe, 0x8000),
      fc.integer({ min: 0, max: 0xffff_ffff }),
    );
    const access = fc.oneof(
      fc.record({
        offset: fc.constantFrom(at + 4, at + 8, at + 12, at + 16),
        data: word.map((n) => {
          const b = Buffer.alloc(4);
          b.writeUInt32LE(n);
          return b as Uint8Array;
        }),
      }),
      fc.record({ offset: fc.nat(0x110), data: fc.uint8Array({ maxLength: 24 }) }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(access, { maxLength: 30 }), async (accesses) => {
        for (const { offset, data } of accesses) {
          await rig.handle.write(REGION.CONFIG, offset, data);
          expect(await rig.handle.read(REGION.CONFIG, offset, 4)).toHaveLength(4);
        }
      }),
    );
  });
});
