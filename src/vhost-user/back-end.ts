/**
 * A vhost-user back-end on one connection: the loop over the message table. Checks what is the same for all requests
 * (header, size, descriptors, features), runs the row's handler and answers. What requests mean is in requests.ts.
 *
 * An error ends as its scope says: a RingError breaks that ring and the connection goes on; `message` refuses the request;
 * everything else drops the connection, after a refusal when one was asked for. Nothing of it reaches another peer.
 */
import { FramedSocket, type Framing } from '../sys/framed-socket.js';
import { errorText, VhostPciError } from '../util/errors.js';
import { hasBit } from '../util/flags.js';
import { type Log, silentLog } from '../util/log.js';
import { checkFdKind, ReceivedFds } from './descriptors.js';
import type { BackEndDevice } from './device.js';
import { type AnyRow, MESSAGE_BY_REQUEST } from './messages.js';
import { MutablePeerState, type PeerState } from './peer-state.js';
import {
  checkHeader,
  encodeMessage,
  FLAG,
  HEADER,
  NUMBER,
  PROTOCOL_FEATURE,
  REPLY_FLAGS,
  requestName,
} from './protocol.js';
import { Requests } from './requests.js';
import { RingError } from './ring-state.js';

const ACCEPTED = 0n;
const REFUSED = 1n;

interface Message {
  readonly request: number;
  readonly flags: number;
  readonly payload: Buffer;
}

export class BackEnd implements AsyncDisposable {
  /** Resolves when the connection is over and every descriptor of it is closed. Never rejects. */
  readonly done: Promise<void>;
  readonly #state: MutablePeerState;
  readonly #device: BackEndDevice;
  readonly #requests: Requests;
  readonly #socket: FramedSocket;
  readonly #log: Log;
  #pending: Promise<void> = Promise.resolve();
  #over!: () => void;

  /** Takes over `fd`, a connected socket. Requests are served from the next turn of the event loop on. */
  constructor(fd: number, device: BackEndDevice, log: Log = silentLog) {
    this.#device = device;
    this.#log = log;
    this.#state = new MutablePeerState(2 * device.queuePairs);
    this.#requests = new Requests(this.#state, device);
    this.done = new Promise((resolve) => {
      this.#over = resolve;
    });
    const framing: Framing = {
      headerBytes: HEADER.size,
      totalBytes: (header) => this.#totalBytes(header),
    };
    this.#socket = new FramedSocket(fd, framing, {
      message: (data, fds) => {
        // Deferred, so that `#pending` is this request also when its handler closes the connection.
        this.#pending = Promise.resolve().then(() => this.#serve(data, fds));
        return this.#pending;
      },
      closed: (error) => void this.#closed(error),
    });
  }

  /** What the peer has said so far; live. */
  get state(): PeerState {
    return this.#state;
  }

  get isClosed(): boolean {
    return this.#socket.closed;
  }

  /** The front-end has ended; known before the request in progress is done. */
  get hungUp(): boolean {
    return this.#socket.hungUp;
  }

  /** Gives a ring up, for a fault that the data path met. The front-end is told through the ring's error eventfd. */
  breakRing(index: number, cause: string): void {
    if (!this.#socket.closed) this.#requests.rings.break(index, cause);
  }

  /** Ends the connection; `done` tells when everything is released. Idempotent. */
  close(error?: Error): void {
    this.#socket.close(error);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.done;
  }

  #totalBytes(header: Buffer): number {
    try {
      return checkHeader(header, false);
    } catch (error) {
      // The payload is not read any more, but whoever waits for an answer gets it.
      const { request, flags } = HEADER.decode(header);
      if (this.#wantsAck(flags)) this.#answer(request, REFUSED);
      throw error;
    }
  }

  async #serve(data: Buffer, received: number[]): Promise<void> {
    using fds = new ReceivedFds(received);
    const { request, flags } = HEADER.decode(data);
    const message = { request, flags, payload: data.subarray(HEADER.size) };
    const row = MESSAGE_BY_REQUEST.get(request);
    if (this.#socket.closed) return;
    const answered = row?.acknowledged || (!row?.reply && this.#wantsAck(flags));
    try {
      const result = await this.#run(row, message, fds);
      if (row?.reply) this.#reply(request, row.reply.encode(result));
      else if (answered) this.#answer(request, ACCEPTED);
    } catch (cause) {
      if (this.#socket.closed) return;
      if (answered) this.#answer(request, REFUSED);
      if (cause instanceof RingError) return;
      const error = named(request, cause);
      // A refusal that nobody hears would let the front-end go on with what it believes to be agreed.
      if (error.scope === 'message' && answered) {
        this.#log.warn({ code: error.code }, error.message);
        return;
      }
      throw error;
    }
  }

  /** Checks a message against its row and runs it. */
  async #run(row: AnyRow | undefined, message: Message, fds: ReceivedFds): Promise<unknown> {
    if (!row) throw refuse('EREQUEST', 'this request is not served');
    if (row.needs !== undefined && !hasBit(this.#state.protocolFeatures, row.needs))
      throw refuse('EREQUEST', `protocol feature ${featureName(row.needs)} was not negotiated`);
    const size = row.payload.sizeOf(message.payload);
    if (message.payload.length !== size)
      throw refuse('EBADSIZE', `${message.payload.length} bytes of payload, ${size} are right`);
    const value = row.payload.decode(message.payload);
    const count = fds.all.length;
    if (count < row.fds.least(value) || count > row.fds.most(value))
      throw refuse('EFDCOUNT', `${count} file descriptors, ${row.fds.most(value)} are right`);
    for (const fd of fds.all) checkFdKind(fd, row.fds.kind);
    try {
      return await row.run(this.#requests, value, fds);
    } catch (error) {
      if (error instanceof RingError) {
        this.#log.warn({ code: error.code, ring: error.index }, `${row.name}: ${error.message}`);
        this.#requests.rings.break(error.index, `${row.name}: ${error.message}`);
      }
      throw error;
    }
  }

  #wantsAck(flags: number): boolean {
    return (
      (flags & FLAG.NEED_REPLY) !== 0 && hasBit(this.#state.protocolFeatures, PROTOCOL_FEATURE.REPLY_ACK)
    );
  }

  #answer(request: number, value: bigint): void {
    this.#reply(request, NUMBER.encode(value));
  }

  #reply(request: number, payload: Buffer): void {
    this.#socket.send(encodeMessage(request, REPLY_FLAGS, payload));
  }

  async #closed(error?: Error): Promise<void> {
    this.#state.over = true;
    // The device first: it settles what the request in progress may be waiting for.
    const released = this.#releaseDevice(error);
    await this.#pending.catch(() => undefined);
    await released;
    this.#state[Symbol.dispose]();
    this.#over();
  }

  async #releaseDevice(error?: Error): Promise<void> {
    try {
      await this.#device.closed(error);
    } catch (cause) {
      this.#log.error(`the device failed to let go of the peer: ${errorText(cause)}`);
    }
  }
}

const refuse = (code: string, message: string): VhostPciError =>
  new VhostPciError('connection', code, message);

const featureName = (bit: number): string =>
  Object.entries(PROTOCOL_FEATURE).find(([, n]) => n === bit)?.[0] ?? String(bit);

/** The error with the request's name in front. What is not ours (EMFILE, a device's bug) ends the connection. */
function named(request: number, cause: unknown): VhostPciError {
  const message = `${requestName(request)}: ${errorText(cause)}`;
  return cause instanceof VhostPciError
    ? new VhostPciError(cause.scope, cause.code, message, { cause })
    : new VhostPciError('connection', (cause as { code?: string })?.code ?? 'EFAIL', message, { cause });
}
