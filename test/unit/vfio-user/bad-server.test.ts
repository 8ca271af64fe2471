/** What a client makes of a server that lies, stalls or leaves. */
import { closeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { REGION } from '../../../src/pci/handle.js';
import { DeviceInfo, IrqInfo, RegionInfoHeader, SparseArea, SparseCap } from '../../../src/pci/vfio-abi.js';
import { native } from '../../../src/sys/native.js';
import { Client } from '../../../src/vfio-user/client.js';
import {
  DmaAccess,
  encodeMessage,
  HEADER_FLAG,
  RegionAccess,
  Version,
} from '../../../src/vfio-user/protocol.js';
import { encodeCapabilities } from '../../../src/vfio-user/version.js';
import { PATIENCE_MS } from '../../support/scope.js';
import { openFds, RawClient, until } from './rig.js';

const REPLY = HEADER_FLAG.REPLY;
type Server = RawClient;

async function answer(
  server: Server,
  payload: Uint8Array = Buffer.alloc(0),
  fds: number[] = [],
): Promise<void> {
  const request = await server.reply();
  server.bytes(encodeMessage({ id: request!.id, command: request!.command, flags: REPLY }, payload), fds);
}

const version = (json: Uint8Array = encodeCapabilities()) => Buffer.concat([Version.encode({}), json]);
const info = DeviceInfo.encode({ argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 });

/** A client that has shaken hands with `server`; afterwards no fd may be left. */
async function withLiar(
  run: (client: Client, server: Server) => Promise<void>,
  timeoutMs = PATIENCE_MS,
): Promise<void> {
  const fds = openFds();
  {
    const [ours, theirs] = native.unixPair();
    using server = new RawClient(theirs);
    const connecting = Client.fromFd(ours, 'liar', { timeoutMs });
    await answer(server, version());
    await answer(server, info);
    await using client = await connecting;
    await run(client, server);
  }
  await until(() => openFds() === fds);
}

async function handshake(first: (server: Server) => Promise<void>, timeoutMs?: number): Promise<Error> {
  const fds = openFds();
  const [ours, theirs] = native.unixPair();
  let failure: unknown;
  {
    using server = new RawClient(theirs);
    const connecting = Client.fromFd(ours, 'liar', { timeoutMs: timeoutMs ?? PATIENCE_MS }).then(
      () => new Error('it was believed'),
      (error: Error) => error,
    );
    await first(server);
    failure = await connecting;
  }
  await until(() => openFds() === fds);
  return failure as Error;
}

describe('a client shakes no hands with a server that', () => {
  const cases: [string, (server: Server) => Promise<void>, RegExp, number?][] = [
    ['is silent', async () => {}, /no reply to VERSION within 1000 ms/, 1000],
    ['closes at once', async (s) => s[Symbol.dispose](), /closed the connection/],
    [
      'refuses',
      async (s) => {
        const { id } = (await s.reply())!;
        s.bytes(encodeMessage({ id, command: 1, flags: REPLY | HEADER_FLAG.ERROR, error: 22 }));
      },
      /VERSION was refused: EINVAL/,
    ],
    ['speaks another major version', (s) => answer(s, Version.encode({ major: 3 })), /speaks version 3.0/],
    ['speaks a later minor version', (s) => answer(s, Version.encode({ minor: 1 })), /speaks version 0.1/],
    ['sends an empty VERSION', (s) => answer(s), /wrong reply to VERSION/],
    ['does not terminate its JSON', (s) => answer(s, version(Buffer.from('{}'))), /terminating NUL/],
    ['sends deep JSON', (s) => answer(s, version(Buffer.from(`${'['.repeat(999)}\0`))), /levels deep/],
    [
      'answers another command',
      async (s) => {
        const { id } = (await s.reply())!;
        s.bytes(encodeMessage({ id, command: 9, flags: REPLY }, version()));
      },
      /VERSION was asked/,
    ],
    [
      'answers another id',
      async (s) => {
        const { id } = (await s.reply())!;
        s.bytes(encodeMessage({ id: id + 1, command: 1, flags: REPLY }, version()));
      },
      /nobody asked for/,
    ],
    [
      'sends fds that nobody asked for',
      async (s) => {
        const fd = native.eventfd();
        await answer(s, version(), [fd]);
        closeSync(fd);
      },
      /1 file descriptors in a reply to VERSION/,
    ],
    [
      'announces 4 GiB',
      async (s) => s.bytes(Buffer.from('00000100ffffffff0100000000000000', 'hex')),
      /a message of 4294967295/,
    ],
    [
      'serves no PCI device',
      async (s) => {
        await answer(s, version());
        await answer(s, DeviceInfo.encode({ argsz: 16, flags: 1 }));
      },
      /no PCI device/,
    ],
  ];
  for (const [title, first, message, timeoutMs] of cases)
    it(title, async () => {
      const error = await handshake(first, timeoutMs);
      expect(error.message).toMatch(message);
      expect(error.message).toMatch(/^liar: /);
    });
});

describe('a client closes its connection when the server', () => {
  const cases: [string, (client: Client) => Promise<unknown>, Buffer, number?][] = [
    ['cuts the reply to a read', (c) => c.read(0, 0, 4), Buffer.alloc(15)],
    [
      'answers a read with less',
      (c) => c.read(0, 0, 4),
      Buffer.concat([RegionAccess.encode({ count: 4 }), Buffer.alloc(3)]),
    ],
    [
      'answers a read with more',
      (c) => c.read(0, 0, 4),
      Buffer.concat([RegionAccess.encode({ count: 8 }), Buffer.alloc(8)]),
    ],
    ['takes a part of a write', (c) => c.write(0, 0, Buffer.alloc(4)), RegionAccess.encode({ count: 3 })],
    ['describes another region', (c) => c.regionInfo(2), RegionInfoHeader.encode({ argsz: 32, index: 1 })],
    [
      'describes a region with gigabytes',
      (c) => c.regionInfo(2),
      RegionInfoHeader.encode({ argsz: 0xffffffff, index: 2 }),
    ],
    [
      'has a region of 2^64 - 1 bytes',
      (c) => c.regionInfo(2),
      RegionInfoHeader.encode({ argsz: 32, index: 2, size: 0xffff_ffff_ffff_ffffn }),
    ],
    [
      'has more vectors than PCI',
      (c) => c.irqCount(2),
      IrqInfo.encode({ argsz: 16, index: 2, count: 0xffffffff }),
    ],
    [
      'sends two fds for a region',
      (c) => c.regionInfo(2),
      RegionInfoHeader.encode({ argsz: 32, index: 2 }),
      2,
    ],
    [
      'sends an I/O fd list that does not fit',
      (c) => c.notifyTarget(0, 0, 0),
      Buffer.from('10000000000000000000000005000000', 'hex'),
      3,
    ],
  ];
  for (const [title, ask, payload, fdCount] of cases)
    it(title, async () => {
      await withLiar(async (client, server) => {
        const asked = ask(client).then(
          () => 'believed',
          (error: { scope: string }) => error.scope,
        );
        const fds = Array.from({ length: fdCount ?? 0 }, () => native.eventfd());
        await answer(server, payload, fds);
        for (const fd of fds) closeSync(fd);
        expect(await asked).toBe('connection');
        expect((await client.gone).message).toMatch(/^liar: /);
      });
    });

  it('sends a reply out of the blue', async () => {
    await withLiar(async (client, server) => {
      server.bytes(encodeMessage({ id: 77, command: 9, flags: REPLY }));
      expect((await client.gone).message).toMatch(/nobody asked for/);
    });
  });

  it('sends a command that only clients send', async () => {
    await withLiar(async (client, server) => {
      server.send(13);
      expect((await client.gone).message).toMatch(/sent command 13/);
    });
  });
});

describe('a client', () => {
  it('maps nothing that the server describes without a file', async () => {
    await withLiar(async (client, server) => {
      const areas = [
        RegionInfoHeader.encode({ argsz: 64, flags: 15, index: 2, cap_offset: 32, size: 0x1000n }),
      ];
      areas.push(SparseCap.encode({ id: 1, version: 1, nr_areas: 1 }), SparseArea.encode({ size: 0x1000n }));
      const asked = client.regionInfo(2);
      await answer(server, areas[0]!);
      await answer(server, Buffer.concat(areas));
      expect((await asked).areas).toEqual([]);
      const mapped = client.map(REGION.BAR2, { offset: 0, size: 0x1000 }, true);
      await expect(mapped).rejects.toThrow(/cannot be mapped/);
    });
  });

  it('maps nothing of a region whose fd is no file', async () => {
    await withLiar(async (client, server) => {
      const fd = native.eventfd();
      const asked = client.regionInfo(2);
      await answer(server, RegionInfoHeader.encode({ argsz: 32, flags: 7, index: 2, size: 0x1000n }), [fd]);
      closeSync(fd);
      expect((await asked).areas).toEqual([]);
    });
  });

  it('declines a request for its memory and goes on', async () => {
    await withLiar(async (client, server) => {
      server.send(11, DmaAccess.encode({ address: 0n, count: 4n }));
      const declined = await server.reply();
      expect(declined).toMatchObject({ command: 11, flags: REPLY | HEADER_FLAG.ERROR, error: 95 });
      const asked = client.read(0, 0, 4);
      await answer(server, Buffer.concat([RegionAccess.encode({ count: 4 }), Buffer.from('abcd')]));
      expect((await asked).toString()).toBe('abcd');
    });
  });

  it('asks again for what failed once', async () => {
    await withLiar(async (client, server) => {
      await expect(client.regionInfo(2)).rejects.toMatchObject({ code: 'ETIMEDOUT' });
      const asked = client.regionInfo(2);
      const late = (await server.reply())!;
      await answer(server, RegionInfoHeader.encode({ argsz: 32, flags: 3, index: 2, size: 64n }));
      expect((await asked).size).toBe(64);
      server.bytes(encodeMessage({ id: late.id, command: late.command, flags: REPLY }, Buffer.alloc(32)));
      const read = client.read(0, 0, 1);
      await answer(server, Buffer.concat([RegionAccess.encode({ count: 1 }), Buffer.alloc(1)]));
      expect((await read).length).toBe(1);
    }, 1000);
  });
});
