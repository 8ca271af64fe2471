/** Messages that a back-end refuses, each with the code of the reason. */
import { openSync } from 'node:fs';
import { native } from '../../../src/sys/native.js';
import { bits } from '../../../src/util/flags.js';
import {
  FLAG,
  LOG_DESCRIPTION,
  MEMORY_HEAD,
  MEMORY_TABLE,
  NUMBER,
  PROTOCOL_FEATURE,
  REQUEST,
  SINGLE_REGION,
  VRING_ADDR,
  VRING_STATE,
} from '../../../src/vhost-user/protocol.js';
import { type Fixture, MEMORY_BYTES, USER_BASE } from './fixture.js';

export interface BadMessage {
  readonly code: string;
  readonly title: string;
  readonly request: number;
  readonly payload: Buffer;
  /** Descriptors to send, which stay the fixture's. */
  readonly fds: (f: Fixture) => number[];
  readonly flags: number;
}

const none = (): number[] => [];

function bad(
  code: string,
  title: string,
  request: number,
  payload: Buffer,
  fds: (f: Fixture) => number[] = none,
  flags: number = FLAG.VERSION,
): BadMessage {
  return { code, title, request, payload, fds, flags };
}

export const EMPTY = Buffer.alloc(0);
const region = { gpa: 0n, userAddress: USER_BASE, size: 0x10000n, fileOffset: 0n };
const table = (...changes: Partial<typeof region>[]): Buffer =>
  MEMORY_TABLE.encode(changes.map((change) => ({ ...region, ...change })));
const memory =
  (n: number) =>
  (f: Fixture): number[] =>
    Array(n).fill(f.memoryFd);
const oneEventfd = (f: Fixture): number[] => [f.eventfd()];
const logFile = (f: Fixture): number[] => [f.keep(native.memfdCreate('log', 0x200000))];
const log = (size: bigint, offset: bigint): Buffer => LOG_DESCRIPTION.encode({ size, offset });
export const stateOf = (index: number, num: number): Buffer => VRING_STATE.encode({ index, num });

/** Sent to a back-end that runs two rings in 16 MiB of memory up to 4 GiB + 8 MiB. */
export const BAD_MESSAGES: readonly BadMessage[] = [
  bad('EREQUEST', 'an unknown request', 99, EMPTY),
  bad('EREQUEST', 'request 0', 0, EMPTY),
  bad('EREQUEST', 'a request that it does not serve', REQUEST.POSTCOPY_END, EMPTY),
  bad('EREQUEST', 'a request whose feature it does not offer', REQUEST.SET_BACKEND_REQ_FD, EMPTY, oneEventfd),
  bad('EVERSION', 'a version of 0', REQUEST.SET_OWNER, EMPTY, none, 0),
  bad('EVERSION', 'a version of 2', REQUEST.SET_OWNER, EMPTY, none, 2),
  bad('EREPLY', 'a reply as a request', REQUEST.SET_OWNER, EMPTY, none, 5),
  bad('EBADSIZE', 'a payload that is too short', REQUEST.SET_FEATURES, Buffer.alloc(4)),
  bad('EBADSIZE', 'a payload that is too long', REQUEST.SET_FEATURES, Buffer.alloc(16)),
  bad('EBADSIZE', 'a payload where none belongs', REQUEST.SET_OWNER, Buffer.alloc(8)),
  bad('EBADSIZE', 'a payload of 5000 bytes', REQUEST.SET_OWNER, Buffer.alloc(5000)),
  bad('EFEATURE', 'features that were not offered', REQUEST.SET_FEATURES, NUMBER.encode(bits(32, 63))),
  bad('EBUSY', 'other features while rings run', REQUEST.SET_FEATURES, NUMBER.encode(bits(30, 32))),
  bad(
    'EFEATURE',
    'protocol features that were not offered',
    REQUEST.SET_PROTOCOL_FEATURES,
    NUMBER.encode(bits(PROTOCOL_FEATURE.PAGEFAULT)),
  ),
  bad('ESTATUS', 'a device status of 256', REQUEST.SET_STATUS, NUMBER.encode(256n)),

  bad('ENOREGION', 'a memory table without regions', REQUEST.SET_MEM_TABLE, table()),
  bad(
    'ETOOMANY',
    'a memory table of nine regions',
    REQUEST.SET_MEM_TABLE,
    table(...Array.from({ length: 9 }, (_, i) => ({ gpa: BigInt(i) << 20n, userAddress: BigInt(i) << 20n }))),
    memory(9),
  ),
  bad(
    'EBADSIZE',
    'a memory table that says more regions than it has',
    REQUEST.SET_MEM_TABLE,
    Buffer.concat([MEMORY_HEAD.encode({ count: 0xffffffff }), table({}).subarray(8)]),
    memory(1),
  ),
  bad('EBADSIZE', 'a cut memory table', REQUEST.SET_MEM_TABLE, Buffer.alloc(3)),
  bad('EFDCOUNT', 'a memory table with too few files', REQUEST.SET_MEM_TABLE, table({}, {}), memory(1)),
  bad('EFDCOUNT', 'a memory table with too many files', REQUEST.SET_MEM_TABLE, table({}), memory(2)),
  bad('EBADFD', 'an eventfd as memory', REQUEST.SET_MEM_TABLE, table({}), oneEventfd),
  bad('EBADFD', 'memory that is open for reading only', REQUEST.SET_MEM_TABLE, table({}), (f) => [
    f.keep(openSync(`/proc/self/fd/${f.memoryFd}`, 'r')),
  ]),
  bad(
    'EFILES',
    'memory in two files',
    REQUEST.SET_MEM_TABLE,
    table({}, { gpa: 1n << 32n, userAddress: 0n }),
    (f) => [f.memoryFd, f.keep(native.memfdCreate('other', MEMORY_BYTES))],
  ),
  bad(
    'EOVERLAP',
    'regions that overlap in guest memory',
    REQUEST.SET_MEM_TABLE,
    table({}, { gpa: 0xf000n, userAddress: 0n }),
    memory(2),
  ),
  bad(
    'EOVERLAP',
    'regions that overlap in the front-end',
    REQUEST.SET_MEM_TABLE,
    table({}, { gpa: 1n << 32n, userAddress: USER_BASE + 0xf000n }),
    memory(2),
  ),
  bad(
    'EOVERLAP',
    'regions that show the same bytes of the file',
    REQUEST.SET_MEM_TABLE,
    table({}, { gpa: 1n << 32n, userAddress: 1n << 40n }),
    memory(2),
  ),
  bad('EREGION', 'an empty region', REQUEST.SET_MEM_TABLE, table({ size: 0n }), memory(1)),
  bad('EWRAP', 'a region that wraps', REQUEST.SET_MEM_TABLE, table({ gpa: (1n << 64n) - 4096n }), memory(1)),
  bad(
    'EWRAP',
    'a region whose user address wraps',
    REQUEST.SET_MEM_TABLE,
    table({ userAddress: (1n << 64n) - 4096n }),
    memory(1),
  ),
  bad('EALIGN', 'a misaligned guest address', REQUEST.SET_MEM_TABLE, table({ gpa: 1n }), memory(1)),
  bad('EALIGN', 'a misaligned size', REQUEST.SET_MEM_TABLE, table({ size: 0x10001n }), memory(1)),
  bad('EALIGN', 'a misaligned offset', REQUEST.SET_MEM_TABLE, table({ fileOffset: 512n }), memory(1)),
  bad(
    'EFILESIZE',
    'a region that is larger than the file',
    REQUEST.SET_MEM_TABLE,
    table({ size: BigInt(MEMORY_BYTES) + 4096n }),
    memory(1),
  ),
  bad(
    'EFILESIZE',
    'a region that ends behind the file because of its offset',
    REQUEST.SET_MEM_TABLE,
    table({ fileOffset: BigInt(MEMORY_BYTES) - 4096n }),
    memory(1),
  ),
  bad(
    'EFILESIZE',
    'a region whose offset and size wrap',
    REQUEST.SET_MEM_TABLE,
    table({ fileOffset: (1n << 64n) - 4096n }),
    memory(1),
  ),
  bad(
    'EOVERLAP',
    'an added region that overlaps',
    REQUEST.ADD_MEM_REG,
    SINGLE_REGION.encode({ ...region, userAddress: 0n }),
    memory(1),
  ),
  bad('EFDCOUNT', 'an added region without a file', REQUEST.ADD_MEM_REG, SINGLE_REGION.encode(region)),
  bad(
    'EFILES',
    'an added region in another file',
    REQUEST.ADD_MEM_REG,
    SINGLE_REGION.encode({ ...region, gpa: 1n << 40n, userAddress: 0n }),
    (f) => [f.keep(native.memfdCreate('other', MEMORY_BYTES))],
  ),
  bad('ENOREGION', 'the removal of no region', REQUEST.REM_MEM_REG, SINGLE_REGION.encode(region)),

  bad('EINDEX', 'a ring index past the queues', REQUEST.SET_VRING_NUM, stateOf(4, 256)),
  bad('EINDEX', 'a huge ring index', REQUEST.SET_VRING_BASE, stateOf(0xffffffff, 0)),
  bad(
    'EINDEX',
    'addresses of a ring past the queues',
    REQUEST.SET_VRING_ADDR,
    VRING_ADDR.encode({ index: 4 }),
  ),
  bad('EFLAGS', 'unknown flags of a ring', REQUEST.SET_VRING_ADDR, VRING_ADDR.encode({ index: 0, flags: 2 })),
  bad('EBADVALUE', 'an enable of 2', REQUEST.SET_VRING_ENABLE, stateOf(0, 2)),
  bad('EINDEX', 'a kick for a ring past the queues', REQUEST.SET_VRING_KICK, NUMBER.encode(4n), oneEventfd),
  bad('EFDCOUNT', 'a kick without its descriptor', REQUEST.SET_VRING_KICK, NUMBER.encode(0n)),
  bad(
    'EFDCOUNT',
    'a call with a descriptor that it says is not there',
    REQUEST.SET_VRING_CALL,
    NUMBER.encode(0x100n),
    oneEventfd,
  ),
  bad('EBADFD', 'a file as a kick', REQUEST.SET_VRING_KICK, NUMBER.encode(0n), memory(1)),
  bad('EBADFD', 'a file as an error descriptor', REQUEST.SET_VRING_ERR, NUMBER.encode(0n), memory(1)),
  bad('EFDCOUNT', 'descriptors where none belong', REQUEST.SET_OWNER, EMPTY, (f) => [
    f.memoryFd,
    ...oneEventfd(f),
  ]),

  bad('ELOGSIZE', 'a log that is too small', REQUEST.SET_LOG_BASE, log(0x20000n, 0n), logFile),
  bad('EBADSIZE', 'an empty log', REQUEST.SET_LOG_BASE, log(0n, 0n), logFile),
  bad('EFILESIZE', 'a log that ends behind its file', REQUEST.SET_LOG_BASE, log(0x200000n, 8n), logFile),
  bad('EFILESIZE', 'a log that wraps', REQUEST.SET_LOG_BASE, log(0x200000n, (1n << 64n) - 8n), logFile),
  bad('EALIGN', 'a misaligned log', REQUEST.SET_LOG_BASE, log(0x1fff00n, 3n), logFile),
  bad('EFDCOUNT', 'a log without a file', REQUEST.SET_LOG_BASE, log(0x200000n, 0n)),
  bad('EBADFD', 'an eventfd as a log', REQUEST.SET_LOG_BASE, log(0x200000n, 0n), oneEventfd),
  bad('EBADFD', 'a file as a log signal', REQUEST.SET_LOG_FD, EMPTY, memory(1)),
];
