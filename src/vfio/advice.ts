/** Plain words for what can be missing before a function can be driven through VFIO: one line each, with what to do. */
import { usageError, VhostPciError } from '../util/errors.js';
import type { LockedMemory } from './locked-memory.js';
import type { PciFacts, PciSysfs } from './sysfs.js';

/** Name of the kernel driver that hands a function to a user-space driver. */
export const VFIO_DRIVER = 'vfio-pci';
/** Drivers beside which a group stays viable: they do no DMA of their own (VFIO documentation, "Groups"). */
const HARMLESS = new Set([VFIO_DRIVER, 'pci-stub', 'pcieport']);

export const notThere = (address: string): VhostPciError =>
  usageError(
    `there is no PCI device ${address}; "vhost-pci status" lists those that there are (the receiving QEMU needs -device vfio-user-pci)`,
  );

export const noIommu = (address: string): VhostPciError =>
  usageError(
    `${address} is in no IOMMU group, so VFIO cannot be used: give the receiving QEMU "-M q35,kernel-irqchip=split ` +
      `-device intel-iommu,intremap=on,caching-mode=on" before its vfio-user-pci device and its guest's kernel "intel_iommu=on", ` +
      'or give QEMU "-device virtio-iommu-pci" and load the module virtio_iommu in the guest',
  );

export const noModule = (): VhostPciError =>
  usageError('the module vfio-pci is not loaded: run "modprobe vfio-pci" (package linux-image)');

/** The module is there: the function is bound. */
export const noNode = (path: string): VhostPciError =>
  usageError(
    `${path} is not there: run "modprobe -a vfio vfio_iommu_type1"; in a container, /dev/vfio has to be handed in`,
  );

export const noType1 = (): VhostPciError =>
  usageError('VFIO has no IOMMU driver: run "modprobe vfio_iommu_type1"');

export const noGroupAccess = (group: number, cause: unknown): VhostPciError =>
  usageError(
    `no permission for /dev/vfio/${group}: run as root, or have root give the IOMMU group to this user with "vhost-pci bind --uid UID ADDRESS"`,
    { cause },
  );

export const notBound = (facts: PciFacts): VhostPciError =>
  usageError(
    `${facts.address} ${facts.driver ? `is used by the driver ${facts.driver}` : 'has no driver'}; it needs ${VFIO_DRIVER}: run "vhost-pci bind ${facts.address}"`,
  );

/** `driver` has the function now. */
export const notTaken = (before: PciFacts, driver: string | undefined): VhostPciError => {
  const now = driver === before.driver ? '' : `, which ${driver ? `${driver} has` : 'has no driver'} now`;
  return new VhostPciError(
    'device',
    'EBIND',
    `${VFIO_DRIVER} does not take ${before.address}${now}; the kernel's log (dmesg) says why`,
  );
};

export const noPermission = (what: string, cause: unknown): VhostPciError =>
  usageError(`no permission for ${what}: run as root, or give this user access to it`, { cause });

export const noBars = (facts: PciFacts): VhostPciError =>
  usageError(
    `the kernel has found no place for BAR ${facts.unassignedBars.join(', ')} of ${facts.address}: on the receiving QEMU give its root port ` +
      'pref64-reserve=SIZE that holds the peer\'s memory, and "-cpu …,vendor=GenuineIntel" when it is hot-plugged',
  );

/** Functions that keep the group from being viable, with their drivers. */
export function inTheWay(sysfs: PciSysfs, group: number): PciFacts[] {
  return sysfs
    .groupMembers(group)
    .map((address) => sysfs.facts(address))
    .filter((f): f is PciFacts => f?.driver !== undefined && !HARMLESS.has(f.driver));
}

export function notViable(sysfs: PciSysfs, group: number): VhostPciError {
  const others = inTheWay(sysfs, group).map((f) => `${f.address} (${f.driver})`);
  const whom = others.length > 0 ? others.join(', ') : 'devices that other drivers use';
  return usageError(
    `IOMMU group ${group} is not viable, it also has ${whom}: unbind these too, or put the vfio-user-pci device on a root port of its own`,
  );
}

export const groupBusy = (group: number, cause: unknown): VhostPciError =>
  usageError(
    `IOMMU group ${group} is in use by another process or by the other device of --connect: end the other "vhost-pci net" ` +
      'first, or put each device on a root port of its own',
    { cause },
  );

/** The kernel has refused to lock `bytes` more for DMA. */
export function lockedMemory(bytes: number, { limit, used }: LockedMemory, cause: unknown): VhostPciError {
  if (limit === undefined || used + bytes <= limit)
    return usageError(
      `the kernel has no ${kib(bytes)} of memory to lock for DMA: free some, or give this machine more`,
      {
        cause,
      },
    );
  const need = Math.ceil((used + bytes) / 1024);
  return usageError(
    `DMA needs ${kib(bytes)} of locked memory, and this process may lock ${kib(limit)}, of which it has ${kib(used)}: raise the limit ` +
      `with "ulimit -l ${need}", LimitMEMLOCK=${need}K in a systemd unit or memlock in /etc/security/limits.conf, or run as root`,
    { cause },
  );
}

function kib(bytes: number): string {
  return `${Math.floor(bytes / 1024)} KiB`;
}

export const unsafeInterrupts = (group: number, cause: unknown): VhostPciError =>
  usageError(
    `the IOMMU of group ${group} does not remap interrupts: use intel-iommu with intremap=on, or accept it with ` +
      '"echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"',
    { cause },
  );
