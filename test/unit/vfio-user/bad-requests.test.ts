/** What a client must not send to regions, and in general. */
import { describe, expect, it } from 'vitest';
import { REGION } from '../../../src/pci/handle.js';
import { DeviceInfo, RegionInfoHeader } from '../../../src/pci/vfio-abi.js';
import {
  COMMANDS,
  DeviceFeature,
  DmaAccess,
  encodeMessage,
  HEADER_FLAG,
  MigrationData,
  RegionIoFds,
  WriteMulti,
  WriteOne,
} from '../../../src/vfio-user/protocol.js';
import { access, type Case, check, json } from './bad-input.js';
import { FILE_BYTES, RawClient, until, withServer } from './rig.js';

const cases: Case[] = [
  { title: 'a second VERSION', send: (raw) => raw.send(1, json('{}\0')), errno: 'EPROTO', closes: true },
  {
    title: 'an unsolicited reply',
    send: (raw) => raw.send(COMMANDS.REGION_READ.command, access(7, 0n, 4), [], HEADER_FLAG.REPLY),
    closes: true,
  },
  {
    title: 'an unknown command',
    send: (raw) => raw.send(999, Buffer.alloc(3)),
    errno: 'ENOTSUP',
    closes: false,
  },
  { title: 'command 0', send: (raw) => raw.send(0), errno: 'ENOTSUP', closes: false },
  {
    title: 'the old DIRTY_PAGES command',
    send: (raw) => raw.send(14, Buffer.alloc(8)),
    errno: 'ENOTSUP',
    closes: false,
  },
  {
    title: 'a command of servers',
    send: (raw) => raw.send(COMMANDS.DMA_READ.command, DmaAccess.encode({ count: 4n })),
    errno: 'EPROTO',
    closes: true,
  },
  {
    title: 'half a message, and the end',
    send: (raw) => {
      raw.bytes(encodeMessage({ id: 0, command: 9, flags: 0 }, access(7, 0n, 4)).subarray(0, 20));
      raw[Symbol.dispose]();
    },
    closes: true,
  },
  // -- regions
  {
    title: 'DEVICE_GET_INFO with a small argsz',
    send: (raw) => raw.send(4, DeviceInfo.encode({ argsz: 15 })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DEVICE_GET_REGION_INFO with a small argsz',
    send: (raw) => raw.send(5, RegionInfoHeader.encode({ argsz: 31, index: 2 })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DEVICE_GET_REGION_INFO of a region that cannot be',
    send: (raw) => raw.send(5, RegionInfoHeader.encode({ argsz: 32, index: 9 })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DEVICE_GET_REGION_IO_FDS of an absent region',
    send: (raw) => raw.send(6, RegionIoFds.encode({ argsz: 4096, index: 5 })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DEVICE_GET_REGION_IO_FDS with a count',
    send: (raw) => raw.send(6, RegionIoFds.encode({ argsz: 4096, index: 0, count: 1 })),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'a read whose offset + count wraps',
    send: (raw) => raw.send(9, access(REGION.CONFIG, 0xffff_ffff_ffff_fffcn, 8)),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'a write whose offset + count wraps',
    send: (raw) => raw.send(10, access(REGION.BAR0, 0xffff_ffff_ffff_ffffn, 1, Buffer.alloc(1))),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'a read one byte past a region',
    send: (raw) => raw.send(9, access(REGION.CONFIG, 253n, 4)),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'a read of an absent region',
    send: (raw) => raw.send(9, access(REGION.BAR5, 0n, 4)),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'a read of region 2^32 - 1',
    send: (raw) => raw.send(9, access(0xffffffff, 0n, 4)),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'a read of 4 GiB',
    send: (raw) => raw.send(9, access(REGION.BAR2, 0n, 0xffffffff)),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'a read of mappable space behind the file',
    send: (raw) => raw.send(9, access(REGION.BAR2, BigInt(FILE_BYTES), 4)),
    errno: 'EIO',
    closes: false,
  },
  {
    title: 'a read with data',
    send: (raw) => raw.send(9, access(REGION.CONFIG, 0n, 4, Buffer.alloc(4))),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'a write with less data than its count',
    send: (raw) => raw.send(10, access(REGION.BAR0, 0n, 8, Buffer.alloc(4))),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'a write with more data than its count',
    send: (raw) => raw.send(10, access(REGION.BAR0, 0n, 1, Buffer.alloc(4))),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'a write to a region that cannot be written',
    send: (raw) => raw.send(10, access(REGION.BAR1, 0n, 4, Buffer.alloc(4))),
    errno: 'EPERM',
    closes: false,
  },
  {
    title: 'a write cut off in its fixed part',
    send: (raw) => raw.send(10, Buffer.alloc(15)),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'a read with a file descriptor',
    send: (raw, { memfd }) => raw.send(9, access(REGION.CONFIG, 0n, 4), [memfd]),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'REGION_WRITE_MULTI with a wrong number of writes',
    send: (raw) =>
      raw.send(15, Buffer.concat([WriteMulti.encode({ wr_cnt: 2n }), WriteOne.encode({ count: 4 })])),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'REGION_WRITE_MULTI with 2^64 - 1 writes',
    send: (raw) => raw.send(15, WriteMulti.encode({ wr_cnt: 0xffff_ffff_ffff_ffffn })),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'REGION_WRITE_MULTI with a write of 9 bytes',
    send: (raw) =>
      raw.send(15, Buffer.concat([WriteMulti.encode({ wr_cnt: 1n }), WriteOne.encode({ count: 9 })])),
    errno: 'EINVAL',
    closes: false,
  },
  {
    title: 'DEVICE_RESET with a payload',
    send: (raw) => raw.send(13, Buffer.alloc(1)),
    errno: 'EINVAL',
    closes: true,
  },
  {
    title: 'DEVICE_FEATURE',
    send: (raw) => raw.send(16, DeviceFeature.encode({ argsz: 8, flags: 0x10001 })),
    errno: 'ENOTSUP',
    closes: false,
  },
  {
    title: 'MIG_DATA_READ',
    send: (raw) => raw.send(17, MigrationData.encode({ argsz: 8, size: 4096 })),
    errno: 'ENOTSUP',
    closes: false,
  },
  {
    title: 'MIG_DATA_WRITE',
    send: (raw) =>
      raw.send(18, Buffer.concat([MigrationData.encode({ argsz: 8, size: 4 }), Buffer.alloc(4)])),
    errno: 'ENOTSUP',
    closes: false,
  },
];

describe('a server refuses', () => {
  for (const c of cases) it(c.title, () => check(c, true));
});

describe('a server', () => {
  it('says nothing about a failed request that wants no reply', async () => {
    await withServer(async (server) => {
      using raw = RawClient.of(server);
      await raw.version();
      raw.send(10, access(REGION.BAR1, 0n, 4, Buffer.alloc(4)), [], HEADER_FLAG.NO_REPLY);
      raw.send(999, Buffer.alloc(0), [], HEADER_FLAG.NO_REPLY);
      const id = raw.send(9, access(REGION.CONFIG, 0n, 4));
      expect((await raw.reply())?.id).toBe(id);
    });
  });

  it('ends the connection of a client that sends many requests and reads no replies', async () => {
    await withServer(async (server, device) => {
      using raw = RawClient.of(server);
      await raw.version();
      device.regions[REGION.ROM] = { size: 1 << 20, readable: true, writable: false };
      device.read = (_region, _offset, length) => Buffer.alloc(length);
      for (let i = 0; i < 10; i++) raw.send(9, access(REGION.ROM, 0n, 1 << 20));
      await until(() => device.log.some((l) => l.startsWith('detached: the other side does not read')));
    });
  });

  it('answers a flood of requests in their order', async () => {
    await withServer(async (server) => {
      using raw = RawClient.of(server);
      await raw.version();
      const ids = Array.from({ length: 150 }, () => raw.send(9, access(REGION.CONFIG, 0n, 4)));
      for (const id of ids) expect((await raw.reply())?.id).toBe(id);
    });
  });

  it('takes a message that arrives byte by byte', async () => {
    await withServer(async (server) => {
      using raw = RawClient.of(server);
      await raw.version();
      const message = encodeMessage({ id: 9, command: 9, flags: 0 }, access(REGION.CONFIG, 0n, 4));
      for (const byte of message) {
        raw.bytes(Buffer.from([byte]));
        await new Promise((resolve) => setImmediate(resolve));
      }
      expect((await raw.reply())?.payload.subarray(16).toString('hex')).toBe('f41af210');
    });
  });
});
