/**
 * A VFIO container with one group: what gives access to a device and its DMA (linux/vfio.h, "IOCTLs for VFIO file
 * descriptor" and "for GROUP file descriptors"). TYPE1v2. Knows no region and no interrupt.
 */
import { closeSync, openSync } from 'node:fs';
import { ioctl, ioctlNumber } from '../sys/ioctl.js';
import { VhostPciError } from '../util/errors.js';
import { DMA_MAP_FLAG, DmaMap, DmaUnmap, GROUP_FLAG, GroupStatus, VFIO } from './abi.js';
import * as advice from './advice.js';
import { lockedMemory } from './locked-memory.js';
import type { PciSysfs } from './sysfs.js';

const CONTAINER = '/dev/vfio/vfio';

function open(path: string, group: number): number {
  try {
    return openSync(path, 'r+');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM')
      throw path === CONTAINER ? advice.noPermission(path, cause) : advice.noGroupAccess(group, cause);
    if (code === 'EBUSY') throw advice.groupBusy(group, cause);
    if (code === 'ENOENT' || code === 'ENODEV') throw advice.noNode(path);
    throw new VhostPciError('device', code ?? 'EIO', `${path}: ${(cause as Error).message}`, { cause });
  }
}

const int32 = (value: number): Buffer => {
  const out = Buffer.alloc(4);
  out.writeInt32LE(value);
  return out;
};

export class Container implements Disposable {
  readonly #fds: number[] = [];
  readonly #group: number;

  /** Opens the group, gives it an IOMMU. Throws usage errors in plain words for what the user can mend. */
  constructor(group: number, sysfs: PciSysfs) {
    this.#group = group;
    try {
      const container = this.#open(CONTAINER, group);
      const version = ioctlNumber(container, VFIO.GET_API_VERSION, 0, 'ask for the version of VFIO');
      if (version !== VFIO.API_VERSION)
        throw new VhostPciError('device', 'EVERSION', `the kernel speaks version ${version} of VFIO`);
      if (ioctlNumber(container, VFIO.CHECK_EXTENSION, VFIO.TYPE1v2_IOMMU, 'ask for TYPE1v2') !== 1)
        throw advice.noType1();

      const fd = this.#open(`/dev/vfio/${group}`, group);
      const status = GroupStatus.encode({ argsz: GroupStatus.size });
      ioctl(fd, VFIO.GROUP_GET_STATUS, status, `ask for the state of IOMMU group ${group}`);
      const { flags } = GroupStatus.decode(status);
      if (!(flags & GROUP_FLAG.VIABLE)) throw advice.notViable(sysfs, group);
      if (flags & GROUP_FLAG.CONTAINER_SET) throw advice.groupBusy(group, undefined);
      ioctl(fd, VFIO.GROUP_SET_CONTAINER, int32(container), `put IOMMU group ${group} into a container`);
      this.#setIommu(container);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** A new fd of the group's device, the caller's to close. */
  deviceFd(address: string): number {
    const name = Buffer.from(`${address}\0`, 'latin1');
    return ioctl(this.#fds[1]!, VFIO.GROUP_GET_DEVICE_FD, name, `open ${address} through VFIO`);
  }

  /** Lets the group's devices read and write `size` bytes at virtual address `vaddr`, as DMA address `iova`. */
  mapDma(vaddr: bigint, iova: bigint, size: number): void {
    const map = DmaMap.encode({
      argsz: DmaMap.size,
      flags: DMA_MAP_FLAG.READ | DMA_MAP_FLAG.WRITE,
      vaddr,
      iova,
      size: BigInt(size),
    });
    try {
      ioctl(this.#fds[0]!, VFIO.IOMMU_MAP_DMA, map, `map ${size} bytes for DMA`);
    } catch (error) {
      // VFIO documentation: pinned pages count as locked memory of the process.
      if ((error as VhostPciError).code === 'ENOMEM') throw advice.lockedMemory(size, lockedMemory(), error);
      throw error;
    }
  }

  unmapDma(iova: bigint, size: number): void {
    const unmap = DmaUnmap.encode({ argsz: DmaUnmap.size, iova, size: BigInt(size) });
    ioctl(this.#fds[0]!, VFIO.IOMMU_UNMAP_DMA, unmap, `unmap ${size} bytes of DMA`);
  }

  /** The device's fd has to be closed before. */
  [Symbol.dispose](): void {
    for (const fd of this.#fds.splice(0).reverse()) closeSync(fd);
  }

  #open(path: string, group: number): number {
    const fd = open(path, group);
    this.#fds.push(fd);
    return fd;
  }

  #setIommu(container: number): void {
    try {
      ioctlNumber(container, VFIO.SET_IOMMU, VFIO.TYPE1v2_IOMMU, 'set up the IOMMU');
    } catch (error) {
      // vfio_iommu_type1_attach_group: without interrupt remapping the kernel wants to be told that it is known.
      if ((error as VhostPciError).code === 'EPERM') throw advice.unsafeInterrupts(this.#group, error);
      throw error;
    }
  }
}
