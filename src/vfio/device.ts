/**
 * A PCI function through kernel VFIO, as PciHandle: the twin of the vfio-user client. Bind it first (binding.ts). Knows
 * nothing of virtio.
 */
import { close, closeSync, readSync, writeSync } from 'node:fs';
import { promisify } from 'node:util';
import { Forwarders } from '../pci/forwarders.js';
import { IRQ, type PciHandle, REGION, type RegionArea, type RegionInfo } from '../pci/handle.js';
import { DEVICE_FLAG, DeviceInfo } from '../pci/vfio-abi.js';
import { ioctl, ioctlNumber } from '../sys/ioctl.js';
import { type Mapping, type NotifyTarget, native, type Watcher } from '../sys/native.js';
import { errorText, VhostPciError } from '../util/errors.js';
import { VFIO } from './abi.js';
import * as advice from './advice.js';
import { problemOf } from './binding.js';
import { Container } from './container.js';
import { VfioInterrupts } from './interrupts.js';
import { readRegionInfo, type VfioRegion } from './region.js';
import { PciSysfs } from './sysfs.js';

/** How often a function is asked whether it is still there. */
const ALIVE_MS = 3000;
/**
 * An answer that takes this long is none: the device process is stopped, and QEMU gives up after 5 s (its x-msg-timeout). It may
 * go on, while letting go would take many accesses of that kind. The processor waits all that time, so the next question comes
 * a good while later. (QEMU 11.1.3 ends the connection when the late answer comes, which the next question finds out.)
 */
const STALLED_MS = 1000;
const STALLED_PAUSE = 3;
/** Revision and class code: no function has all ones there, and a read that nobody answers gives all ones. */
const ALIVE_OFFSET = 8;
const ALL_ONES = 0xffff_ffff;
const NO_ANSWER =
  'it does not answer: the device process has ended, or was stopped for longer than QEMU waits (x-msg-timeout); ' +
  'the device has to be plugged in anew, or this VM started again';

export class VfioDevice implements PciHandle {
  readonly name: string;
  readonly gone: Promise<Error>;
  readonly #fd: number;
  readonly #container: Container;
  readonly #interrupts: VfioInterrupts;
  readonly #canReset: boolean;
  readonly #regionCount: number;
  readonly #regions = new Map<number, VfioRegion>();
  /** Mappings of registers that workers store to, by region and area. */
  readonly #registers = new Map<string, Mapping>();
  readonly #forwarders = new Forwarders((...at) => this.write(...at));
  readonly #requestFd: number;
  readonly #requestWatcher: Watcher;
  #aliveTimer: NodeJS.Timeout | undefined;
  #tell: (error: Error) => void = () => {};
  #disposed = false;
  /** It answers nothing any more: what is not asked cannot keep anybody waiting. */
  #dead = false;

  /**
   * Opens a function that vfio-pci has. Throws usage errors in plain words: no IOMMU, not bound, group not viable or in
   * use, no permission. Throws `ENODEV` (scope device) when it does not answer.
   */
  static open(address: string, sysfs = new PciSysfs()): VfioDevice {
    const facts = sysfs.facts(address);
    if (!facts) throw advice.notThere(address);
    const problem = problemOf(sysfs, facts);
    if (problem) throw problem;
    if (!sysfs.answers(address)) throw new VhostPciError('device', 'ENODEV', `${address}: ${NO_ANSWER}`);
    const container = new Container(facts.group!, sysfs);
    let fd: number | undefined;
    try {
      fd = container.deviceFd(address);
      return new VfioDevice(address, container, fd);
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      container[Symbol.dispose]();
      throw error;
    }
  }

  private constructor(name: string, container: Container, fd: number) {
    this.name = name;
    this.#container = container;
    this.#fd = fd;
    const argument = DeviceInfo.encode({ argsz: DeviceInfo.size });
    ioctl(fd, VFIO.DEVICE_GET_INFO, argument, `ask what ${name} is`);
    const info = DeviceInfo.decode(argument);
    if (!(info.flags & DEVICE_FLAG.PCI))
      throw new VhostPciError('device', 'ENODEV', `${name} is no PCI device`);
    this.#canReset = (info.flags & DEVICE_FLAG.RESET) !== 0;
    this.#regionCount = info.num_regions;
    this.#interrupts = new VfioInterrupts(fd, name, info.num_irqs);
    this.gone = new Promise((resolve) => {
      this.#tell = resolve;
    });
    this.#requestFd = native.eventfd();
    this.#requestWatcher = native.watch(this.#requestFd, () => {
      native.eventfdTake(this.#requestFd);
      this.#lost('the system asks for it back: it is being unplugged or unbound');
    });
    this.#requestWatcher.set({ readable: true });
    this.#requestWatcher.unref();
    try {
      if (this.#interrupts.count(IRQ.REQ) > 0) this.#interrupts.set(IRQ.REQ, [this.#requestFd]);
      this.#checkAlive();
    } catch (error) {
      this.#stopWatching();
      throw error;
    }
  }

  async regionInfo(region: number): Promise<RegionInfo> {
    const { size, readable, writable, areas } = this.#region(region);
    return { size, readable, writable, areas };
  }

  async read(region: number, offset: number, length: number): Promise<Buffer> {
    const out = Buffer.alloc(length);
    const got = this.#access('read', region, offset, length, (position) =>
      readSync(this.#fd, out, 0, length, position),
    );
    if (got !== length) throw this.#error('EIO', `a read of ${length} bytes gave ${got}`);
    return out;
  }

  async write(region: number, offset: number, data: Uint8Array): Promise<void> {
    const took = this.#access('write', region, offset, data.length, (position) =>
      writeSync(this.#fd, data, 0, data.length, position),
    );
    if (took !== data.length) throw this.#error('EIO', `a write of ${data.length} bytes was taken in part`);
  }

  async map(region: number, area: RegionArea, writable: boolean): Promise<Mapping> {
    const info = this.#region(region);
    const inside = info.areas.some(
      (a) => a.offset <= area.offset && area.offset + area.size <= a.offset + a.size,
    );
    if (!inside) throw this.#error('EINVAL', `region ${region} cannot be mapped at ${area.offset}`);
    return new native.Mapping(this.#fd, info.fdOffset + area.offset, area.size, writable);
  }

  async notifyTarget(region: number, offset: number, value: number): Promise<NotifyTarget> {
    const area = this.#region(region).areas.find(
      (a) => a.offset <= offset && offset + 2 <= a.offset + a.size,
    );
    if (!area) return { fd: this.#forwarders.fd(region, offset, value) };
    const key = `${region}:${area.offset}`;
    let mapping = this.#registers.get(key);
    if (!mapping) {
      mapping = await this.map(region, area, true);
      this.#registers.set(key, mapping);
    }
    return { mmio: { mapping, offset: offset - area.offset, value } };
  }

  async mapDma(_fd: number, mapping: Mapping, offset: number, address: bigint, size: number): Promise<void> {
    this.#checkOpen();
    this.#container.mapDma(mapping.address + BigInt(offset), address, size);
  }

  async unmapDma(address: bigint, size: number): Promise<void> {
    this.#checkOpen();
    this.#container.unmapDma(address, size);
  }

  async irqCount(index: number): Promise<number> {
    this.#checkOpen();
    return this.#interrupts.count(index);
  }

  async setIrqs(index: number, fds: readonly number[]): Promise<void> {
    this.#checkOpen();
    this.#interrupts.set(index, fds);
  }

  async reset(): Promise<void> {
    this.#checkOpen();
    if (!this.#canReset) throw this.#error('ENOTSUP', 'it cannot be reset');
    ioctlNumber(this.#fd, VFIO.DEVICE_RESET, 0, `reset ${this.name}`);
  }

  /** Gives the function back. Mappings that others made stay valid until they close them. `gone` stays pending. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#stopWatching();
    this.#forwarders[Symbol.dispose]();
    for (const mapping of this.#registers.values()) mapping.close();
    // The kernel resets the function now (vfio_pci_core_disable), and waits a minute for a dead one (pci_dev_wait). This thread
    // may have another device to answer meanwhile.
    await promisify(close)(this.#fd);
    this.#container[Symbol.dispose]();
  }

  /** The number of the closed fd may be another file's by now. */
  #checkOpen(): void {
    if (this.#disposed) throw this.#error('EBADF', 'it is closed');
  }

  #region(index: number): VfioRegion {
    this.#checkOpen();
    if (index >= this.#regionCount) throw this.#error('EINVAL', `it has no region ${index}`);
    let region = this.#regions.get(index);
    if (!region) {
      region = readRegionInfo(this.#fd, index, this.name);
      this.#regions.set(index, region);
    }
    return region;
  }

  #access(
    what: string,
    region: number,
    offset: number,
    length: number,
    run: (position: number) => number,
  ): number {
    const { size, fdOffset } = this.#region(region);
    if (this.#dead) throw this.#error('ENODEV', NO_ANSWER);
    if (offset < 0 || offset + length > size)
      throw this.#error('EINVAL', `${length} bytes at ${offset} are not inside region ${region}`);
    try {
      return run(fdOffset + offset);
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      throw this.#error(code ?? 'EIO', `cannot ${what} region ${region}: ${errorText(cause)}`, cause);
    }
  }

  /** A function that does not answer was unplugged without notice, or its server has ended. */
  #checkAlive(): void {
    const begin = performance.now();
    const alive = this.#answers();
    const took = performance.now() - begin;
    if (!alive && took < STALLED_MS) {
      this.#dead = true;
      this.#lost(NO_ANSWER);
      return;
    }
    this.#aliveTimer = setTimeout(() => this.#checkAlive(), Math.max(ALIVE_MS, took * STALLED_PAUSE));
    this.#aliveTimer.unref();
  }

  #answers(): boolean {
    const { fdOffset } = this.#region(REGION.CONFIG);
    const out = Buffer.alloc(4);
    try {
      return readSync(this.#fd, out, 0, 4, fdOffset + ALIVE_OFFSET) === 4 && out.readUInt32LE(0) !== ALL_ONES;
    } catch {
      return false;
    }
  }

  #lost(why: string): void {
    clearTimeout(this.#aliveTimer);
    if (!this.#disposed) this.#tell(this.#error('ENODEV', why));
  }

  #stopWatching(): void {
    clearTimeout(this.#aliveTimer);
    this.#requestWatcher.stop();
    try {
      this.#interrupts[Symbol.dispose]();
    } catch {
      // Closing the device's fd ends its interrupts too.
    }
    closeSync(this.#requestFd);
  }

  #error(code: string, what: string, cause?: unknown): VhostPciError {
    return new VhostPciError('device', code, `${this.name}: ${what}`, { cause });
  }
}
