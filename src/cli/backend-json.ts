/** `vhost-pci backend-json`: the file by which QEMU's and libvirt's tools find the device process. */
import { usageError } from '../util/errors.js';
import { BACKEND_FILE_NAME, backendFile } from '../vhost-user/program.js';
import { parseOptions } from './options.js';

const HELP = `Usage: vhost-pci backend-json BINARY > /usr/share/qemu/vhost-user/${BACKEND_FILE_NAME}

Prints the description of the vhost-user back-end for management software (QEMU, "Backend program
conventions"). Such software starts BINARY with --socket-path or --fd alone, so BINARY is a program of
yours that adds the rest, such as:

  #!/bin/sh
  exec vhost-pci device --vfio-user /run/vhost-pci/receiver.sock "$@"

  BINARY              its absolute path
  --help              print this and end
`;

export async function backendJsonCommand(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseOptions('vhost-pci backend-json --help', args, {
    help: { type: 'boolean', short: 'h' },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const [binary, extra] = positionals;
  if (binary === undefined)
    throw usageError(
      'BINARY is missing: give the absolute path of the program; see "vhost-pci backend-json --help"',
    );
  if (extra !== undefined)
    throw usageError(`"${extra}" is one argument too many; "vhost-pci backend-json" takes one BINARY`);
  process.stdout.write(backendFile(binary));
  return 0;
}
