/** A PCI bus in a temporary folder, with as much of a kernel behind it as binding needs. Owns no test. */
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PciSysfs } from '../../../src/vfio/sysfs.js';

export interface FakeFunction {
  readonly vendor?: number;
  readonly device?: number;
  readonly classCode?: number;
  readonly driver?: string;
  readonly group?: number;
  /** Lines of `resource`: first address, last address, flags. */
  readonly resource?: readonly (readonly [bigint, bigint, bigint])[];
  /** The registers of its BARs. */
  readonly registers?: readonly number[];
  /** Names of network interfaces that are up. */
  readonly interfaces?: readonly string[];
  /** The driver that the kernel takes for it by itself. */
  readonly ownDriver?: string;
}

export class FakeBus extends PciSysfs implements Disposable {
  readonly root: string;
  readonly #own = new Map<string, string>();
  /** Everything written, `path=text`. */
  readonly written: string[] = [];
  /** The error that writes fail with. */
  refusal: string | undefined;
  /** Drivers that give a function back as soon as they get it. */
  readonly refusing = new Set<string>();

  constructor(drivers: readonly string[] = ['vfio-pci']) {
    const root = mkdtempSync(join(tmpdir(), 'vhost-pci-sysfs-'));
    super(root, join(root, 'dev'));
    this.root = root;
    mkdirSync(join(root, 'bus/pci/devices'), { recursive: true });
    for (const driver of drivers) mkdirSync(join(root, 'bus/pci/drivers', driver), { recursive: true });
  }

  [Symbol.dispose](): void {
    rmSync(this.root, { recursive: true });
  }

  add(address: string, f: FakeFunction = {}): void {
    const folder = this.path(address);
    mkdirSync(folder);
    const file = (name: string, text: string): void => writeFileSync(join(folder, name), `${text}\n`);
    file('vendor', `0x${(f.vendor ?? 0x1af4).toString(16)}`);
    file('device', `0x${(f.device ?? 0x10f2).toString(16)}`);
    file('class', `0x${(f.classCode ?? 0x020000).toString(16).padStart(6, '0')}`);
    file('driver_override', '(null)');
    const hex = (n: bigint): string => `0x${n.toString(16).padStart(16, '0')}`;
    file('resource', (f.resource ?? []).map((line) => line.map(hex).join(' ')).join('\n'));
    if (f.registers) {
      const config = Buffer.alloc(64);
      for (const [bar, register] of f.registers.entries()) config.writeUInt32LE(register, 0x10 + 4 * bar);
      writeFileSync(join(folder, 'config'), config);
    }
    if (f.group !== undefined) {
      const group = join(this.root, 'kernel/iommu_groups', String(f.group));
      mkdirSync(join(group, 'devices', address), { recursive: true });
      symlinkSync(group, join(folder, 'iommu_group'));
      mkdirSync(join(this.root, 'dev/vfio'), { recursive: true });
      writeFileSync(join(this.root, 'dev/vfio', String(f.group)), '', { mode: 0o600 });
    }
    for (const name of f.interfaces ?? []) {
      mkdirSync(join(folder, 'net', name), { recursive: true });
      file(`net/${name}/flags`, '0x1003');
    }
    if (f.ownDriver) this.#own.set(address, f.ownDriver);
    if (f.driver) this.#attach(address, f.driver);
  }

  remove(address: string): void {
    rmSync(this.path(address), { recursive: true });
  }

  path(address: string, ...rest: string[]): string {
    return join(this.root, 'bus/pci/devices', address, ...rest);
  }

  protected override write(path: string, text: string): void {
    if (this.refusal !== undefined) throw Object.assign(new Error(this.refusal), { code: this.refusal });
    this.written.push(`${path}=${text.trim()}`);
    const [, address, what] = /^devices\/([^/]+)\/(.+)$/.exec(path) ?? [];
    if (address && what === 'driver_override') writeFileSync(this.path(address, what), text);
    else if (address && what === 'driver/unbind') unlinkSync(this.path(address, 'driver'));
    else if (path === 'drivers_probe') this.#probe(text);
    else throw new Error(`a write to ${path}`);
  }

  #probe(address: string): void {
    const override = readFileSync(this.path(address, 'driver_override'), 'utf8').trim();
    const driver = override === '' || override === '(null)' ? this.#own.get(address) : override;
    if (driver && this.hasDriver(driver) && !this.refusing.has(driver) && !this.facts(address)?.driver)
      this.#attach(address, driver);
  }

  #attach(address: string, driver: string): void {
    const folder = join(this.root, 'bus/pci/drivers', driver);
    mkdirSync(folder, { recursive: true });
    symlinkSync(folder, this.path(address, 'driver'));
  }
}
