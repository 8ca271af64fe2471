/**
 * Numbers and layouts of the vhost-user protocol, as QEMU's docs/interop/vhost-user.rst has them. Holds no state and
 * does no I/O. "All numbers are in the machine native byte order": little-endian on the machines we run on.
 */
import type { Framing } from '../sys/framed-socket.js';
import { VhostPciError } from '../util/errors.js';
import { type Decoded, type Fields, type Struct, struct } from '../util/struct.js';

export const HEADER = struct('VhostUserMsg header', 12, { request: 'u32', flags: 'u32', size: 'u32' });

export const FLAG = { VERSION: 1, VERSION_MASK: 3, REPLY: 4, NEED_REPLY: 8 } as const;
/** Flags of every reply: version 1 and the reply bit, nothing else (DPDK compares for equality). */
export const REPLY_FLAGS = FLAG.VERSION | FLAG.REPLY;

/** Front-end message types. */
export const REQUEST = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  CREATE_CRYPTO_SESSION: 26,
  CLOSE_CRYPTO_SESSION: 27,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  GPU_SET_SOCKET: 33,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  GET_SHARED_OBJECT: 41,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
  GET_SHMEM_CONFIG: 44,
  GET_VRING_BASE_SKIP_DRAIN: 45,
} as const;

export type RequestName = keyof typeof REQUEST;

const NAMES = new Map<number, string>(Object.entries(REQUEST).map(([name, n]) => [n, name]));

/** For messages: `SET_VRING_ADDR`, or `request 99`. */
export function requestName(request: number): string {
  return NAMES.get(request) ?? `request ${request}`;
}

/** Bits of GET_PROTOCOL_FEATURES. */
export const PROTOCOL_FEATURE = {
  MQ: 0,
  LOG_SHMFD: 1,
  RARP: 2,
  REPLY_ACK: 3,
  MTU: 4,
  BACKEND_REQ: 5,
  CROSS_ENDIAN: 6,
  CRYPTO_SESSION: 7,
  PAGEFAULT: 8,
  CONFIG: 9,
  BACKEND_SEND_FD: 10,
  HOST_NOTIFIER: 11,
  INFLIGHT_SHMFD: 12,
  RESET_DEVICE: 13,
  INBAND_NOTIFICATIONS: 14,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
  XEN_MMAP: 17,
  SHARED_OBJECT: 18,
  DEVICE_STATE: 19,
} as const;

/** Bits of GET_FEATURES that belong to vhost-user and not to the virtio device. */
export const VHOST_FEATURE = {
  /** VHOST_F_LOG_ALL: the dirty log is on. */
  LOG_ALL: 26,
  /** VHOST_USER_F_PROTOCOL_FEATURES */
  PROTOCOL_FEATURES: 30,
} as const;

/** Most regions of SET_MEM_TABLE. */
export const MAX_TABLE_REGIONS = 8;
/** Longest payload that is read before it is understood: all that are known are shorter. */
export const MAX_PAYLOAD = 4096;
/** VHOST_VRING_F_LOG */
export const RING_FLAG_LOG = 1;
/** Of the payload of SET_VRING_KICK, _CALL and _ERR. */
export const RING_FD = { INDEX_MASK: 0xffn, NO_FD: 0x100n } as const;

export const U64 = struct('u64', 8, { value: 'u64' });
export const VRING_STATE = struct('vring state', 8, { index: 'u32', num: 'u32' });
export const VRING_ADDR = struct('vring address', 40, {
  index: 'u32',
  flags: 'u32',
  descriptor: 'u64',
  used: 'u64',
  available: 'u64',
  log: 'u64',
});
export const MEMORY_HEAD = struct('memory regions head', 8, { count: 'u32', padding: 'u32' });
export const MEMORY_REGION = struct('memory region', 32, {
  gpa: 'u64',
  size: 'u64',
  userAddress: 'u64',
  fileOffset: 'u64',
});
export const SINGLE_REGION = struct('single memory region', 40, {
  padding: 'u64',
  gpa: 'u64',
  size: 'u64',
  userAddress: 'u64',
  fileOffset: 'u64',
});
export const LOG_DESCRIPTION = struct('log', 16, { size: 'u64', offset: 'u64' });
/** "The first 6 bytes of the payload contain the mac address." */
export const RARP = struct('rarp', 8, { mac: { bytes: 6 }, padding: 'u16' });

/** How the payload of a message is checked, decoded and encoded. */
export interface Payload<T> {
  readonly name: string;
  /** The payload's only right length; a variable payload computes it from its first bytes. */
  sizeOf(payload: Buffer): number;
  decode(payload: Buffer): T;
  encode(value: T): Buffer;
}

/** A payload that is one struct. */
export function exactly<F extends Fields>(layout: Struct<F>): Payload<Decoded<F>> {
  return {
    name: layout.name,
    sizeOf: () => layout.size,
    decode: (payload) => layout.decode(payload),
    encode: (value) => layout.encode(value),
  };
}

export const NO_PAYLOAD: Payload<void> = {
  name: 'nothing',
  sizeOf: () => 0,
  decode: () => undefined,
  encode: () => Buffer.alloc(0),
};

export const NUMBER: Payload<bigint> = {
  name: 'u64',
  sizeOf: () => U64.size,
  decode: (payload) => U64.decode(payload).value,
  encode: (value) => U64.encode({ value }),
};

export type WireRegion = ReturnType<typeof MEMORY_REGION.decode>;

export const MEMORY_TABLE: Payload<WireRegion[]> = {
  name: 'memory regions',
  sizeOf(payload) {
    if (payload.length < MEMORY_HEAD.size) return MEMORY_HEAD.size;
    // A count that we never accept makes no size at all.
    const count = Math.min(MEMORY_HEAD.decode(payload).count, MAX_TABLE_REGIONS + 1);
    return MEMORY_HEAD.size + count * MEMORY_REGION.size;
  },
  decode(payload) {
    const { count } = MEMORY_HEAD.decode(payload);
    return Array.from({ length: count }, (_, i) =>
      MEMORY_REGION.decode(payload, MEMORY_HEAD.size + i * MEMORY_REGION.size),
    );
  },
  encode: (regions) =>
    Buffer.concat([
      MEMORY_HEAD.encode({ count: regions.length }),
      ...regions.map((region) => MEMORY_REGION.encode(region)),
    ]),
};

/** A whole message. `size` is that of the payload unless a test wants to lie. */
export function encodeMessage(request: number, flags: number, payload: Uint8Array): Buffer {
  return Buffer.concat([HEADER.encode({ request, flags, size: payload.length }), payload]);
}

/** What a header must be before its payload is waited for. Throws with scope `connection`. */
export function checkHeader(header: Buffer, replyExpected: boolean): number {
  const { request, flags, size } = HEADER.decode(header);
  const fail = (code: string, what: string) =>
    new VhostPciError('connection', code, `${requestName(request)}: ${what}`);
  if ((flags & FLAG.VERSION_MASK) !== FLAG.VERSION)
    throw fail('EVERSION', `version ${flags & FLAG.VERSION_MASK}, not 1`);
  if (((flags & FLAG.REPLY) !== 0) !== replyExpected)
    throw fail('EREPLY', replyExpected ? 'the reply bit is missing' : 'the reply bit is set in a request');
  if (size > MAX_PAYLOAD) throw fail('EBADSIZE', `a payload of ${size} bytes is too long`);
  return HEADER.size + size;
}

/** Framing of replies, for a front-end. */
export const REPLY_FRAMING: Framing = {
  headerBytes: HEADER.size,
  totalBytes: (header) => checkHeader(header, true),
};
