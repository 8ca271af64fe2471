/** The commands as a user meets them: help, mistakes told in one line with exit status 2, and the back-end conventions. */
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { native } from '../../src/sys/native.js';
import { FrontEnd } from '../../src/vhost-user/front-end.js';
import { type Child, start, vhostPci, vhostPciArgv } from '../support/process.js';
import { type Availability, need, PATIENCE_MS, Scope, sleep, until } from '../support/scope.js';

let scope: Scope;
let folder: string;
beforeEach(() => {
  scope = new Scope();
  folder = scope.folder();
});
afterEach((context) => scope.end(context));

const LIMIT = { timeout: 180_000 };

async function ended(args: readonly string[], fds: readonly number[] = []): Promise<Child> {
  const child = vhostPci(scope, args, { fds });
  const exit = await Promise.race([child.exited, sleep(PATIENCE_MS)]);
  if (!exit) throw new Error(`vhost-pci ${args.join(' ')} goes on${child.tail()}`);
  return child;
}

/** Python opens the socket, and runs the command with it as descriptor 3. */
const HAND_DOWN = `
import os, socket, sys
kind, program = sys.argv[1], sys.argv[2:]
if kind == 'datagram': s = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]
elif kind == 'packet': s = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0]
elif kind == 'internet': s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
elif kind == 'lonely': s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
else:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.bind(program.pop(0))
    s.listen()
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.execv(program[0], program)
`;

describe('a mistake', () => {
  it('is told in one line, with exit status 2', LIMIT, async () => {
    writeFileSync(join(folder, 'file'), 'x');
    for (const [line, words] of [
      ['nonsense', /unknown command "nonsense"; the commands are device, net/],
      ['constructor', /unknown command/],
      ['device --vfio-user @/b', /--socket-path or --fd is missing/],
      ['device --fd 65000 --vfio-user @/b', /it is not open; the parent process has to hand down/],
      ['net vfio-user:@/b --cpu 4095', /CPU 4095 cannot run a worker/],
      ['net vfio-user:@/file', /is not a socket/],
      ['net vfio-user:@/file/socket', /ENOTDIR/],
      ['device --socket-path @/a --vfio-user @/nowhere/b', /cannot listen on .*nowhere\/b/],
    ] as const) {
      const child = await ended(line.split(' ').map((word) => word.replaceAll('@', folder)));
      expect(child.exit, `vhost-pci ${line}${child.tail()}`).toEqual({ code: 2, signal: null });
      expect(child.stdout).toEqual([]);
      expect(child.stderr).toEqual([expect.stringMatching(words)]);
      expect(child.stderr[0]).toMatch(/^vhost-pci: /);
    }
    const bare = await ended([]);
    expect([bare.exit?.code, bare.stdout.length]).toEqual([2, 0]);
    expect(bare.stderr).toEqual([expect.stringMatching(/^vhost-pci: COMMAND is missing: device, net, /)]);
  });
});

describe('help', () => {
  it('is on stdout, in lines that fit a terminal', LIMIT, async () => {
    for (const args of [
      ['--help'],
      ['help'],
      ['device', '--help'],
      ['net', '-h'],
      ['status', '--help'],
      ['bind', '--help'],
      ['unbind', '--help'],
      ['backend-json', '--help'],
    ]) {
      const child = await ended(args);
      expect([child.exit?.code, child.stderr]).toEqual([0, []]);
      expect(child.stdout[0]).toMatch(/^Usage: vhost-pci/);
      expect(Math.max(...child.stdout.map((l) => l.length))).toBeLessThanOrEqual(120);
    }
  });
});

describe('--version', () => {
  it('is that of the package', LIMIT, async () => {
    const child = await ended(['--version']);
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    expect([child.exit?.code, child.stdout]).toEqual([0, [`vhost-pci ${version}`]]);
  });
});

describe('the conventions for back-end programs', () => {
  it('--print-capabilities is JSON, whatever else is there', LIMIT, async () => {
    for (const more of [[], ['--nonsense'], ['--socket-path', '/no/such/path']]) {
      const child = await ended(['device', '--print-capabilities', ...more]);
      expect([child.exit?.code, child.stderr]).toEqual([0, []]);
      expect(JSON.parse(child.stdout.join('\n'))).toEqual({ type: 'net' });
    }
  });

  it('backend-json describes the program', LIMIT, async () => {
    const child = await ended(['backend-json', '/usr/libexec/vhost-pci-device']);
    expect(child.exit?.code).toBe(0);
    expect(JSON.parse(child.stdout.join('\n'))).toMatchObject({
      type: 'net',
      binary: '/usr/libexec/vhost-pci-device',
      description: expect.any(String),
    });
  });

  it('--fd serves an inherited connection, and ends with it', LIMIT, async () => {
    const [ours, theirs] = native.unixPair();
    const frontEnd = new FrontEnd(ours);
    scope.defer(() => frontEnd.close());
    const child = vhostPci(scope, ['device', '--fd', '3', '--vfio-user', join(folder, 'b')], {
      fds: [theirs],
    });
    closeSync(theirs);
    const { features } = await frontEnd.negotiate(2n ** 64n - 1n, 0xffffn);
    expect(features & (1n << 32n)).not.toBe(0n);
    frontEnd.close();
    expect(await child.exited).toEqual({ code: 0, signal: null });
  });

  it('--fd that is no socket is refused', LIMIT, async () => {
    const fd = native.memfdCreate('no-socket', 4096);
    const child = await ended(['device', '--fd', '3', '--vfio-user', join(folder, 'b')], [fd]);
    closeSync(fd);
    expect(child.exit?.code).toBe(2);
    expect(child.stderr[0]).toMatch(/--fd 3: it is not a socket; the parent process has to hand down/);
  });

  it.each([
    ['datagram', [], /^vhost-pci: --fd 3: it is a datagram or packet socket, no stream socket; .*hand down/],
    ['packet', [], /it is a datagram or packet socket/],
    ['internet', [], /it is no Unix socket/],
    ['lonely', [], /it is a socket without a connection/],
    ['listening', ['@/listener'], /it is a listening socket, no connection; .* or --socket-path has to name/],
  ] as const)('--fd that is a %s socket is refused', LIMIT, async (kind, paths, words) => {
    const command = vhostPciArgv(['device', '--fd', '3', '--vfio-user', join(folder, 'b')]);
    const args = ['-c', HAND_DOWN, kind, ...paths.map((p) => p.replace('@', folder)), ...command];
    const child = start(scope, 'vhost-pci device', 'python3', args);
    expect(await child.exited).toEqual({ code: 2, signal: null });
    expect([child.stdout, child.stderr]).toEqual([[], [expect.stringMatching(words)]]);
  });
});

/** A mount namespace of its own with a small tmpfs on `folder`/tmpfs. */
const SMALL_TMPFS = 'mount -t tmpfs -o "$1" tmpfs "$0" && shift && exec "$@"';

/** Arguments of unshare(1). */
function onTmpfs(options: string, size: string): string[] {
  const place = join(folder, 'tmpfs');
  mkdirSync(place, { recursive: true });
  const file = join(place, 'memory');
  const sockets = ['--socket-path', join(folder, 'a'), '--vfio-user', join(folder, 'b')];
  const device = vhostPciArgv(['device', ...sockets, '--peer-memory', file, '--peer-memory-size', size]);
  return ['-m', 'sh', '-c', SMALL_TMPFS, place, options, ...device];
}

function mayMount(): Availability<true> {
  const { status } = spawnSync('unshare', ['-m', 'mount', '-t', 'tmpfs', 'tmpfs', tmpdir()]);
  return status === 0 ? { ok: true } : { missing: 'this user may not mount a tmpfs' };
}

describe('a file system without room for the peer’s memory', () => {
  it('is told at once when it takes no file', LIMIT, async (context) => {
    need(context, mayMount());
    const child = start(scope, 'vhost-pci device', 'unshare', onTmpfs('nr_inodes=1', '4M'));
    expect(await child.exited).toEqual({ code: 2, signal: null });
    expect(child.stderr).toEqual([
      expect.stringMatching(/^vhost-pci: --peer-memory .*no space left on device/),
    ]);
  });

  it('is told as a warning when it could run out of pages', LIMIT, async (context) => {
    need(context, mayMount());
    const tight = start(scope, 'vhost-pci device', 'unshare', onTmpfs('size=1m', '4M'));
    await tight.line(/has 3145728 bytes too little for all of the peer's memory.*SIGBUS/, 10_000, 'stderr');
    await tight.until('its socket', 10_000, () => existsSync(join(folder, 'a')));
    expect((await tight.stop()).code).toBe(0);
    const roomy = start(scope, 'vhost-pci device', 'unshare', onTmpfs('size=8m', '4M'));
    await roomy.until('its socket', 10_000, () => existsSync(join(folder, 'a')));
    expect((await roomy.stop()).code).toBe(0);
    expect(roomy.stderr).toEqual([]);
  });
});

describe('output that nobody reads', () => {
  it('ends the driver in order', LIMIT, async () => {
    const net = vhostPci(scope, ['net', `vfio-user:${folder}/b`, '--json', '--stats', '1']);
    await net.line(/waiting for a device process/, 10_000, 'stderr');
    net.closeStdout();
    await until('its end', 5000, () => net.exit);
    expect(net.exit).toEqual({ code: 0, signal: null });
    expect(net.stderr.filter((line) => /Error|at /.test(line))).toEqual([]);
  });
});
