/**
 * The front-end's end of a connection: sends requests and gives every answer to the request that it belongs to. Knows
 * the header only.
 */
import { closeAll, FramedSocket } from '../sys/framed-socket.js';
import { VhostPciError } from '../util/errors.js';
import { encodeMessage, HEADER, REPLY_FLAGS, REPLY_FRAMING, requestName } from './protocol.js';

interface Expected {
  readonly request: number;
  resolve(payload: Buffer): void;
  reject(error: Error): void;
}

export class RequestChannel {
  /** Resolves when the connection is over, with the error if there was one. Never rejects. */
  readonly closed: Promise<Error | undefined>;
  readonly #socket: FramedSocket;
  /** In the order of the requests: a back-end answers one after the other. */
  readonly #expected: Expected[] = [];

  /** Takes over `fd`, a connected socket. */
  constructor(fd: number) {
    let over: (error: Error | undefined) => void;
    this.closed = new Promise((resolve) => {
      over = resolve;
    });
    this.#socket = new FramedSocket(fd, REPLY_FRAMING, {
      message: (data, fds) => this.#replied(data, fds),
      closed: (error) => {
        for (const { request, reject } of this.#expected.splice(0)) reject(error ?? closedError(request));
        over(error);
      },
    });
  }

  send(request: number, payload: Uint8Array, fds: readonly number[], flags: number): void {
    this.#socket.send(encodeMessage(request, flags, payload), fds);
  }

  exchange(request: number, payload: Uint8Array, fds: readonly number[], flags: number): Promise<Buffer> {
    if (this.#socket.closed) return Promise.reject(closedError(request));
    return new Promise((resolve, reject) => {
      this.#expected.push({ request, resolve, reject });
      this.send(request, payload, fds, flags);
    });
  }

  close(): void {
    this.#socket.close();
  }

  #replied(data: Buffer, fds: number[]): void {
    const { request, flags } = HEADER.decode(data);
    const expected = this.#expected.shift();
    if (!expected || expected.request !== request || flags !== REPLY_FLAGS || fds.length > 0) {
      closeAll(fds);
      const error = new VhostPciError(
        'connection',
        'EREPLY',
        `${requestName(request)}: an unexpected answer`,
      );
      expected?.reject(error);
      throw error;
    }
    expected.resolve(data.subarray(HEADER.size));
  }
}

function closedError(request: number): VhostPciError {
  return new VhostPciError('connection', 'ECLOSED', `${requestName(request)}: the connection is closed`);
}
