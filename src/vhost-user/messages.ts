/**
 * The table of the front-end's requests that a net back-end serves: number, payload, descriptors, protocol feature,
 * answer and handler of each. A request that is not in the table is refused. Sizes, descriptors, features and
 * acknowledgements are checked by the loop over this table, in back-end.ts; no row repeats them.
 */
import type { FdKind, ReceivedFds } from './descriptors.js';
import {
  exactly,
  LOG_DESCRIPTION,
  MEMORY_TABLE,
  NO_PAYLOAD,
  NUMBER,
  type Payload,
  PROTOCOL_FEATURE,
  RARP,
  REQUEST,
  RING_FD,
  SINGLE_REGION,
  VRING_ADDR,
  VRING_STATE,
  type WireRegion,
} from './protocol.js';

export type RingAddressMessage = ReturnType<typeof VRING_ADDR.decode>;

/** The part that concerns single rings. */
export interface RingRequestHandler {
  setNum(index: number, num: number): void;
  setAddress(address: RingAddressMessage): void;
  setBase(index: number, base: number): void;
  setKick(index: number, fds: ReceivedFds): void;
  setCall(index: number, fds: ReceivedFds): void;
  setErr(index: number, fds: ReceivedFds): void;
  setEnabled(index: number, enable: number): void;
}

/** The operations behind the table. Each may throw; back-end.ts turns the scope of the error into an answer. */
export interface RequestHandler {
  getFeatures(): bigint;
  setFeatures(features: bigint): Promise<void>;
  getProtocolFeatures(): bigint;
  setProtocolFeatures(features: bigint): void;
  getQueueNum(): bigint;
  setOwner(): void;
  disableRings(): void;
  resetDevice(): Promise<void>;
  getStatus(): bigint;
  setStatus(status: bigint): Promise<void>;
  getMaxMemSlots(): bigint;
  setMemTable(regions: readonly WireRegion[], fds: ReceivedFds): Promise<void>;
  addMemReg(region: WireRegion, fds: ReceivedFds): Promise<void>;
  remMemReg(region: WireRegion): Promise<void>;
  setLogBase(size: bigint, offset: bigint, fds: ReceivedFds): Promise<void>;
  setLogFd(fds: ReceivedFds): void;
  getVringBase(index: number): Promise<number>;
  readonly rings: RingRequestHandler;
  sendRarp(mac: Buffer): void;
  setMtu(mtu: bigint): void;
}

export interface FdRule<T> {
  readonly kind: FdKind;
  readonly least: (message: T) => number;
  readonly most: (message: T) => number;
}

export interface Row<T, R> {
  readonly name: keyof typeof REQUEST;
  readonly request: number;
  readonly payload: Payload<T>;
  readonly fds: FdRule<T>;
  /** The protocol feature without which the request is illegal. */
  readonly needs?: number;
  /** The request's own answer. */
  readonly reply?: Payload<R>;
  /** The answer is 0 or a refusal, as with REPLY_ACK, but comes always. */
  readonly acknowledged?: boolean;
  readonly run: (handler: RequestHandler, message: T, fds: ReceivedFds) => R | Promise<R>;
}

const none: FdRule<unknown> = { kind: 'any', least: () => 0, most: () => 0 };
const one = (kind: FdKind): FdRule<unknown> => ({ kind, least: () => 1, most: () => 1 });
/** Closed without a look: allowed "for compatibility with existing incorrect implementations". */
const ignored: FdRule<unknown> = { kind: 'any', least: () => 0, most: () => 1 };
const perRegion: FdRule<WireRegion[]> = { kind: 'file', least: (m) => m.length, most: (m) => m.length };
const hasFd = (payload: bigint): number => ((payload & RING_FD.NO_FD) === 0n ? 1 : 0);
const unlessNoFd: FdRule<bigint> = { kind: 'eventfd', least: hasFd, most: hasFd };

const state = exactly(VRING_STATE);
const ringIndex = (payload: bigint): number => Number(payload & RING_FD.INDEX_MASK);

// biome-ignore lint/suspicious/noExplicitAny: rows of different payloads share one list; `row` has checked each.
export type AnyRow = Row<any, any>;

function row<T, R>(
  name: keyof typeof REQUEST,
  payload: Payload<T>,
  fds: FdRule<T>,
  run: Row<T, R>['run'],
  more: Pick<Row<T, R>, 'needs' | 'reply' | 'acknowledged'> = {},
): AnyRow {
  return { name, request: REQUEST[name], payload, fds, run, ...more };
}

// GET_QUEUE_NUM, SEND_RARP and NET_SET_MTU need no more than that their feature "is present in
// GET_PROTOCOL_FEATURES"; the requests below need it negotiated.
const { LOG_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS } = PROTOCOL_FEATURE;

export const MESSAGES: readonly AnyRow[] = [
  row('GET_FEATURES', NO_PAYLOAD, none, (h) => h.getFeatures(), { reply: NUMBER }),
  row('SET_FEATURES', NUMBER, none, (h, m) => h.setFeatures(m)),
  row('GET_PROTOCOL_FEATURES', NO_PAYLOAD, none, (h) => h.getProtocolFeatures(), { reply: NUMBER }),
  row('SET_PROTOCOL_FEATURES', NUMBER, none, (h, m) => h.setProtocolFeatures(m)),
  row('GET_QUEUE_NUM', NO_PAYLOAD, none, (h) => h.getQueueNum(), { reply: NUMBER }),
  row('SET_OWNER', NO_PAYLOAD, none, (h) => h.setOwner()),
  // "Back-ends either ignore this message, or use it to disable all rings."
  row('RESET_OWNER', NO_PAYLOAD, none, (h) => h.disableRings()),
  row('RESET_DEVICE', NO_PAYLOAD, none, (h) => h.resetDevice(), { needs: RESET_DEVICE }),
  row('GET_STATUS', NO_PAYLOAD, none, (h) => h.getStatus(), { reply: NUMBER, needs: STATUS }),
  row('SET_STATUS', NUMBER, none, (h, m) => h.setStatus(m), { needs: STATUS }),

  row('SET_MEM_TABLE', MEMORY_TABLE, perRegion, (h, m, fds) => h.setMemTable(m, fds)),
  row('GET_MAX_MEM_SLOTS', NO_PAYLOAD, none, (h) => h.getMaxMemSlots(), {
    reply: NUMBER,
    needs: CONFIGURE_MEM_SLOTS,
  }),
  row('ADD_MEM_REG', exactly(SINGLE_REGION), one('file'), (h, m, fds) => h.addMemReg(m, fds), {
    needs: CONFIGURE_MEM_SLOTS,
  }),
  row('REM_MEM_REG', exactly(SINGLE_REGION), ignored, (h, m) => h.remMemReg(m), {
    needs: CONFIGURE_MEM_SLOTS,
  }),

  row(
    'SET_LOG_BASE',
    exactly(LOG_DESCRIPTION),
    one('file'),
    async (h, m, fds) => {
      await h.setLogBase(m.size, m.offset, fds);
      return 0n;
    },
    { reply: NUMBER, needs: LOG_SHMFD, acknowledged: true },
  ),
  row('SET_LOG_FD', NO_PAYLOAD, one('eventfd'), (h, _, fds) => h.setLogFd(fds)),

  row('SET_VRING_NUM', state, none, (h, m) => h.rings.setNum(m.index, m.num)),
  row('SET_VRING_ADDR', exactly(VRING_ADDR), none, (h, m) => h.rings.setAddress(m)),
  row('SET_VRING_BASE', state, none, (h, m) => h.rings.setBase(m.index, m.num)),
  row(
    'GET_VRING_BASE',
    state,
    none,
    async (h, m) => ({ index: m.index, num: await h.getVringBase(m.index) }),
    { reply: state },
  ),
  row('SET_VRING_KICK', NUMBER, unlessNoFd, (h, m, fds) => h.rings.setKick(ringIndex(m), fds)),
  row('SET_VRING_CALL', NUMBER, unlessNoFd, (h, m, fds) => h.rings.setCall(ringIndex(m), fds)),
  row('SET_VRING_ERR', NUMBER, unlessNoFd, (h, m, fds) => h.rings.setErr(ringIndex(m), fds)),
  row('SET_VRING_ENABLE', state, none, (h, m) => h.rings.setEnabled(m.index, m.num)),

  row('SEND_RARP', exactly(RARP), none, (h, m) => h.sendRarp(m.mac)),
  row('NET_SET_MTU', NUMBER, none, (h, m) => h.setMtu(m)),
];

export const MESSAGE_BY_REQUEST: ReadonlyMap<number, AnyRow> = new Map(MESSAGES.map((r) => [r.request, r]));
