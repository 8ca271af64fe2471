/** `vhost-pci bind` and `vhost-pci unbind`: giving PCI functions to vfio-pci and back, in the receiving VM. */
import { usageError } from '../util/errors.js';
import { pciAddress } from '../vfio/address.js';
import { VFIO_DRIVER } from '../vfio/advice.js';
import { bind, problemOf, unbind } from '../vfio/binding.js';
import { PciSysfs } from '../vfio/sysfs.js';
import { parseOptions, wholeNumber } from './options.js';

/** The number after it means "no change" to chown(2). */
const MOST_ID = 0xffff_fffe;

const BIND_HELP = `Usage: vhost-pci bind ADDRESS... [OPTIONS]

Gives PCI devices to the kernel's vfio-pci driver (by driver_override), so that "vhost-pci net ADDRESS" can
drive them. Needs root, an IOMMU and the module vfio-pci. "vhost-pci status" lists the devices.

  ADDRESS    such as 0000:01:00.0 or 01:00.0
  --force    take a device away from the kernel driver that uses it
  --uid UID  the user who may drive it, by number: becomes the owner of /dev/vfio/GROUP
  --gid GID  the group of users who may
  --help     print this and end
`;

const UNBIND_HELP = `Usage: vhost-pci unbind ADDRESS... [OPTIONS]

Takes PCI devices from vfio-pci and lets the kernel give them to a driver of its own, if it has one.

  ADDRESS    such as 0000:01:00.0 or 01:00.0
  --help     print this and end
`;

export async function bindCommand(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseOptions('vhost-pci bind --help', args, {
    force: { type: 'boolean' },
    uid: { type: 'string' },
    gid: { type: 'string' },
    help: { type: 'boolean', short: 'h' },
  });
  if (values.help) {
    process.stdout.write(BIND_HELP);
    return 0;
  }
  const sysfs = new PciSysfs();
  const uid = wholeNumber(values, 'uid', 0, MOST_ID);
  const gid = wholeNumber(values, 'gid', 0, MOST_ID);
  for (const address of addresses('bind', positionals)) {
    const changed = await bind(sysfs, address, { force: values.force === true, uid, gid });
    say(`${address} ${changed ? 'is now' : 'was already'} bound to ${VFIO_DRIVER}`);
    const facts = sysfs.facts(address);
    const problem = facts && problemOf(sysfs, facts);
    if (problem) process.stderr.write(`vhost-pci: ${problem.message}\n`);
  }
  return 0;
}

export async function unbindCommand(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseOptions('vhost-pci unbind --help', args, {
    help: { type: 'boolean', short: 'h' },
  });
  if (values.help) {
    process.stdout.write(UNBIND_HELP);
    return 0;
  }
  const sysfs = new PciSysfs();
  for (const address of addresses('unbind', positionals)) {
    unbind(sysfs, address);
    const driver = sysfs.facts(address)?.driver;
    say(`${address} ${driver === undefined ? 'has no driver now' : `is now bound to ${driver}`}`);
  }
  return 0;
}

function addresses(command: string, given: readonly string[]): string[] {
  if (given.length === 0)
    throw usageError(`ADDRESS is missing: give one such as 0000:01:00.0; see "vhost-pci ${command} --help"`);
  return given.map((text) => {
    const address = pciAddress(text);
    if (address === undefined) throw usageError(`"${text}" is no PCI address; 0000:01:00.0 is one`);
    return address;
  });
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
