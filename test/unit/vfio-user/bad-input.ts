/** One thing that a client must not send, and how a server is checked that was sent it. */
import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import { expect } from 'vitest';
import { IRQ, REGION } from '../../../src/pci/handle.js';
import { IRQ_SET, IrqSet } from '../../../src/pci/vfio-abi.js';
import { native } from '../../../src/sys/native.js';
import { Client } from '../../../src/vfio-user/client.js';
import { DmaMap, RegionAccess, Version } from '../../../src/vfio-user/protocol.js';
import { isError, openFds, RawClient, until, withServer } from './rig.js';

type Errno = keyof typeof constants.errno;
export interface Case {
  title: string;
  send: (raw: RawClient, fds: { memfd: number; event: number; socket: number }) => void;
  /** The error reply expected, if any. */
  errno?: Errno;
  /** Whether the connection ends; otherwise it must still work. */
  closes: boolean;
}

export const map = (value: Partial<Parameters<typeof DmaMap.encode>[0]> = {}) =>
  DmaMap.encode({ argsz: 32, flags: 3, offset: 0n, address: 0x10000n, size: 0x1000n, ...value });
export const irqs = (value: Partial<Parameters<typeof IrqSet.encode>[0]>) =>
  IrqSet.encode({
    argsz: 20,
    flags: IRQ_SET.DATA_EVENTFD | IRQ_SET.TRIGGER,
    index: IRQ.MSIX,
    count: 1,
    ...value,
  });
export const access = (region: number, offset: bigint, count: number, data = Buffer.alloc(0)) =>
  Buffer.concat([RegionAccess.encode({ region, offset, count }), data]);
export const json = (text: string) => Buffer.concat([Version.encode({}), Buffer.from(text)]);

/** The answer, whether the connection ends, that nothing is left open, and that the next client is served. */
export async function check({ send, errno, closes }: Case, versionFirst: boolean): Promise<void> {
  await withServer(async (server, device) => {
    const memfd = native.memfdCreate('bad', 0x2000);
    const event = native.eventfd();
    const [socket, other] = native.unixPair();
    const fds = openFds();
    {
      using raw = RawClient.of(server);
      if (versionFirst) await raw.version();
      const quiet = openFds();
      send(raw, { memfd, event, socket });
      if (errno) {
        const reply = await raw.reply();
        expect(reply?.error, errno).toBe(constants.errno[errno]);
        expect(isError(reply, constants.errno[errno]!)).toBe(true);
      }
      if (closes) {
        await until(() => device.log.some((l) => l.startsWith('detached')));
      } else {
        const alive = await raw.ask('REGION_READ', access(REGION.CONFIG, 0n, 4));
        expect(alive.payload.subarray(16).toString('hex')).toBe('f41af210');
        expect(openFds()).toBe(quiet);
        expect(device.dma?.windows.length ?? 0).toBe(0);
      }
    }
    await until(() => openFds() === fds);
    // The server lives and serves the next client.
    const [ours, theirs] = native.unixPair();
    server.serve(theirs);
    await using client = await Client.fromFd(ours, 'next');
    expect((await client.read(REGION.CONFIG, 0, 2)).toString('hex')).toBe('f41a');
    for (const fd of [memfd, event, socket, other]) closeSync(fd);
  });
}
