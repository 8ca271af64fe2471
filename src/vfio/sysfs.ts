/**
 * PCI functions as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci), and who owns their IOMMU groups. Reads, and
 * writes what the kernel acts on. Decides nothing.
 */
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  statSync,
  writeSync,
} from 'node:fs';
import { basename, join } from 'node:path';

export interface PciFacts {
  readonly address: string;
  /** Another number when the function was unplugged and came back. */
  readonly node: number;
  readonly vendor: number;
  readonly device: number;
  /** Base class, sub-class and programming interface. */
  readonly classCode: number;
  readonly driver: string | undefined;
  readonly group: number | undefined;
  /** BARs that the function has, but for which the kernel has found no place. Looked up when it is asked for. */
  readonly unassignedBars: readonly number[];
}

/** linux/ioport.h */
const IORESOURCE_IO = 0x100;
const IORESOURCE_MEM = 0x200;
const IORESOURCE_UNSET = 0x2000_0000n;
const BARS = 6;
/** Of the first BAR's register in the configuration space, and what its bits 0 to 2 say (linux/pci_regs.h). */
const BAR_OFFSET = 0x10;
const BAR_TYPE = 0b111;
const BAR_64BIT = 0b100;

/** A file's text; undefined when it is not there. */
function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

/** The last component of what a link points to; undefined when there is no such link. */
function targetOf(path: string): string | undefined {
  try {
    return basename(readlinkSync(path));
  } catch {
    return undefined;
  }
}

/** The kernel numbers the entries of sysfs as it makes them. */
function nodeOf(path: string): number {
  try {
    return statSync(path).ino;
  } catch {
    return 0;
  }
}

function listOf(path: string): string[] {
  try {
    return readdirSync(path).sort();
  } catch {
    return [];
  }
}

export class PciSysfs {
  readonly #root: string;
  readonly #dev: string;

  /** Other roots are for tests. */
  constructor(root = '/sys', dev = '/dev') {
    this.#root = root;
    this.#dev = dev;
  }

  #bus(...path: string[]): string {
    return join(this.#root, 'bus/pci', ...path);
  }

  addresses(): string[] {
    return listOf(this.#bus('devices'));
  }

  /** Undefined when there is no function at this address. */
  facts(address: string): PciFacts | undefined {
    const folder = this.#bus('devices', address);
    const number = (name: string): number => Number(textOf(join(folder, name)));
    const vendor = number('vendor');
    if (Number.isNaN(vendor)) return undefined;
    const group = targetOf(join(folder, 'iommu_group'));
    return {
      address,
      node: nodeOf(folder),
      vendor,
      device: number('device'),
      classCode: number('class'),
      driver: targetOf(join(folder, 'driver')),
      group: group === undefined ? undefined : Number(group),
      get unassignedBars() {
        return unassigned(textOf(join(folder, 'resource')) ?? '', barRegisters(join(folder, 'config')));
      },
    };
  }

  /** False when nobody answers a read of its configuration space: all bytes are ones then. */
  answers(address: string): boolean {
    let fd: number;
    try {
      fd = openSync(this.#bus('devices', address, 'config'), 'r');
    } catch {
      // Not readable for us: whoever opens the function will see.
      return true;
    }
    try {
      // Revision and class code.
      const bytes = Buffer.alloc(4);
      return readSync(fd, bytes, 0, 4, 8) !== 4 || bytes.readUInt32LE(0) !== 0xffff_ffff;
    } finally {
      closeSync(fd);
    }
  }

  /** Addresses of all functions in an IOMMU group. */
  groupMembers(group: number): string[] {
    return listOf(join(this.#root, 'kernel/iommu_groups', String(group), 'devices'));
  }

  hasDriver(name: string): boolean {
    return listOf(this.#bus('drivers')).includes(name);
  }

  /** Names of the function's network interfaces, and whether each is up. */
  interfaces(address: string): { name: string; up: boolean }[] {
    const net = this.#bus('devices', address, 'net');
    return listOf(net).map((name) => ({
      name,
      up: (Number(textOf(join(net, name, 'flags')) ?? 0) & 1) !== 0,
    }));
  }

  /** The only driver that may take the function; '' when any may. */
  override(address: string): string {
    const text = textOf(this.#bus('devices', address, 'driver_override'));
    return text === undefined || text === '(null)' ? '' : text;
  }

  /** Written into `driver_override` of a function: only the driver of this name may take it; '' lifts that. */
  overrideDriver(address: string, driver: string): void {
    this.write(join('devices', address, 'driver_override'), `${driver}\n`);
  }

  /** Takes the function from its driver. */
  unbind(address: string): void {
    this.write(join('devices', address, 'driver', 'unbind'), address);
  }

  /** Makes a user or a group of users the owner of an IOMMU group, which lets them open it. */
  chownGroup(group: number, uid: number | undefined, gid: number | undefined): void {
    const path = join(this.#dev, 'vfio', String(group));
    const { uid: owner, gid: owners } = statSync(path);
    chownSync(path, uid ?? owner, gid ?? owners);
    // The kernel makes it for its owner alone.
    if (gid !== undefined) chmodSync(path, 0o660);
  }

  /** Has the kernel look for a driver. */
  probe(address: string): void {
    this.write('drivers_probe', address);
  }

  /** Writes a file below bus/pci, which has to exist. */
  protected write(path: string, text: string): void {
    const fd = openSync(this.#bus(path), constants.O_WRONLY);
    try {
      writeSync(fd, text);
    } finally {
      closeSync(fd);
    }
  }
}

/** The registers of a function's BARs; none when they cannot be read. */
function barRegisters(path: string): number[] {
  let fd: number | undefined;
  try {
    fd = openSync(path, 'r');
    const bytes = Buffer.alloc(4 * BARS);
    if (readSync(fd, bytes, 0, bytes.length, BAR_OFFSET) !== bytes.length) return [];
    return Array.from({ length: BARS }, (_, bar) => bytes.readUInt32LE(4 * bar));
  } catch {
    return [];
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

/** What the registers say that there is: their low bits are fixed (PCI 3.0, 6.2.5.1). The upper half of a BAR is none. */
function implemented(registers: readonly number[]): Set<number> {
  const bars = new Set<number>();
  for (let bar = 0; bar < registers.length; bar++) {
    const register = registers[bar]!;
    // All ones: nobody answers.
    if (register === 0 || register === 0xffff_ffff) continue;
    bars.add(bar);
    if ((register & BAR_TYPE) === BAR_64BIT) bar++;
  }
  return bars;
}

/**
 * `resource` has a line for each BAR: first address, last address, flags. When the kernel has given up on a BAR, the line is
 * as empty as that of a BAR that is not there (reset_resource); the register tells.
 */
function unassigned(resource: string, registers: readonly number[]): number[] {
  const there = implemented(registers);
  return resource
    .split('\n')
    .slice(0, BARS)
    .flatMap((line, bar) => {
      const [start = 0n, end = 0n, flags = 0n] = line
        .split(/\s+/)
        .filter((word) => /^0x[0-9a-f]+$/i.test(word))
        .map(BigInt);
      if (flags === 0n && end === 0n) return there.has(bar) ? [bar] : [];
      if ((flags & BigInt(IORESOURCE_IO | IORESOURCE_MEM)) === 0n || end === 0n) return [];
      return start === 0n || (flags & IORESOURCE_UNSET) !== 0n ? [bar] : [];
    });
}
