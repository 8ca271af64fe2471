/** DEVICE on the command line and in the API: which kind of device a name means, and how it is opened. */
import { type Stats, statSync } from 'node:fs';
import type { PciHandle } from '../../pci/handle.js';
import { usageError } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { pciAddress } from '../../vfio/address.js';
import { VfioOpener } from '../../vfio/opener.js';
import { connectWhenThere } from '../../vfio-user/client.js';

/**
 * What opens the named device, again and again if need be. Throws a usage error for a name of no known kind. Waits for a
 * vfio-user socket or a PCI device that is not there yet, and says so in the log.
 */
export function openDevice(name: string, log: Log): (signal: AbortSignal) => Promise<PciHandle> {
  const path = /^vfio-user:(.+)$/.exec(name)?.[1];
  if (path !== undefined)
    return async (signal) => {
      const there = look(name, path);
      if (there && !there.isSocket())
        throw usageError(`DEVICE "${name}": ${path} is not a socket; name that of a "vhost-pci device"`);
      return connectWhenThere(path, {
        signal,
        onWaiting: () => log.warn(`waiting for a device process on ${path}`),
      });
    };
  const address = pciAddress(name);
  if (address === undefined)
    throw usageError(
      `DEVICE "${name}": give a PCI address such as 0000:01:00.0, or vfio-user:PATH, the socket of a "vhost-pci device"`,
    );
  const opener = new VfioOpener(address);
  return (signal) => opener.open(signal, (why) => log.warn(`waiting for ${address}: ${why}`));
}

/** What is at the path, or undefined when nothing is. Throws a usage error when that cannot be seen. */
function look(name: string, path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch (cause) {
    throw usageError(`DEVICE "${name}": ${(cause as Error).message}`, { cause });
  }
}
