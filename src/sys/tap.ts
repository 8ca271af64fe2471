/**
 * TAP interfaces (linux/if_tun.h): creation, queues, offloads, carrier, MTU, link state. Moves no packets: that is
 * the engine's TapQueue, on the fds that this opens.
 */
import { closeSync, constants, existsSync, openSync } from 'node:fs';
import { usageError, VhostPciError } from '../util/errors.js';
import { struct } from '../util/struct.js';
import { datagramSocket, ioctl, ioctlNumber } from './ioctl.js';

const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const TUNSETVNETHDRSZ = 0x400454d8;
const TUNSETVNETLE = 0x400454dc;
const TUNSETCARRIER = 0x400454e2;
const TUNGETIFF = 0x800454d2;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCSIFADDR = 0x8916;
const SIOCSIFNETMASK = 0x891c;
const SIOCGIFMTU = 0x8921;
const SIOCSIFMTU = 0x8922;
const SIOCSIFHWADDR = 0x8924;
const SIOCGIFINDEX = 0x8933;
const AF_INET = 2;
const ARPHRD_ETHER = 1;

const IFF_TAP = 0x0002;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const IFF_UP = 0x1;

/** TUN_F_*: what the reader of the fd takes without segmentation or checksum. */
export const TUN_F = { CSUM: 0x01, TSO4: 0x02, TSO6: 0x04, TSO_ECN: 0x08, UFO: 0x10 } as const;

/** struct virtio_net_hdr_v1: VIRTIO 1.3, 5.1.6. */
const HEADER_BYTES = 12;

const ifreqFlags = struct('ifreq', 40, { name: { bytes: 16 }, flags: 'u16' });
const ifreqMtu = struct('ifreq', 40, { name: { bytes: 16 }, mtu: 'u32' });
/** The sockaddr in it: ARPHRD_ETHER and a MAC address. */
const ifreqMac = struct('ifreq', 40, { name: { bytes: 16 }, type: 'u16', mac: { bytes: 6 } });
const ifreqIndex = struct('ifreq', 40, { name: { bytes: 16 }, index: 'u32' });
/** The sockaddr_in in it: family, port, address. */
const ifreqAddress = struct('ifreq', 40, {
  name: { bytes: 16 },
  family: 'u16',
  port: 'u16',
  address: { bytes: 4 },
});
/** linux/ipv6.h */
const in6Ifreq = struct('in6_ifreq', 24, { address: { bytes: 16 }, prefix: 'u32', index: 'u32' });

export interface InterfaceAddress {
  readonly family: 4 | 6;
  /** In the usual notation, without a prefix. */
  readonly address: string;
  readonly prefix: number;
}

function nameField(name: string): Buffer {
  const field = Buffer.alloc(16);
  field.write(name, 'latin1');
  return field;
}

/** Interface names as the kernel takes them (dev_valid_name), in ASCII. With "%" it would make a name of its own. */
export function checkInterfaceName(name: string): void {
  if (!/^[!-~]{1,15}$/.test(name) || /[/:%]/.test(name) || name === '.' || name === '..')
    throw usageError(
      `"${name}" is no interface name: 1 to 15 ASCII characters without blanks, "/", ":" and "%"`,
    );
}

export class Tap implements Disposable {
  readonly name: string;
  /** False when the interface exists already and was made with a single queue. */
  readonly multiQueue: boolean;
  /** False when somebody else made the interface, who may have given it a MAC address too. */
  readonly created: boolean;
  readonly #fds: number[] = [];

  /** Creates the interface, or attaches to an existing persistent one. Throws usage errors in plain words. */
  constructor(name: string) {
    checkInterfaceName(name);
    this.name = name;
    this.created = !existsSync(`/sys/class/net/${name}`);
    let multiQueue = true;
    try {
      this.#fds.push(open(name, IFF_MULTI_QUEUE));
    } catch (error) {
      if ((error as VhostPciError).code !== 'EINVAL') throw explain(name, error);
      multiQueue = false;
      try {
        this.#fds.push(open(name, 0));
      } catch (second) {
        throw explain(name, second);
      }
    }
    this.multiQueue = multiQueue;
  }

  /** The fd of queue `index`, opened when first asked for. It stays this object's. */
  queueFd(index: number): number {
    if (!this.multiQueue && index > 0)
      throw new VhostPciError('bug', 'EQUEUE', `${this.name} has one queue, not ${index + 1}`);
    while (this.#fds.length <= index) this.#fds.push(open(this.name, IFF_MULTI_QUEUE));
    return this.#fds[index] as number;
  }

  /** Which frames may come out of the interface: a set of TUN_F bits. */
  setOffloads(flags: number): void {
    for (const fd of this.#fds) ioctlNumber(fd, TUNSETOFFLOAD, flags, `set offloads of ${this.name}`);
  }

  setCarrier(on: boolean): void {
    const value = Buffer.alloc(4);
    value.writeInt32LE(on ? 1 : 0);
    ioctl(this.#fds[0] as number, TUNSETCARRIER, value, `set carrier of ${this.name}`);
  }

  /** Throws (code EBADFD) when somebody has deleted the interface. */
  check(): void {
    ioctl(this.#fds[0] as number, TUNGETIFF, ifreqFlags.encode({}), `look at ${this.name}`);
  }

  setMac(mac: Uint8Array): void {
    const request = ifreqMac.encode({
      name: nameField(this.name),
      type: ARPHRD_ETHER,
      mac: Buffer.from(mac),
    });
    const text = [...mac].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
    control(SIOCSIFHWADDR, request, `ip link set ${this.name} address ${text}`);
  }

  get mtu(): number {
    const request = ifreqMtu.encode({ name: nameField(this.name) });
    control(SIOCGIFMTU, request, `ip link show ${this.name}`);
    return ifreqMtu.decode(request).mtu;
  }

  /** What is as it should be is left alone here and below: only root may change it, and may have done so already. */
  setMtu(mtu: number): void {
    if (this.mtu === mtu) return;
    const wanted = ifreqMtu.encode({ name: nameField(this.name), mtu });
    control(SIOCSIFMTU, wanted, `ip link set ${this.name} mtu ${mtu}`);
  }

  setUp(): void {
    const request = ifreqFlags.encode({ name: nameField(this.name) });
    control(SIOCGIFFLAGS, request, `ip link show ${this.name}`);
    const { flags } = ifreqFlags.decode(request);
    if (flags & IFF_UP) return;
    const wanted = ifreqFlags.encode({ name: nameField(this.name), flags: flags | IFF_UP });
    control(SIOCSIFFLAGS, wanted, `ip link set ${this.name} up`);
  }

  /**
   * Sets the IPv4 address, instead of the one that it has, or adds an IPv6 address. Throws a usage error for one that the
   * kernel does not take.
   */
  setAddress(wanted: InterfaceAddress): void {
    const what = `ip addr add ${wanted.address}/${wanted.prefix} dev ${this.name}`;
    try {
      this.#setAddress(wanted, what);
    } catch (cause) {
      const why = ADDRESS_REFUSED[(cause as VhostPciError).code];
      throw why === undefined ? cause : usageError(`the kernel refuses "${what}": ${why}`, { cause });
    }
  }

  #setAddress({ family, address, prefix }: InterfaceAddress, what: string): void {
    const name = nameField(this.name);
    if (family === 4) {
      const request = (bytes: Buffer): Buffer =>
        ifreqAddress.encode({ name, family: AF_INET, address: bytes });
      control(SIOCSIFADDR, request(ipv4Bytes(address)), what);
      control(SIOCSIFNETMASK, request(ipv4Mask(prefix)), what);
      return;
    }
    const request = ifreqIndex.encode({ name });
    control(SIOCGIFINDEX, request, `ip link show ${this.name}`);
    const { index } = ifreqIndex.decode(request);
    try {
      control(SIOCSIFADDR, in6Ifreq.encode({ address: ipv6Bytes(address), prefix, index }), what, 'inet6');
    } catch (error) {
      // It has this address already: a persistent interface that is used again.
      if ((error as VhostPciError).code !== 'EEXIST') throw error;
    }
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }
}

const ADDRESS_REFUSED: Readonly<Record<string, string>> = {
  EINVAL: 'give the address of a host; IPv6 needs an MTU of 1280 or more too',
  EADDRNOTAVAIL: 'give the address of a host',
  EACCES: 'IPv6 is turned off in this system (net.ipv6.conf.*.disable_ipv6)',
  EAFNOSUPPORT: 'this system has no IPv6',
};

function open(name: string, extra: number): number {
  const fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK);
  try {
    const flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | extra;
    ioctl(fd, TUNSETIFF, ifreqFlags.encode({ name: nameField(name), flags }), `attach ${name}`);
    const word = Buffer.alloc(4);
    word.writeInt32LE(HEADER_BYTES);
    ioctl(fd, TUNSETVNETHDRSZ, word, `set header size of ${name}`);
    word.writeInt32LE(1);
    ioctl(fd, TUNSETVNETLE, word, `set byte order of ${name}`);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/**
 * An ioctl on a socket: interface requests go to any, those for an address to one of its family. `command` does the same;
 * errors name it.
 */
function control(
  request: number,
  argument: Buffer,
  command: string,
  family: 'inet' | 'inet6' = 'inet',
): void {
  const fd = datagramSocket(family);
  try {
    ioctl(fd, request, argument, command);
  } catch (error) {
    if ((error as VhostPciError).code !== 'EPERM') throw error;
    const instead = command.startsWith('ip addr') ? ', and leave out the address' : '';
    throw usageError(`only root may do "${command}": run as root, or have that done before${instead}`, {
      cause: error,
    });
  } finally {
    closeSync(fd);
  }
}

/** Of an address that net.isIPv4 takes. */
export function ipv4Bytes(address: string): Buffer {
  return Buffer.from(address.split('.').map(Number));
}

export function ipv4Mask(prefix: number): Buffer {
  const mask = Buffer.alloc(4);
  mask.writeUInt32BE(prefix === 0 ? 0 : (0xffff_ffff << (32 - prefix)) >>> 0);
  return mask;
}

/** Of an address that net.isIPv6 takes, without a zone. */
export function ipv6Bytes(address: string): Buffer {
  // A dotted quad at the end stands for the last two groups.
  const plain = address.replace(/[\d.]+$/, (tail) =>
    tail.includes('.')
      ? ipv4Bytes(tail)
          .toString('hex')
          .replace(/^(.{4})/, '$1:')
      : tail,
  );
  const [head = '', tail] = plain.split('::');
  const groups = (text: string): string[] => (text === '' ? [] : text.split(':'));
  const first = groups(head);
  const last = groups(tail ?? '');
  const all = [...first, ...Array<string>(8 - first.length - last.length).fill('0'), ...last];
  return Buffer.from(all.map((group) => group.padStart(4, '0')).join(''), 'hex');
}

function explain(name: string, error: unknown): VhostPciError {
  const code = (error as { code?: string }).code;
  const why: Record<string, string> = {
    ENOENT: '/dev/net/tun does not exist: load the module tun',
    EPERM: `not permitted: run as root, or have it made by "ip tuntap add ${name} mode tap multi_queue vnet_hdr user …"`,
    EACCES: 'no permission for /dev/net/tun: run as root, or let others have it (chmod 666 /dev/net/tun)',
    EBUSY: 'another process has it',
    EINVAL: 'it exists and is not a TAP interface with vnet_hdr',
  };
  return usageError(`cannot use TAP ${name}: ${(code && why[code]) ?? (error as Error).message}`, {
    cause: error,
  });
}
