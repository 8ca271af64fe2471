/** `vhost-pci device`: the device process on the host. */
import { resolve } from 'node:path';
import { whyNoConnection } from '../sys/inherited-socket.js';
import { usageError } from '../util/errors.js';
import { createLog } from '../util/log.js';
import { DeviceProcess } from '../vhost-pci/device/process.js';
import { MAX_QUEUE_PAIRS, PCI_ID } from '../vhost-pci/identity.js';
import { printCapabilities } from '../vhost-user/program.js';
import { logLevel, oneOf, type Parsed, parseOptions, pciId, size, text, wholeNumber } from './options.js';
import { untilSignal } from './signals.js';

const HELP = `Usage: vhost-pci device (--socket-path PATH | --fd N) --vfio-user PATH [OPTIONS]

The device process: a vhost-user back-end for the peer's QEMU (or DPDK virtio_user) and a vfio-user
server with the vhost-pci-net PCI device for the receiver. It stays in the foreground and ends on SIGTERM.

  --socket-path PATH         listen for the peer's vhost-user front-end
  --fd N                     the connected vhost-user socket, inherited as file descriptor N
  --vfio-user PATH           listen for the receiver: QEMU's vfio-user-pci, or "vhost-pci net vfio-user:PATH"
  --peer-memory FILE         window mode: this process creates the file that holds the peer's memory
  --peer-memory-size SIZE    its size, such as 512M; the peer's QEMU takes it with
                             -object memory-backend-file,id=mem,size=SIZE,mem-path=FILE,share=on
                             Without the two: adopt mode, the peer's own (memory-backend-memfd,share=on)
  --queue-pairs N            most queue pairs the peer may use, 1 to ${MAX_QUEUE_PAIRS} (default 1)
  --receiver-qmp PATH        adopt mode: plug the device into the running receiving VM while there is a peer,
                             by this QMP socket of its QEMU (-qmp unix:PATH,server=on,wait=off)
  --receiver-bus ID          the bus to plug it into: the id of a pcie-root-port in that VM
  --interrupts msix|msi      what the PCI device signals with (default msix; msi when it is hot-plugged)
  --pci-id VVVV:DDDD         PCI vendor and device (default ${hex(PCI_ID.vendor)}:${hex(PCI_ID.device)})
  --log-level LEVEL          fatal, error, warn, info, debug, trace or silent (default info)
  --print-capabilities       print the back-end's capabilities as JSON and end
  --help                     print this and end
`;

function hex(n: number): string {
  return n.toString(16).padStart(4, '0');
}

export async function deviceCommand(args: readonly string[]): Promise<number> {
  // vhost-user.rst, back-end program conventions: all other options are ignored beside --print-capabilities.
  if (args.includes('--print-capabilities')) {
    process.stdout.write(`${printCapabilities()}\n`);
    return 0;
  }
  const { values, positionals } = parseOptions('vhost-pci device --help', args, {
    'socket-path': { type: 'string' },
    fd: { type: 'string' },
    'vfio-user': { type: 'string' },
    'peer-memory': { type: 'string' },
    'peer-memory-size': { type: 'string' },
    'receiver-qmp': { type: 'string' },
    'receiver-bus': { type: 'string' },
    'queue-pairs': { type: 'string' },
    interrupts: { type: 'string' },
    'pci-id': { type: 'string' },
    'log-level': { type: 'string' },
    help: { type: 'boolean', short: 'h' },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  if (positionals.length > 0)
    throw usageError(`"${positionals[0]}" is not an option of "vhost-pci device"; see its --help`);
  const vhostUser = vhostUserEnd(values);
  const vfioUser = text(values, 'vfio-user');
  if (vfioUser === undefined)
    throw usageError('--vfio-user is missing: give the path of the socket for the receiver');
  const memory = text(values, 'peer-memory');
  differentPaths({
    'socket-path': 'socketPath' in vhostUser ? vhostUser.socketPath : undefined,
    'vfio-user': vfioUser,
    'peer-memory': memory,
    'receiver-qmp': text(values, 'receiver-qmp'),
  });
  const memorySize = size(values, 'peer-memory-size');
  if ((memory === undefined) !== (memorySize === undefined))
    throw usageError(
      '--peer-memory and --peer-memory-size go together: give both (window mode) or none (adopt mode)',
    );
  const queuePairs = wholeNumber(values, 'queue-pairs', 1, MAX_QUEUE_PAIRS) ?? 1;
  const receiver = receiverVm(values);
  const interrupts = text(values, 'interrupts') ?? (receiver ? 'msi' : 'msix');
  if (interrupts !== 'msix' && interrupts !== 'msi')
    throw usageError(`--interrupts ${interrupts}: msix or msi is needed`);
  if (receiver && interrupts === 'msix')
    throw usageError(
      '--interrupts msix with --receiver-qmp: QEMU 11.1 aborts when a vfio-user device with MSI-X is unplugged; leave it out, for msi',
    );
  if (receiver && memory !== undefined)
    throw usageError(
      '--receiver-qmp and --peer-memory exclude each other: with a window the device is there before the peer, and the receiving VM may start with it',
    );
  const log = createLog('vhost-pci device', logLevel(values));

  // From before the sockets are there: whoever sees them may want an orderly end at once.
  const asked = untilSignal();
  await using device = await DeviceProcess.start({
    ...vhostUser,
    vfioUser,
    queuePairs,
    interrupts,
    pciId: pciId(values) ?? PCI_ID,
    log,
    ...(receiver && { receiver }),
    ...(memory !== undefined && memorySize !== undefined && { window: { path: memory, size: memorySize } }),
  });
  await Promise.race([asked, device.ended]);
  return 0;
}

/** What is listened on last would fail, in adopt mode only when a peer comes, or find the memory file in its place. */
function differentPaths(paths: Readonly<Record<string, string | undefined>>): void {
  const seen = new Map<string, string>();
  for (const [option, path] of Object.entries(paths)) {
    if (path === undefined) continue;
    const before = seen.get(resolve(path));
    if (before !== undefined)
      throw usageError(`--${before} and --${option} are both ${path}; give each a path of its own`);
    seen.set(resolve(path), option);
  }
}

function receiverVm(values: Parsed['values']): { qmp: string; bus: string } | undefined {
  const qmp = text(values, 'receiver-qmp');
  const bus = text(values, 'receiver-bus');
  if ((qmp === undefined) !== (bus === undefined))
    throw usageError(
      '--receiver-qmp and --receiver-bus go together: give both (hot-plug into a running VM) or none',
    );
  // unix(7): sun_path has 108 bytes, the last of them NUL.
  if (qmp !== undefined && Buffer.byteLength(qmp) > 107)
    throw usageError(`--receiver-qmp ${qmp}: the path of a socket has at most 107 bytes; give a shorter one`);
  return qmp !== undefined && bus !== undefined ? { qmp, bus } : undefined;
}

function vhostUserEnd(values: Parsed['values']): { socketPath: string } | { fd: number } {
  const which = oneOf(values, ['socket-path', 'fd'] as const);
  if (!which) throw usageError('--socket-path or --fd is missing: give the vhost-user socket of the peer');
  if (which === 'socket-path') return { socketPath: text(values, 'socket-path') as string };
  const fd = wholeNumber(values, 'fd', 0, 0xffff) as number;
  const wrong = whyNoConnection(fd);
  if (wrong === undefined) return { fd };
  throw usageError(
    `--fd ${fd}: it is ${wrong}; the parent process has to hand down a connected vhost-user socket` +
      (wrong.startsWith('a listening') ? ', or --socket-path has to name where to listen' : ''),
  );
}
