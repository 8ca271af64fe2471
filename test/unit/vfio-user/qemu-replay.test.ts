/** What QEMU's vfio-user client sends, message by message, and what it needs to hear. */
import { closeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { IRQ, REGION } from '../../../src/pci/handle.js';
import {
  DeviceInfo,
  IRQ_SET,
  IrqInfo,
  IrqSet,
  REGION_FLAG,
  RegionInfoHeader,
  SparseArea,
  SparseCap,
} from '../../../src/pci/vfio-abi.js';
import { native } from '../../../src/sys/native.js';
import {
  DmaMap,
  DmaUnmap,
  HEADER_FLAG,
  RegionAccess,
  Version,
  WriteMulti,
  WriteOne,
} from '../../../src/vfio-user/protocol.js';
import { BAR2_BYTES, FILE_BYTES, isError, MSIX_VECTORS, RawClient, withServer } from './rig.js';

const QEMU_JSON =
  '{"capabilities": {"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, ' +
  '"write_multiple": true, "pgsizes": 4096, "max_dma_maps": 65535, "max_msg_fds": 16}}\0';

async function withQemu(
  run: (qemu: RawClient, device: Parameters<Parameters<typeof withServer>[0]>[1]) => Promise<void>,
) {
  await withServer(async (server, device) => {
    using qemu = RawClient.of(server);
    expect((await qemu.version(Buffer.from(QEMU_JSON))).flags).toBe(HEADER_FLAG.REPLY);
    await run(qemu, device);
  });
}

describe('QEMU', () => {
  it('gets a VERSION reply that fits its buffer, the size of its request, and that its checks accept', async () => {
    await withServer(async (server) => {
      using qemu = RawClient.of(server);
      const reply = await qemu.version(Buffer.from(QEMU_JSON));
      expect(reply.payload.length).toBeLessThanOrEqual(Version.size + QEMU_JSON.length);
      expect(Version.decode(reply.payload)).toEqual({ major: 0, minor: 0 });
      expect(reply.payload.at(-1)).toBe(0);
      const { capabilities } = JSON.parse(reply.payload.subarray(Version.size, -1).toString());
      expect(capabilities.max_msg_fds).toBeLessThanOrEqual(16);
      expect(capabilities.max_data_xfer_size).toBeLessThanOrEqual(64 << 20);
      expect(capabilities.max_dma_maps).toBeLessThanOrEqual(65535);
      expect(capabilities.pgsizes % 4096).toBe(0);
      expect(Object.keys(capabilities)).not.toContain('migration');
    });
  });

  it('is served when it proposes nothing, and then hears no capability', async () => {
    await withServer(async (server) => {
      using qemu = RawClient.of(server);
      const reply = await qemu.version(Buffer.from('{}\0'));
      expect(reply.payload.subarray(Version.size).toString()).toBe('{"capabilities":{}}\0');
    });
    await withServer(async (server) => {
      using qemu = RawClient.of(server);
      expect((await qemu.ask('VERSION', Version.encode({ minor: 7 }))).flags).toBe(HEADER_FLAG.REPLY);
    });
  });

  it('counts nine regions and five interrupt indices of a PCI device that can be reset', async () => {
    await withQemu(async (qemu) => {
      const { payload } = await qemu.ask('DEVICE_GET_INFO', DeviceInfo.encode({ argsz: 16 }));
      expect(DeviceInfo.decode(payload)).toEqual({ argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 });
      expect(payload.length).toBe(16);
    });
  });

  it('asks for a mappable region twice: the size needed and no fd first, then areas and one fd', async () => {
    await withQemu(async (qemu) => {
      const first = await qemu.ask(
        'DEVICE_GET_REGION_INFO',
        RegionInfoHeader.encode({ argsz: 32, index: REGION.BAR2 }),
      );
      const header = RegionInfoHeader.decode(first.payload);
      expect(first.payload.length).toBe(32);
      expect(first.fds).toEqual([]);
      expect(header).toMatchObject({ argsz: 64, cap_offset: 32, size: BigInt(BAR2_BYTES), offset: 0n });
      const all = REGION_FLAG.READ | REGION_FLAG.WRITE | REGION_FLAG.MMAP | REGION_FLAG.CAPS;
      expect(header.flags).toBe(all);
      const second = await qemu.ask(
        'DEVICE_GET_REGION_INFO',
        RegionInfoHeader.encode({ argsz: header.argsz, index: REGION.BAR2 }),
      );
      expect(second.fds.length).toBe(1);
      expect(second.payload.length).toBe(64);
      expect(SparseCap.decode(second.payload, 32)).toEqual({
        id: 1,
        version: 1,
        next: 0,
        nr_areas: 1,
        reserved: 0,
      });
      expect(SparseArea.decode(second.payload, 48)).toEqual({ offset: 0n, size: BigInt(FILE_BYTES) });
      for (const fd of second.fds) closeSync(fd);
    });
  });

  it('hears of absent and plain regions in one reply', async () => {
    await withQemu(async (qemu) => {
      for (let index = 0; index < 9; index++) {
        if (index === REGION.BAR2) continue;
        const { payload, fds } = await qemu.ask(
          'DEVICE_GET_REGION_INFO',
          RegionInfoHeader.encode({ argsz: 32, index }),
        );
        expect(fds).toEqual([]);
        expect(RegionInfoHeader.decode(payload)).toMatchObject({ argsz: 32, index, cap_offset: 0 });
      }
    });
  });

  it('sees what the device has become when it asks again', async () => {
    await withQemu(async (qemu, device) => {
      device.regions[REGION.BAR2] = undefined;
      const ask = RegionInfoHeader.encode({ argsz: 32, index: REGION.BAR2 });
      expect(RegionInfoHeader.decode((await qemu.ask('DEVICE_GET_REGION_INFO', ask)).payload).size).toBe(0n);
    });
  });

  it('sets MSI-X vectors as it does: fds one by one, no fd for -1, all off by DATA_NONE', async () => {
    await withQemu(async (qemu, device) => {
      const info = await qemu.ask('DEVICE_GET_IRQ_INFO', IrqInfo.encode({ argsz: 16, index: IRQ.MSIX }));
      expect(IrqInfo.decode(info.payload)).toMatchObject({ argsz: 16, index: IRQ.MSIX, count: MSIX_VECTORS });
      const { irqs } = device.session!;
      const set = (flags: number, start: number, count: number, fds: number[] = []) =>
        qemu.ask('DEVICE_SET_IRQS', IrqSet.encode({ argsz: 20, flags, index: IRQ.MSIX, start, count }), fds);
      const fd = native.eventfd();
      const EVENTFD = IRQ_SET.DATA_EVENTFD | IRQ_SET.TRIGGER;
      expect(EVENTFD).toBe(0x24);
      expect((await set(EVENTFD, 0, 1, [fd])).payload.length).toBe(0);
      irqs.trigger(IRQ.MSIX, 0);
      expect(native.eventfdTake(fd)).toBe(1);
      await set(EVENTFD, 0, 1);
      expect(irqs.fd(IRQ.MSIX, 0)).toBeUndefined();
      await set(EVENTFD, 3, 2, [fd, fd]);
      expect(irqs.trigger(IRQ.MSIX, 4)).toBe(true);
      expect(IRQ_SET.DATA_NONE | IRQ_SET.TRIGGER).toBe(0x21);
      await set(0x21, 0, 0);
      expect(irqs.trigger(IRQ.MSIX, 4)).toBe(false);
      // Off again, and for an index that has no vector.
      expect((await set(0x21, 0, 0)).flags).toBe(HEADER_FLAG.REPLY);
      const off = IrqSet.encode({ argsz: 20, flags: 0x21, index: IRQ.MSI });
      expect((await qemu.ask('DEVICE_SET_IRQS', off)).flags).toBe(HEADER_FLAG.REPLY);
      closeSync(fd);
    });
  });

  it('masks INTx by itself being raised, and unmasks it', async () => {
    await withQemu(async (qemu, device) => {
      const { irqs } = device.session!;
      const fd = native.eventfd();
      const set = (flags: number, fds: number[] = []) =>
        qemu.ask('DEVICE_SET_IRQS', IrqSet.encode({ argsz: 20, flags, index: IRQ.INTX, count: 1 }), fds);
      await set(0x24, [fd]);
      irqs.trigger(IRQ.INTX, 0);
      irqs.trigger(IRQ.INTX, 0);
      expect(native.eventfdTake(fd)).toBe(1);
      await set(IRQ_SET.DATA_NONE | IRQ_SET.UNMASK);
      expect(native.eventfdTake(fd)).toBe(1);
      await set(IRQ_SET.DATA_NONE | IRQ_SET.UNMASK);
      expect(native.eventfdTake(fd)).toBe(0);
      closeSync(fd);
    });
  });

  it('announces memory without waiting, in many pieces of one file, with one mapping for all', async () => {
    await withQemu(async (qemu, device) => {
      const before = native.mappingCount();
      const fd = native.memfdCreate('ram', 1 << 20);
      const memory = new native.Mapping(fd, 0, 1 << 20, true);
      memory.write(0x80ffe, Buffer.from('abcd'));
      for (let i = 0; i < 256; i++) {
        const piece = { offset: BigInt(i * 4096), address: 0x1000_0000n + BigInt(i * 4096), size: 4096n };
        expect(
          (await qemu.ask('DMA_MAP', DmaMap.encode({ argsz: 32, flags: 3, ...piece }), [fd])).error,
        ).toBe(0);
      }
      expect(device.dma!.windows.length).toBe(256);
      expect(device.dma!.mappings).toBe(1);
      expect(native.mappingCount()).toBe(before + 2);
      // They follow each other, so that a buffer may cross from one to the next.
      expect(device.dma!.table().regions).toBe(1);
      expect(device.dma!.table().read(0x1008_0ffen, 4).toString()).toBe('abcd');
      // A guest IOMMU that drops a page table withdraws all that it held at once.
      const range = { address: 0x1000_0000n, size: 2n << 20n };
      const unmapped = await qemu.ask('DMA_UNMAP', DmaUnmap.encode({ argsz: 24, ...range }));
      expect(DmaUnmap.decode(unmapped.payload)).toMatchObject(range);
      expect(device.dma!.windows.length).toBe(0);
      expect(device.dma!.mappings).toBe(0);
      memory.close();
      closeSync(fd);
    });
  });

  it('announces ROMs and other devices without an fd: that succeeds, and is not reachable', async () => {
    await withQemu(async (qemu, device) => {
      const rom = { argsz: 32, flags: 1, address: 0xfffc_0000n, size: 0x40000n };
      expect((await qemu.ask('DMA_MAP', DmaMap.encode(rom))).error).toBe(0);
      expect(() => device.dma!.table().read(0xfffc_0000n, 1)).toThrow();
      expect(isError(await qemu.ask('DMA_MAP', DmaMap.encode(rom)), 17 /* EEXIST */)).toBe(true);
      const all = await qemu.ask('DMA_UNMAP', DmaUnmap.encode({ argsz: 24, flags: 2 }));
      expect(all.flags).toBe(HEADER_FLAG.REPLY);
      expect(device.dma!.windows.length).toBe(0);
    });
  });

  it('posts writes: no reply to them, in order, alone or many in a message', async () => {
    await withQemu(async (qemu, device) => {
      const access = RegionAccess.encode({ region: 0, offset: 4n, count: 4 });
      qemu.send(10, Buffer.concat([access, Buffer.from('11111111', 'hex')]), [], HEADER_FLAG.NO_REPLY);
      const writes = [8n, 12n].map((offset) =>
        WriteOne.encode({ offset, region: 0, count: 2, data: Buffer.alloc(8, 0x22) }),
      );
      qemu.send(15, Buffer.concat([WriteMulti.encode({ wr_cnt: 2n }), ...writes]), [], HEADER_FLAG.NO_REPLY);
      const { payload } = await qemu.ask(
        'REGION_READ',
        RegionAccess.encode({ region: 0, offset: 0n, count: 16 }),
      );
      expect(payload.subarray(16).toString('hex')).toBe('00000000111111112222000022220000');
      expect(device.log.filter((l) => l.startsWith('write')).length).toBe(3);
    });
  });

  it('resets the device at any time, and keeps its memory and interrupts', async () => {
    await withQemu(async (qemu, device) => {
      const fd = native.memfdCreate('ram', 4096);
      await qemu.ask('DEVICE_RESET');
      await qemu.ask('DMA_MAP', DmaMap.encode({ argsz: 32, flags: 3, size: 4096n }), [fd]);
      expect((await qemu.ask('DEVICE_RESET')).payload.length).toBe(0);
      expect(device.log.filter((l) => l === 'reset').length).toBe(2);
      expect(device.dma!.windows.length).toBe(1);
      closeSync(fd);
    });
  });
});

describe('a client that takes no file descriptors', () => {
  it('is told that nothing can be mapped', async () => {
    await withServer(async (server) => {
      using raw = RawClient.of(server);
      await raw.version(Buffer.from('{"capabilities":{"max_msg_fds":0}}\0'));
      const ask = RegionInfoHeader.encode({ argsz: 4096, index: REGION.BAR2 });
      const { payload, fds } = await raw.ask('DEVICE_GET_REGION_INFO', ask);
      expect(fds).toEqual([]);
      expect(RegionInfoHeader.decode(payload)).toMatchObject({ argsz: 32, flags: 3, cap_offset: 0 });
    });
  });

  it('gets no more data in a reply than it takes', async () => {
    await withServer(async (server) => {
      using raw = RawClient.of(server);
      await raw.version(Buffer.from('{"capabilities":{"max_data_xfer_size":64}}\0'));
      const read = (count: number) =>
        raw.ask('REGION_READ', RegionAccess.encode({ region: 0, offset: 0n, count }));
      expect((await read(64)).payload.length).toBe(80);
      expect(isError(await read(65), 22)).toBe(true);
    });
  });
});
