import { closeSync, ftruncateSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { IRQ, REGION } from '../../../src/pci/handle.js';
import { native } from '../../../src/sys/native.js';
import { Client, connectWhenThere } from '../../../src/vfio-user/client.js';
import { Server } from '../../../src/vfio-user/server.js';
import {
  BAR2_BYTES,
  FILE_BYTES,
  MSIX_VECTORS,
  openFds,
  TestDevice,
  until,
  withClient,
  withServer,
} from './rig.js';

describe('a client and a server', () => {
  it('read and write registers of any width', async () => {
    await withClient(async (client) => {
      expect((await client.read(REGION.CONFIG, 0, 4)).toString('hex')).toBe('f41af210');
      await client.write(REGION.BAR0, 0x10, Buffer.from('0102030405060708', 'hex'));
      expect((await client.read(REGION.BAR0, 0x13, 1))[0]).toBe(4);
      expect((await client.read(REGION.BAR0, 0x10, 8)).toString('hex')).toBe('0102030405060708');
    });
  });

  it('agree on what a region is, and on absent ones', async () => {
    await withClient(async (client) => {
      expect(await client.regionInfo(REGION.BAR2)).toEqual({
        size: BAR2_BYTES,
        readable: true,
        writable: true,
        areas: [{ offset: 0, size: FILE_BYTES }],
      });
      expect(await client.regionInfo(REGION.BAR1)).toEqual({
        size: 0x1000,
        readable: true,
        writable: false,
        areas: [],
      });
      expect((await client.regionInfo(REGION.BAR5)).size).toBe(0);
      await expect(client.regionInfo(9)).rejects.toMatchObject({ code: 'EINVAL' });
    });
  });

  it('share the memory behind a mappable area', async () => {
    await withClient(async (client, device) => {
      const mapping = await client.map(REGION.BAR2, { offset: 0x1000, size: 0x2000 }, true);
      device.memory.write(0x1010, Buffer.from('from the device'));
      expect(mapping.read(0x10, 15).toString()).toBe('from the device');
      mapping.write(0x1800, Buffer.from('from the client'));
      expect(device.memory.read(0x2800, 15).toString()).toBe('from the client');
      expect((await client.read(REGION.BAR2, 0x2800, 15)).toString()).toBe('from the client');
      mapping.close();
      await expect(client.map(REGION.BAR2, { offset: FILE_BYTES, size: 0x1000 }, true)).rejects.toThrow(
        /cannot be mapped/,
      );
      await expect(client.map(REGION.BAR0, { offset: 0, size: 0x1000 }, true)).rejects.toThrow(
        /cannot be mapped/,
      );
    });
  });

  it('add the region offset to the area offset of a mapping', async () => {
    await withServer(async (server, device) => {
      const bar = device.regions[REGION.BAR2]!;
      const areas = [{ offset: 0x1000, size: 0x1000 }];
      device.regions[REGION.BAR2] = { ...bar, mappable: { fd: device.memfd, fdOffset: 0x4000, areas } };
      const [ours, theirs] = native.unixPair();
      server.serve(theirs);
      await using client = await Client.fromFd(ours, 'test');
      const mapping = await client.map(REGION.BAR2, areas[0]!, false);
      device.memory.write(0x5000, Buffer.from('here'));
      expect(mapping.read(0, 4).toString()).toBe('here');
      mapping.close();
    });
  });

  it('survive a file that shrinks under a mapping', async () => {
    await withClient(async (client, device) => {
      const mapping = await client.map(REGION.BAR2, { offset: 0, size: FILE_BYTES }, true);
      ftruncateSync(device.memfd, 0x1000);
      expect(() => mapping.read(0x8000, 8)).toThrow(expect.objectContaining({ code: 'EFAULT' }));
      expect(mapping.faulted).toBe(true);
      // The device's own read of it becomes an error reply, and the connection goes on.
      await expect(client.read(REGION.BAR2, 0x8000, 8)).rejects.toMatchObject({
        code: 'EFAULT',
        scope: 'message',
      });
      expect((await client.read(REGION.CONFIG, 0, 2)).toString('hex')).toBe('f41a');
      mapping.close();
    });
  });

  it('carry transfers that are longer than one message may be', async () => {
    await withServer(async (server, device) => {
      const big = 3 << 20;
      const content = Buffer.alloc(big, 7);
      device.regions[REGION.ROM] = { size: 1 << 22, readable: true, writable: false };
      device.read = (_region, offset, length) => content.subarray(offset, offset + length);
      const [ours, theirs] = native.unixPair();
      server.serve(theirs);
      await using client = await Client.fromFd(ours, 'test');
      expect((await client.read(REGION.ROM, 0, big)).equals(content)).toBe(true);
    });
  });

  it('keep requests apart that are under way together', async () => {
    await withClient(async (client, device) => {
      for (let i = 0; i < 200; i++) device.registers.writeUInt16LE(i * 3, i * 2);
      const all = await Promise.all(
        Array.from({ length: 200 }, (_, i) => client.read(REGION.BAR0, i * 2, 2)),
      );
      expect(all.map((b) => b.readUInt16LE(0))).toEqual(Array.from({ length: 200 }, (_, i) => i * 3));
    });
  });

  it('refuse accesses outside a region and writes to read-only ones, and go on', async () => {
    await withClient(async (client) => {
      await expect(client.read(REGION.CONFIG, 253, 4)).rejects.toMatchObject({
        code: 'EINVAL',
        scope: 'message',
      });
      await expect(client.read(REGION.BAR5, 0, 4)).rejects.toMatchObject({ code: 'EINVAL' });
      await expect(client.write(REGION.BAR1, 0, Buffer.alloc(4))).rejects.toMatchObject({ code: 'EPERM' });
      expect((await client.read(REGION.CONFIG, 252, 4)).length).toBe(4);
    });
  });

  it('reset the device', async () => {
    await withClient(async (client, device) => {
      await client.reset();
      expect(device.log).toContain('reset');
    });
  });

  it('map and unmap DMA memory, and tell the device about each', async () => {
    await withClient(async (client, device) => {
      const fd = native.memfdCreate('dma', 0x4000);
      const memory = new native.Mapping(fd, 0, 0x4000, true);
      await client.mapDma(fd, memory, 0x1000, 0x10_0000n, 0x2000);
      memory.write(0x1804, Buffer.from('dma'));
      expect(device.dma!.table().read(0x10_0804n, 3).toString()).toBe('dma');
      device.dma!.table().write(0x10_1ffcn, Buffer.from('back'));
      expect(memory.read(0x2ffc, 4).toString()).toBe('back');
      expect(() => device.dma!.table().read(0x10_2000n, 1)).toThrow();
      const version = device.dma!.version;
      await expect(client.mapDma(fd, memory, 0, 0x10_1000n, 0x2000)).rejects.toMatchObject({
        code: 'EEXIST',
      });
      await expect(client.unmapDma(0x10_0000n, 0x1000)).rejects.toMatchObject({ code: 'EINVAL' });
      expect(device.dma!.version).toBe(version);
      await client.unmapDma(0x10_0000n, 0x2000);
      expect(device.dma!.version).not.toBe(version);
      expect(device.dma!.table().regions).toBe(0);
      memory.close();
      closeSync(fd);
    });
  });

  it('set, replace and clear interrupt eventfds, in chunks of what a message may carry', async () => {
    await withClient(async (client, device) => {
      expect(await client.irqCount(IRQ.MSIX)).toBe(MSIX_VECTORS);
      expect(await client.irqCount(IRQ.MSI)).toBe(0);
      expect(await client.irqCount(77)).toBe(0);
      const events = Array.from({ length: MSIX_VECTORS }, () => native.eventfd());
      await client.setIrqs(IRQ.MSIX, events);
      const { irqs } = device.session!;
      for (const [vector, fd] of events.entries()) {
        expect(irqs.trigger(IRQ.MSIX, vector)).toBe(true);
        expect(native.eventfdTake(fd)).toBe(1);
      }
      await client.setIrqs(IRQ.MSIX, events.slice(0, 3));
      expect(irqs.trigger(IRQ.MSIX, 2)).toBe(true);
      expect(irqs.trigger(IRQ.MSIX, 3)).toBe(false);
      await client.setIrqs(IRQ.MSIX, []);
      expect(irqs.trigger(IRQ.MSIX, 0)).toBe(false);
      await expect(client.setIrqs(IRQ.MSI, events.slice(0, 1))).rejects.toMatchObject({ code: 'EINVAL' });
      for (const fd of events) closeSync(fd);
    });
  });

  it('ring a doorbell through its I/O fd', async () => {
    await withClient(async (client, device) => {
      const target = await client.notifyTarget(REGION.BAR0, 0x40, 5);
      native.eventfdSignal(target.fd!);
      expect(native.eventfdTake(device.bell)).toBe(1);
      expect(device.log.some((l) => l.startsWith('write'))).toBe(false);
    });
  });

  it('ring a doorbell by a write when the server has no I/O fd for it', async () => {
    await withClient(async (client, device) => {
      device.offersIoFds = false;
      const target = await client.notifyTarget(REGION.BAR0, 0x44, 0x1234);
      expect((await client.notifyTarget(REGION.BAR0, 0x44, 0x1234)).fd).toBe(target.fd);
      native.eventfdSignal(target.fd!);
      await until(() => device.log.includes(`write 0 ${0x44} 3412`));
    });
  });
});

describe('the ends of a connection', () => {
  it('fail every request under way and resolve `gone` when the server ends', async () => {
    await withClient(async (client, device, server) => {
      let release = () => {};
      device.holdWrite = new Promise((resolve) => {
        release = resolve;
      });
      const requests = [client.write(REGION.BAR0, 0, Buffer.alloc(4)), client.read(REGION.CONFIG, 0, 4)];
      const settled = Promise.allSettled(requests);
      await until(() => device.log.some((l) => l.startsWith('write')));
      const ended = server.disconnect();
      expect((await client.gone).message).toMatch(/closed the connection/);
      for (const r of await settled)
        expect(r).toMatchObject({ status: 'rejected', reason: { code: 'ECONNRESET' } });
      await expect(client.read(REGION.CONFIG, 0, 4)).rejects.toMatchObject({ code: 'ECONNRESET' });
      expect(device.log).not.toContain('detached');
      release();
      await ended;
      expect(device.log).toContain('detached');
    });
  });

  it('give up a request after its time, and take its late reply as no offence', async () => {
    await withServer(async (server, device) => {
      const [ours, theirs] = native.unixPair();
      server.serve(theirs);
      await using client = await Client.fromFd(ours, 'vfio-user:slow', { timeoutMs: 400 });
      let release = () => {};
      device.holdWrite = new Promise((resolve) => {
        release = resolve;
      });
      await expect(client.write(REGION.BAR0, 0, Buffer.alloc(4))).rejects.toThrow(
        'vfio-user:slow: no reply to REGION_WRITE within 400 ms',
      );
      release();
      expect((await client.read(REGION.CONFIG, 0, 2)).toString('hex')).toBe('f41a');
    });
  });

  it('return memory and eventfds of a client that left', async () => {
    await withServer(async (server, device) => {
      for (let i = 0; i < 20; i++) {
        const [ours, theirs] = native.unixPair();
        server.serve(theirs);
        const client = await Client.fromFd(ours, 'test');
        const fd = native.memfdCreate('dma', 0x2000);
        const memory = new native.Mapping(fd, 0, 0x2000, true);
        await client.mapDma(fd, memory, 0, 0n, 0x2000);
        const event = native.eventfd();
        await client.setIrqs(IRQ.MSIX, [event]);
        expect(device.session!.irqs.fd(IRQ.MSIX, 0)).toBeDefined();
        closeSync(event);
        memory.close();
        closeSync(fd);
        await client[Symbol.asyncDispose]();
        await until(() => server.session === undefined);
      }
      expect(device.log.filter((l) => l === 'detached').length).toBe(20);
    });
  });

  it('do not hold the successor of a killed client back', async () => {
    await withServer(async (server) => {
      const [first, a] = native.unixPair();
      const [second, b] = native.unixPair();
      server.serve(a);
      closeSync(first);
      // The server has not seen the end of the first yet.
      server.serve(b);
      await using client = await Client.fromFd(second, 'test');
      expect((await client.read(REGION.CONFIG, 0, 2)).toString('hex')).toBe('f41a');
    });
  });
});

describe('a server on a path', () => {
  it('refuses a second client, says so, and keeps the first', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'vfio-user-'));
    const path = join(folder, 'x.sock');
    const before = openFds();
    {
      using device = new TestDevice();
      await using _server = new Server(device, { path });
      await using first = await Client.connect(path);
      await expect(Client.connect(path)).rejects.toThrow(/closed the connection|reset/i);
      expect((await first.read(REGION.CONFIG, 0, 2)).toString('hex')).toBe('f41a');
    }
    await until(() => openFds() === before);
    rmSync(folder, { recursive: true });
  });

  it('is waited for by a client that was started first', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'vfio-user-'));
    const path = join(folder, 'x.sock');
    let waited = 0;
    const connecting = connectWhenThere(path, { onWaiting: () => waited++ });
    await until(() => waited === 1);
    {
      using device = new TestDevice();
      await using _server = new Server(device, { path });
      await using client = await connecting;
      expect((await client.read(REGION.CONFIG, 0, 2)).toString('hex')).toBe('f41a');
    }
    await expect(connectWhenThere(path, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i);
    rmSync(folder, { recursive: true });
  });

  it('that is not there, or is no socket, is a mistake of the user', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'vfio-user-'));
    await expect(Client.connect(join(folder, 'none'))).rejects.toMatchObject({
      scope: 'usage',
      message: expect.stringMatching(/no such socket; start the device process first/),
    });
    writeFileSync(join(folder, 'file'), '');
    await expect(Client.connect(join(folder, 'file'))).rejects.toMatchObject({ scope: 'usage' });
    rmSync(folder, { recursive: true });
  });
});
