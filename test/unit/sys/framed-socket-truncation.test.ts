/** More descriptors in one message than are taken: the kernel cuts the ancillary data, and the connection ends. */
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { FramedSocket } from '../../../src/sys/framed-socket.js';
import { UnixServer } from '../../../src/sys/unix-server.js';
import { shortTmp } from '../../support/scope.js';

/** Sends 8 bytes with 40 copies of its stdin, which our own sender refuses to do, and waits for the end. */
const SENDER = `
import array, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
s.connect(sys.argv[1])
fds = array.array('i', [0] * 40)
s.sendmsg([b'8 bytes.'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
try:
    s.recv(1)
except ConnectionResetError:
    pass
`;

const openFds = (): number => readdirSync('/proc/self/fd').length;
const python = spawnSync('python3', ['--version']).status === 0;

it.skipIf(!python)(
  'closes a connection whose ancillary data was truncated, with every descriptor that came',
  async () => {
    const folder = mkdtempSync(join(shortTmp(), 'vp-'));
    const path = join(folder, 's');
    try {
      let accepted!: (fd: number) => void;
      const connection = new Promise<number>((resolve) => {
        accepted = resolve;
      });
      using server = new UnixServer(path, (fd) => accepted(fd));
      const before = openFds();
      const sender = spawn('python3', ['-c', SENDER, path], { stdio: ['ignore', 'inherit', 'inherit'] });
      const ended = new Promise((resolve) => sender.on('exit', resolve));
      const fd = await connection;
      const error = await new Promise<Error | undefined>((resolve) => {
        new FramedSocket(
          fd,
          { headerBytes: 8, totalBytes: () => 8 },
          {
            message: (_, fds) => {
              for (const received of fds) closeSync(received);
              resolve(new Error('the message was delivered'));
            },
            closed: resolve,
          },
        );
      });
      expect(error).toMatchObject({ code: 'ECTRUNC', scope: 'connection' });
      expect(await ended).toBe(0);
      expect(openFds()).toBe(before);
      expect(server.path).toBe(path);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
);
