/**
 * Giving PCI functions to vfio-pci and back, by driver_override, and what there is to know before: `vhost-pci status`,
 * `bind` and `unbind` without their output. Opens no device.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { usageError, VhostPciError } from '../util/errors.js';
import * as advice from './advice.js';
import type { PciFacts, PciSysfs } from './sysfs.js';

export interface BindOptions {
  /** Also take a function that a kernel driver uses. */
  readonly force?: boolean;
  /** Who may open the IOMMU group from then on; without them, its owner stays. */
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  /** How long the kernel may take to assign the BARs of a function that was just plugged in. Default 3000. */
  readonly settleMs?: number;
}

const SETTLE_MS = 3000;
const SETTLE_POLL_MS = 100;
const SYSFS = '/sys/bus/pci (driver_override, bind, unbind)';

export interface DeviceStatus extends PciFacts {
  readonly bound: boolean;
  /** Why it cannot be driven as it is, in words; undefined when it can. */
  readonly problem: string | undefined;
}

/** The functions that `wanted` accepts and those that vfio-pci has, in the order of their addresses. */
export function deviceStatus(sysfs: PciSysfs, wanted: (facts: PciFacts) => boolean): DeviceStatus[] {
  return sysfs
    .addresses()
    .map((address) => sysfs.facts(address))
    .filter((f): f is PciFacts => f !== undefined && (wanted(f) || f.driver === advice.VFIO_DRIVER))
    .map((facts) => ({
      ...facts,
      bound: facts.driver === advice.VFIO_DRIVER,
      problem: problemOf(sysfs, facts)?.message,
    }));
}

/** What stands between a function and VFIO, or undefined. */
export function problemOf(sysfs: PciSysfs, facts: PciFacts): VhostPciError | undefined {
  if (facts.group === undefined) return advice.noIommu(facts.address);
  if (!sysfs.hasDriver(advice.VFIO_DRIVER)) return advice.noModule();
  if (facts.unassignedBars.length > 0) return advice.noBars(facts);
  if (facts.driver !== advice.VFIO_DRIVER) return advice.notBound(facts);
  return advice.inTheWay(sysfs, facts.group).length > 0 ? advice.notViable(sysfs, facts.group) : undefined;
}

/**
 * Gives the function to vfio-pci. True when that changed something. Throws usage errors in plain words. A function
 * whose group is not viable is bound all the same: the others may follow. One that vfio-pci does not take goes back to the
 * driver that the kernel has for it.
 */
export async function bind(sysfs: PciSysfs, address: string, options: BindOptions = {}): Promise<boolean> {
  const facts = await settled(sysfs, address, options.settleMs ?? SETTLE_MS);
  if (facts.driver === advice.VFIO_DRIVER) {
    giveGroup(sysfs, facts, options);
    return false;
  }
  if (facts.group === undefined) throw advice.noIommu(address);
  if (!sysfs.hasDriver(advice.VFIO_DRIVER)) throw advice.noModule();
  if (facts.unassignedBars.length > 0) throw advice.noBars(facts);
  if (facts.driver !== undefined && !options.force) {
    const up = sysfs.interfaces(address).filter((i) => i.up);
    const use = up.length > 0 ? `, whose interface ${up.map((i) => i.name).join(', ')} is up` : '';
    throw usageError(
      `${address} is used by the driver ${facts.driver}${use}; give --force to take it away from there`,
    );
  }
  const before = sysfs.override(address);
  let refused: unknown;
  try {
    writing(address, SYSFS, () => {
      sysfs.overrideDriver(address, advice.VFIO_DRIVER);
      if (facts.driver !== undefined) sysfs.unbind(address);
      sysfs.probe(address);
    });
  } catch (error) {
    refused = error;
  }
  if (sysfs.facts(address)?.driver !== advice.VFIO_DRIVER) {
    giveBack(sysfs, facts, before);
    const now = sysfs.facts(address);
    throw now ? (refused ?? advice.notTaken(facts, now.driver)) : advice.notThere(address);
  }
  giveGroup(sysfs, facts, options);
  return true;
}

/** Undoes what was begun; a function that had no driver gets none by that. */
function giveBack(sysfs: PciSysfs, { address, driver }: PciFacts, override: string): void {
  try {
    sysfs.overrideDriver(address, override);
    if (driver !== undefined) sysfs.probe(address);
  } catch {
    // Told is what was refused before.
  }
}

function giveGroup(sysfs: PciSysfs, { address, group }: PciFacts, { uid, gid }: BindOptions): void {
  if (group === undefined || (uid === undefined && gid === undefined)) return;
  writing(address, `/dev/vfio/${group}`, () => sysfs.chownGroup(group, uid, gid));
}

/** Takes the function from vfio-pci and gives it to the driver that the kernel has for it, if any. */
export function unbind(sysfs: PciSysfs, address: string): boolean {
  const facts = sysfs.facts(address);
  if (!facts) throw advice.notThere(address);
  if (facts.driver !== undefined && facts.driver !== advice.VFIO_DRIVER)
    throw usageError(`${address} is used by the driver ${facts.driver}, not by ${advice.VFIO_DRIVER}`);
  writing(address, SYSFS, () => {
    sysfs.overrideDriver(address, '');
    if (facts.driver !== undefined) sysfs.unbind(address);
    sysfs.probe(address);
  });
  return facts.driver !== undefined;
}

/** The function's facts, once its BARs have their places or the time is over. */
async function settled(sysfs: PciSysfs, address: string, ms: number): Promise<PciFacts> {
  for (let left = ms; ; left -= SETTLE_POLL_MS) {
    const facts = sysfs.facts(address);
    if (!facts) throw advice.notThere(address);
    if (facts.unassignedBars.length === 0 || left <= 0) return facts;
    await sleep(SETTLE_POLL_MS);
  }
}

/** Runs changes to `what`; says what it means when the kernel refuses them. */
function writing(address: string, what: string, write: () => void): void {
  try {
    write();
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') throw advice.noPermission(what, cause);
    if (code === 'ENOENT') throw what === SYSFS ? advice.notThere(address) : advice.noNode(what);
    throw new VhostPciError('device', code ?? 'EBIND', `${address}: ${(cause as Error).message}`, { cause });
  }
}
