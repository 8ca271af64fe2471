/**
 * The control messages of the seed ("Control Virtqueue") with the contents that docs/protocol.md, P5, gives them.
 * A table: one row a message, from which decoding and encoding derive. Holds no state.
 */
import { VhostPciError } from '../util/errors.js';
import { type StructValue, struct } from '../util/struct.js';

const vhostPciCtrl = struct('vhost_pci_ctrl', 2, { class: 'u8', command: 'u8' });
const peerMemInfo = struct('vhost_pci_ctrl_peer_mem_info', 8, { peer_mem: 'u64' });
const otherMemInfo = struct('other_mem_info', 24, {
  region_count: 'u32',
  reserved: 'u32',
  features: 'u64',
  mtu: 'u32',
  reserved2: 'u32',
});
const memRegion = struct('mem_region', 24, { gpa: 'u64', size: 'u64', bar_offset: 'u64' });
const virtqInfo = struct('vhost_pci_ctrl_peer_virtq_info', 8, { virtq_num: 'u32', reserved: 'u32' });
const virtq = struct('virtq', 40, {
  next_avail: 'u16',
  flags: 'u16',
  enable: 'u32',
  num: 'u32',
  reserved: 'u32',
  desc: 'u64',
  avail: 'u64',
  used: 'u64',
});
const logBase = struct('vhost_pci_ctrl_dirty_page_log_base', 16, { gpa: 'u64', size: 'u64' });
const announce = struct('announce', 6, { mac: { bytes: 6 } });
const mtuData = struct('mtu', 2, { mtu: 'u16' });
const broken = struct('broken', 2, { ring: 'u16' });

/** Structs of the control messages, for documentation and tests. */
export const STRUCTS = {
  vhostPciCtrl,
  peerMemInfo,
  otherMemInfo,
  memRegion,
  virtqInfo,
  virtq,
  logBase,
  announce,
  mtuData,
  broken,
} as const;

/** MOVED: the ring has other eventfds than those that the driver took (P7). */
export const VIRTQ_FLAG = { STARTED: 1, POLL: 2, MOVED: 4 } as const;

/** Regions that other-mem-info may carry: more than any table of vhost-user holds. */
export const MAX_REGIONS = 512;
/** Virtqueues of 128 pairs. */
export const MAX_VIRTQS = 256;

export type Virtq = StructValue<typeof virtq>;
export type MemRegion = StructValue<typeof memRegion>;

export interface MemInfoBar {
  readonly kind: 'mem-info-bar';
  readonly bar: number;
  readonly features: bigint;
  readonly mtu: number;
  readonly regions: readonly MemRegion[];
}

export type Message =
  | { readonly kind: 'connection'; readonly on: boolean }
  | MemInfoBar
  | { readonly kind: 'mem-info-gva'; readonly address: bigint }
  | { readonly kind: 'virtq-info'; readonly virtqs: readonly Virtq[] }
  | { readonly kind: 'logging'; readonly on: boolean }
  | { readonly kind: 'log-base'; readonly gpa: bigint; readonly size: bigint }
  | { readonly kind: 'announce'; readonly mac: Buffer }
  | { readonly kind: 'mtu'; readonly mtu: number }
  | { readonly kind: 'broken'; readonly ring: number };

export type MessageKind = Message['kind'];
type Of<K extends MessageKind> = Extract<Message, { kind: K }>;

interface Row<K extends MessageKind = MessageKind> {
  readonly class: number;
  readonly command: number;
  readonly kind: K;
  readonly decode: (data: Buffer) => Message;
  readonly encode: (message: Of<K>) => Buffer;
}

const row = <K extends MessageKind>(
  cls: number,
  command: number,
  kind: K,
  decode: (data: Buffer) => Of<K>,
  encode: (message: Of<K>) => Buffer,
): Row => ({ class: cls, command, kind, decode, encode }) as unknown as Row;

const NONE = (): Buffer => Buffer.alloc(0);

function decodeMemInfoBar(data: Buffer): MemInfoBar {
  const { peer_mem } = peerMemInfo.decode(data);
  const info = otherMemInfo.decode(data, peerMemInfo.size);
  if (peer_mem > 5n) throw bad(`peer_mem names BAR ${peer_mem}, a device has BARs 0 to 5`);
  if (info.region_count === 0 || info.region_count > MAX_REGIONS)
    throw bad(`region_count is ${info.region_count}, 1 to ${MAX_REGIONS} are possible`);
  const at = peerMemInfo.size + otherMemInfo.size;
  const regions = Array.from({ length: info.region_count }, (_, i) =>
    memRegion.decode(data, at + i * memRegion.size),
  );
  return { kind: 'mem-info-bar', bar: Number(peer_mem), features: info.features, mtu: info.mtu, regions };
}

function encodeMemInfoBar(m: MemInfoBar): Buffer {
  const head = otherMemInfo.encode({ region_count: m.regions.length, features: m.features, mtu: m.mtu });
  return Buffer.concat([
    peerMemInfo.encode({ peer_mem: BigInt(m.bar) }),
    head,
    ...m.regions.map((r) => memRegion.encode(r)),
  ]);
}

function decodeVirtqInfo(data: Buffer): Of<'virtq-info'> {
  const { virtq_num } = virtqInfo.decode(data);
  if (virtq_num === 0 || virtq_num % 2 !== 0 || virtq_num > MAX_VIRTQS)
    throw bad(`virtq_num is ${virtq_num}, an even number from 2 to ${MAX_VIRTQS} is needed`);
  const virtqs = Array.from({ length: virtq_num }, (_, i) =>
    virtq.decode(data, virtqInfo.size + i * virtq.size),
  );
  return { kind: 'virtq-info', virtqs };
}

function bad(text: string): VhostPciError {
  return new VhostPciError('message', 'EBADMSG', text);
}

/** The seed's classes and commands, and class 128 for our own (P5). */
export const MESSAGES: readonly Row[] = [
  row(0, 0, 'connection', () => ({ kind: 'connection', on: false }), NONE),
  row(0, 1, 'connection', () => ({ kind: 'connection', on: true }), NONE),
  row(1, 0, 'mem-info-bar', decodeMemInfoBar, encodeMemInfoBar),
  row(
    1,
    1,
    'mem-info-gva',
    (data) => ({ kind: 'mem-info-gva', address: peerMemInfo.decode(data).peer_mem }),
    (m) => peerMemInfo.encode({ peer_mem: m.address }),
  ),
  row(2, 0, 'virtq-info', decodeVirtqInfo, (m) =>
    Buffer.concat([
      virtqInfo.encode({ virtq_num: m.virtqs.length }),
      ...m.virtqs.map((q) => virtq.encode(q)),
    ]),
  ),
  row(3, 0, 'logging', () => ({ kind: 'logging', on: false }), NONE),
  row(3, 1, 'logging', () => ({ kind: 'logging', on: true }), NONE),
  row(
    3,
    2,
    'log-base',
    (data) => ({ kind: 'log-base', ...logBase.decode(data) }),
    (m) => logBase.encode(m),
  ),
  row(
    128,
    0,
    'announce',
    (data) => ({ kind: 'announce', mac: announce.decode(data).mac }),
    (m) => announce.encode(m),
  ),
  row(
    128,
    1,
    'mtu',
    (data) => ({ kind: 'mtu', mtu: mtuData.decode(data).mtu }),
    (m) => mtuData.encode(m),
  ),
  row(
    128,
    2,
    'broken',
    (data) => ({ kind: 'broken', ring: broken.decode(data).ring }),
    (m) => broken.encode(m),
  ),
];

function rowOf(message: Message): Row {
  const command = 'on' in message ? Number(message.on) : undefined;
  const found = MESSAGES.find(
    (r) => r.kind === message.kind && (command === undefined || r.command === command),
  );
  if (!found) throw new VhostPciError('bug', 'ENOMSG', `no row for ${message.kind}`);
  return found;
}

/** The bytes of one chain. */
export function encodeMessage(message: Message): Buffer {
  const r = rowOf(message);
  const head = vhostPciCtrl.encode({ class: r.class, command: r.command });
  return Buffer.concat([head, r.encode(message as never)]);
}

/**
 * Decodes one chain. Throws (scope `message`): `ETRUNCATED` when it is shorter than its struct, `ENOMSG` for an
 * unknown class or command, `EBADMSG` for impossible contents. Bytes behind the struct are ignored, so that
 * later versions can append.
 */
export function decodeMessage(chain: Buffer): Message {
  const head = vhostPciCtrl.decode(chain);
  const r = MESSAGES.find((m) => m.class === head.class && m.command === head.command);
  if (!r)
    throw new VhostPciError(
      'message',
      'ENOMSG',
      `unknown control message, class ${head.class} command ${head.command}`,
    );
  return r.decode(chain.subarray(vhostPciCtrl.size));
}
