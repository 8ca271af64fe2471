/** A client that reads no more and has not ended, as QEMU after an answer that came too late. */
import koffi from 'koffi';
import { describe, expect, it } from 'vitest';
import { REGION } from '../../../src/pci/handle.js';
import { native } from '../../../src/sys/native.js';
import { Client } from '../../../src/vfio-user/client.js';
import { COMMANDS, RegionAccess } from '../../../src/vfio-user/protocol.js';
import type { Server } from '../../../src/vfio-user/server.js';
import { RawClient, type TestDevice, until, withServer } from './rig.js';

const shutdown = koffi.load('libc.so.6').func('int shutdown(int fd, int how)');
const SHUT_RD = 0;
const read = RegionAccess.encode({ offset: 0n, region: REGION.CONFIG, count: 4 });

/** Serves one end of a socket pair, and gives the other. */
async function connect(server: Server): Promise<{ client: RawClient; fd: number }> {
  const [fd, theirs] = native.unixPair();
  server.serve(theirs);
  const client = new RawClient(fd);
  await client.version();
  return { client, fd };
}

/** Notes that it was told, and lets the session end when `release` is called. */
function holding(device: TestDevice): { release: () => void } {
  let release = (): void => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  Object.assign(device, {
    unheard: () => {
      device.log.push('unheard');
      return held;
    },
  });
  return { release };
}

describe('a client that has only stopped reading', () => {
  it('keeps its session until the device has ended what goes on in shared memory', async () => {
    await withServer(async (server, device) => {
      const { release } = holding(device);
      const { client, fd } = await connect(server);
      shutdown(fd, SHUT_RD);
      // More than one: what is behind the first that cannot be answered is no sign of life.
      for (let n = 0; n < 3; n++) client.send(COMMANDS.REGION_READ.command, read);
      await until(() => device.log.includes('unheard'));
      expect(device.session).toBeDefined();
      expect(device.log.at(-1)).toBe('unheard');

      // A client that comes meanwhile is not refused, however long it takes.
      const [ours, theirs] = native.unixPair();
      server.serve(theirs);
      const next = Client.fromFd(ours, 'vfio-user:next', { timeoutMs: 10_000 });
      await new Promise((resolve) => setTimeout(resolve, 500));
      expect(device.log.at(-1)).toBe('unheard');
      release();
      await using second = await next;
      expect((await second.read(REGION.CONFIG, 0, 2)).toString('hex')).toBe('f41a');
      expect(device.log.filter((line) => /attached|detached|unheard/.test(line))).toEqual([
        'attached',
        'unheard',
        'detached: the other side reads no more',
        'attached',
      ]);
      client[Symbol.dispose]();
    });
  });

  it('is told apart from one that has ended', async () => {
    await withServer(async (server, device) => {
      holding(device);
      let open = (): void => {};
      device.holdWrite = new Promise((resolve) => {
        open = resolve;
      });
      const { client } = await connect(server);
      const write = RegionAccess.encode({ offset: 0n, region: REGION.BAR0, count: 4 });
      client.send(COMMANDS.REGION_WRITE.command, Buffer.concat([write, Buffer.alloc(4)]));
      client.send(COMMANDS.REGION_READ.command, read);
      await until(() => device.log.some((line) => line.startsWith('write')));
      client[Symbol.dispose]();
      open();
      await until(() => device.log.some((line) => line.startsWith('detached')));
      expect(device.log).not.toContain('unheard');
    });
  });
});
