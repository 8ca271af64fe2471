/**
 * What QEMU's and libvirt's conventions for back-end programs ask of a program's text output (docs/interop/
 * vhost-user.rst, "Backend program conventions"; schema docs/interop/vhost-user.json). Options and signals are the
 * command's business.
 */
import { isAbsolute } from 'node:path';
import { usageError } from '../util/errors.js';

/** VHostUserBackendCapabilities: the schema's union has no members beyond the type for `net`. */
const CAPABILITIES = { type: 'net' } as const;

/** Where management software looks for the file below, from general to specific. */
export const BACKEND_FILE_NAME = '50-vhost-pci.json';

/** One JSON object, for `--print-capabilities`. */
export function printCapabilities(): string {
  return JSON.stringify(CAPABILITIES);
}

/** Content of `50-vhost-pci.json` (VhostUserBackend). Throws a usage error unless `binary` is an absolute path. */
export function backendFile(binary: string): string {
  if (!isAbsolute(binary)) throw usageError(`${binary}: the absolute path of the back-end program is needed`);
  const content = {
    description: 'vhost-pci: inter-VM networking with one copy and no switch',
    ...CAPABILITIES,
    binary,
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}
