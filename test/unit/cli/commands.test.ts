/** Mistakes in the options of each command: a usage error of one line that says what to change, and nothing started. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { backendJsonCommand } from '../../../src/cli/backend-json.js';
import { bindCommand, unbindCommand } from '../../../src/cli/bind.js';
import { deviceCommand } from '../../../src/cli/device.js';
import { netCommand } from '../../../src/cli/net.js';
import { statusCommand } from '../../../src/cli/status.js';
import { native } from '../../../src/sys/native.js';
import { VhostPciError } from '../../../src/util/errors.js';
import { Scope, until } from '../../support/scope.js';
import { openFds } from '../vhost-pci/rig.js';

let scope: Scope;
let folder: string;
let fds: number;
let mappings: number;
beforeEach(() => {
  fds = openFds();
  mappings = native.mappingCount();
  scope = new Scope();
  folder = scope.folder();
  writeFileSync(join(folder, 'file'), 'x');
  mkdirSync(join(folder, 'dir'));
});
afterEach(async (context) => {
  await scope.end(context);
  await until('nothing is left', 2000, () => openFds() <= fds && native.mappingCount() <= mappings);
});

const COMMANDS = {
  device: deviceCommand,
  net: netCommand,
  status: statusCommand,
  bind: bindCommand,
  unbind: unbindCommand,
  'backend-json': backendJsonCommand,
};

/** Each line is a command, with @ for a folder of its own; the pattern is for what is told. */
async function refused(cases: readonly (readonly [string, RegExp])[]): Promise<void> {
  for (const [line, words] of cases) {
    const [name, ...args] = line.split(' ').map((word) => word.replaceAll('@', folder));
    const error = await COMMANDS[name as keyof typeof COMMANDS](args).catch((e: unknown) => e);
    expect(error, line).toBeInstanceOf(VhostPciError);
    const { scope: of, message } = error as VhostPciError;
    expect([line, of]).toEqual([line, 'usage']);
    expect(message).toMatch(words);
    expect(message).not.toContain('\n');
  }
}

describe('a mistake', () => {
  it('in the options of the device process is told in one line', async () => {
    const sockets = 'device --socket-path @/a --vfio-user @/b';
    await refused([
      ['device', /--socket-path or --fd is missing/],
      ['device --socket-path @/a', /--vfio-user is missing/],
      ['device --vfio-user @/b', /--socket-path or --fd is missing/],
      ['device --socket-path @/a --fd 3 --vfio-user @/b', /exclude each other; give one of them/],
      ['device --socket-path @/a --vfio-user @/a', /give each a path of its own/],
      ['device --socket-path @/a --vfio-user @/./a', /give each a path of its own/],
      [`${sockets} --peer-memory @/b --peer-memory-size 1M`, /--vfio-user and --peer-memory are both/],
      [`${sockets} --receiver-qmp @/a --receiver-bus p`, /--socket-path and --receiver-qmp are both/],
      ['device --fd x --vfio-user @/b', /--fd x: a whole number/],
      ['device --fd 65000 --vfio-user @/b', /it is not open; the parent process has to hand down/],
      [`${sockets} --peer-memory @/m`, /go together/],
      [`${sockets} --peer-memory-size 1M`, /go together/],
      [`${sockets} --peer-memory @/m --peer-memory-size 5`, /give a multiple of 4096/],
      [`${sockets} --peer-memory @/m --peer-memory-size lots`, /a size such as 512M or 4G/],
      [`${sockets} --peer-memory @/dir --peer-memory-size 1M`, /--peer-memory .*dir/],
      [`${sockets} --peer-memory @/no/m --peer-memory-size 1M`, /--peer-memory .*no such file/i],
      [
        `${sockets} --peer-memory @/m --peer-memory-size 8000T`,
        /more than 4 times the \d+ bytes of this host/,
      ],
      [`${sockets} --queue-pairs 0`, /--queue-pairs 0: a whole number from 1 to 128/],
      [`${sockets} --queue-pairs 129`, /from 1 to 128/],
      [`${sockets} --interrupts intx`, /msix or msi is needed/],
      [`${sockets} --receiver-qmp @/q`, /--receiver-qmp and --receiver-bus go together/],
      [`${sockets} --receiver-qmp @/${'x'.repeat(120)} --receiver-bus p`, /at most 107 bytes/],
      [`${sockets} --receiver-bus port0`, /--receiver-qmp and --receiver-bus go together/],
      [`${sockets} --receiver-qmp @/q --receiver-bus p --interrupts msix`, /QEMU 11.1 aborts when .* MSI-X/],
      [
        `${sockets} --receiver-qmp @/q --receiver-bus p --peer-memory @/m --peer-memory-size 1M`,
        /exclude each other/,
      ],
      [`${sockets} --pci-id 1af4`, /VVVV:DDDD in hexadecimal/],
      [`${sockets} --log-level loud`, /--log-level loud: one of/],
      [`${sockets} --nonsense`, /see "vhost-pci device --help"/],
      [`${sockets} extra`, /"extra" is not an option/],
      [`${sockets} --vfio-user @/c`, /--vfio-user is given twice/],
      ['device --socket-path @/file --vfio-user @/b', /not a socket; name another path/],
      ['device --socket-path @/no/a --vfio-user @/b', /cannot listen on/],
      [`device --socket-path @/${'x'.repeat(120)} --vfio-user @/b`, /1 to 107 bytes/],
    ]);
  });

  it('in the options of the driver too', async () => {
    const net = 'net vfio-user:@/b';
    await refused([
      ['net', /DEVICE is missing/],
      ['net /dev/null', /DEVICE "\/dev\/null"/],
      ['net vfio-user:', /DEVICE "vfio-user:"/],
      ['net vfio-user:@/b another', /one argument too many/],
      [`${net} --sink --echo`, /exclude each other/],
      [`${net} --poll --adaptive`, /exclude each other/],
      [`${net} --source 13`, /from 14 to 65535/],
      [`${net} --source`, /see "vhost-pci net --help"/],
      [`${net} --source -3`, /--source lacks its value; see/],
      [`${net} --tap a/b`, /is no interface name/],
      [`${net} --workers 0`, /--workers 0/],
      [`${net} --cpu x`, /CPU numbers such as 0,2-3/],
      [`${net} --cpu 4095`, /CPU 4095 cannot run a worker/],
      [`${net} --stats 0`, /--stats 0/],
      [`${net} --log-level x`, /one of fatal/],
      [`${net} --connect vfio-user:@/c --echo`, /--echo and --connect exclude each other/],
      [`${net} --connect`, /see "vhost-pci net --help"/],
      [`${net} --connect=`, /--connect is empty/],
      [`${net} --connect vfio-user:@/b`, /that is the first DEVICE; give another/],
      ['net 0000:01:00.0 --connect 01:00.0', /that is the first DEVICE; give another/],
      [`${net} --connect @/c`, /DEVICE ".*": give a PCI address/],
      [`${net} --connect vfio-user:@/file`, /is not a socket/],
      [`${net} --connect vfio-user:@/c --mtu 1400`, /belong to a TAP interface/],
      [`${net} --connect vfio-user:@/c --cpu 4095`, /CPU 4095 cannot run a worker/],
    ]);
  });

  it('in those of status, bind and unbind too', async () => {
    await refused([
      ['status extra', /"extra" is not an option/],
      ['status --pci-id 1af4', /VVVV:DDDD in hexadecimal/],
      ['bind', /ADDRESS is missing/],
      ['bind 01:00', /"01:00" is no PCI address/],
      ['bind 01:00.0 --uid root', /--uid root: a whole number/],
      ['bind 01:00.0 --gid -1', /--gid lacks its value/],
      ['bind 01:00.0 --uid 4294967295', /--uid 4294967295: a whole number from 0 to 4294967294/],
      ['unbind', /ADDRESS is missing/],
      ['unbind 01:00.0 --force', /see "vhost-pci unbind --help"/],
    ]);
  });

  it('in those of backend-json too', async () => {
    await refused([
      ['backend-json', /BINARY is missing/],
      ['backend-json vhost-pci', /absolute path/],
      ['backend-json /a /b', /one argument too many/],
    ]);
  });
});
