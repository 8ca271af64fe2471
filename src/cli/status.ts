/** `vhost-pci status`: the devices that `vhost-pci net` could drive in this (receiving) VM, and what they lack. */
import { usageError } from '../util/errors.js';
import { type DeviceStatus, deviceStatus } from '../vfio/binding.js';
import { type PciFacts, PciSysfs } from '../vfio/sysfs.js';
import { PCI_ID } from '../vhost-pci/identity.js';
import { type Parsed, parseOptions, pciId } from './options.js';

const HELP = `Usage: vhost-pci status [OPTIONS]

Lists the PCI devices of this machine that are vhost-pci-net devices by their id, or that vfio-pci has.

  --pci-id VVVV:DDDD   PCI vendor and device to look for (default: 1af4:10f0 to 1af4:10ff)
  --json               print a JSON array
  --help               print this and end
`;

/** The range for experiments, which the default id is in (docs/protocol.md, P1). */
const EXPERIMENTS = { first: 0x10f0, last: 0x10ff } as const;

export async function statusCommand(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseOptions('vhost-pci status --help', args, {
    'pci-id': { type: 'string' },
    json: { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  if (positionals.length > 0)
    throw usageError(`"${positionals[0]}" is not an option of "vhost-pci status"; see its --help`);
  const devices = deviceStatus(new PciSysfs(), candidate(values));
  process.stdout.write(
    values.json === true ? `${JSON.stringify(devices.map(json), undefined, 2)}\n` : table(devices),
  );
  return 0;
}

function candidate(values: Parsed['values']): (facts: PciFacts) => boolean {
  const id = pciId(values);
  if (id) return ({ vendor, device }) => vendor === id.vendor && device === id.device;
  return ({ vendor, device }) =>
    vendor === PCI_ID.vendor && device >= EXPERIMENTS.first && device <= EXPERIMENTS.last;
}

const idOf = ({ vendor, device }: PciFacts): string => `${hex(vendor)}:${hex(device)}`;

function hex(n: number): string {
  return n.toString(16).padStart(4, '0');
}

function json(device: DeviceStatus): object {
  const { address, driver, group, bound, problem } = device;
  return {
    address,
    id: idOf(device),
    driver: driver ?? null,
    iommu_group: group ?? null,
    bound,
    problem: problem ?? null,
  };
}

function table(devices: readonly DeviceStatus[]): string {
  if (devices.length === 0)
    return 'no vhost-pci device in this machine: QEMU needs -device vfio-user-pci with the socket of a "vhost-pci device"\n';
  const rows = [
    ['ADDRESS', 'ID', 'DRIVER', 'IOMMU GROUP', 'BOUND'],
    ...devices.map((d) => [d.address, idOf(d), d.driver ?? '-', `${d.group ?? '-'}`, d.bound ? 'yes' : 'no']),
  ];
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const lines = rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd(),
  );
  const problems = [...new Set(devices.flatMap((d) => d.problem ?? []))];
  return `${[...lines, ...problems].join('\n')}\n`;
}
