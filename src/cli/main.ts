#!/usr/bin/env node
/** The program `vhost-pci`: picks the command, and turns errors into one line and an exit status. */
import { readFileSync } from 'node:fs';
import { errorText, usageError, VhostPciError } from '../util/errors.js';

interface Command {
  readonly summary: string;
  /** Resolves to the exit status. Loaded on demand, so that --help needs no native addon. */
  readonly load: () => Promise<(args: readonly string[]) => Promise<number>>;
}

const COMMANDS: Readonly<Record<string, Command>> = {
  device: {
    summary: 'the device process on the host: vhost-user back-end and vfio-user server',
    load: async () => (await import('./device.js')).deviceCommand,
  },
  net: {
    summary: 'the driver: moves packets between a peer and a port',
    load: async () => (await import('./net.js')).netCommand,
  },
  status: {
    summary: 'in the receiving VM: lists the devices that the driver could drive',
    load: async () => (await import('./status.js')).statusCommand,
  },
  bind: {
    summary: 'in the receiving VM: gives a device to vfio-pci',
    load: async () => (await import('./bind.js')).bindCommand,
  },
  unbind: {
    summary: 'in the receiving VM: takes a device from vfio-pci',
    load: async () => (await import('./bind.js')).unbindCommand,
  },
  'backend-json': {
    summary: 'prints the file that describes the back-end to QEMU and libvirt',
    load: async () => (await import('./backend-json.js')).backendJsonCommand,
  },
};

function help(): string {
  const rows = Object.entries(COMMANDS).map(([name, { summary }]) => `  ${name.padEnd(14)} ${summary}`);
  return `Usage: vhost-pci COMMAND [OPTIONS]

${rows.join('\n')}

"vhost-pci COMMAND --help" tells a command's options, "vhost-pci --version" the version.
`;
}

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined)
    throw usageError(`COMMAND is missing: ${Object.keys(COMMANDS).join(', ')}; see "vhost-pci --help"`);
  if (name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(help());
    return 0;
  }
  if (name === '--version') {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    process.stdout.write(`vhost-pci ${version}\n`);
    return 0;
  }
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command) {
    process.stderr.write(
      `vhost-pci: unknown command "${name}"; the commands are ${Object.keys(COMMANDS).join(', ')}\n`,
    );
    return 2;
  }
  const run = await command.load();
  return run(rest);
}

// Whoever reads the output has gone: the command ends as by SIGTERM, in order.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.kill(process.pid, 'SIGTERM');
});

main(process.argv.slice(2)).then(
  (status) => process.exit(status),
  (error) => {
    if (error instanceof VhostPciError && error.scope !== 'bug') {
      process.stderr.write(`vhost-pci: ${errorText(error)}\n`);
      process.exit(error.scope === 'usage' ? 2 : 1);
    }
    process.stderr.write(`vhost-pci: internal error: ${(error as Error)?.stack ?? error}\n`);
    process.exit(70);
  },
);
