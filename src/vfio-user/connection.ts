/**
 * The client's end of a connection: requests, told apart by their ids so that many may be under way, each with a time
 * limit; and the end of the connection, which fails them all. Knows no command's meaning.
 */
import { closeAll, FramedSocket } from '../sys/framed-socket.js';
import { errorText, VhostPciError } from '../util/errors.js';
import {
  COMMANDS,
  type CommandName,
  commandName,
  connectionError,
  encodeMessage,
  errnoName,
  errnoOf,
  FRAMING,
  HEADER_FLAG,
  Header,
} from './protocol.js';

export interface Answer {
  readonly payload: Buffer;
  /** The receiver's, who closes them. */
  readonly fds: number[];
}

interface Pending {
  readonly command: CommandName;
  readonly maxFds: number;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
  /** Its caller has been told that time is up; the reply may still come. */
  late: boolean;
}

export interface RequestOptions {
  readonly payload?: Uint8Array;
  readonly fds?: readonly number[];
  /** Most file descriptors that the reply may carry; default 0. */
  readonly maxFds?: number;
}

export class ClientConnection implements Disposable {
  readonly #name: string;
  readonly #timeoutMs: number;
  readonly #socket: FramedSocket;
  readonly #pending = new Map<number, Pending>();
  #nextId = 0;
  #ended: Error | undefined;
  readonly #closed: (error: Error) => void;

  /** Takes over `fd`. `closed` is called once, with the reason. `name` is for messages. */
  constructor(fd: number, name: string, timeoutMs: number, closed: (error: Error) => void) {
    this.#name = name;
    this.#timeoutMs = timeoutMs;
    this.#closed = closed;
    this.#socket = new FramedSocket(fd, FRAMING, {
      message: (data, fds) => this.#message(data, fds),
      closed: (error) => this.#end(error),
    });
  }

  /**
   * Sends a request; resolves with the reply. Rejects with the errno's name as code when the server refuses it (scope
   * `message`), with ETIMEDOUT, or with the reason why the connection ended (scope `connection`).
   */
  request(command: CommandName, { payload, fds = [], maxFds = 0 }: RequestOptions = {}): Promise<Answer> {
    if (this.#ended) return Promise.reject(this.#ended);
    const id = this.#freeId();
    if (id === undefined)
      return Promise.reject(
        new VhostPciError('message', 'EBUSY', `${this.#name}: too many requests under way`),
      );
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#expire(id), this.#timeoutMs);
      this.#pending.set(id, { command, maxFds, resolve, reject, timer, late: false });
      const header = { id, command: COMMANDS[command].command, flags: HEADER_FLAG.COMMAND };
      this.#socket.send(payload ? encodeMessage(header, payload) : encodeMessage(header), fds);
    });
  }

  close(error: Error): void {
    this.#ended ??= error;
    this.#socket.close(error);
  }

  [Symbol.dispose](): void {
    this.close(connectionError('ECANCELED', `${this.#name}: closed`));
  }

  #freeId(): number | undefined {
    for (let tries = 0; tries <= 0xffff; tries++) {
      const id = this.#nextId;
      this.#nextId = (id + 1) & 0xffff;
      if (!this.#pending.has(id)) return id;
    }
    return undefined;
  }

  #expire(id: number): void {
    const pending = this.#pending.get(id);
    if (!pending) return;
    // The id stays taken: the reply of a server that was only stopped for a while is still expected.
    pending.late = true;
    pending.reject(
      new VhostPciError(
        'message',
        'ETIMEDOUT',
        `${this.#name}: no reply to ${pending.command} within ${this.#timeoutMs} ms`,
      ),
    );
  }

  #end(error: Error | undefined): void {
    // A server that ends with requests unread resets the connection instead of closing it.
    const code = (error as NodeJS.ErrnoException | undefined)?.code ?? 'ECONNRESET';
    const left = code === 'ECONNRESET' || code === 'EPIPE';
    const why = left ? 'the server closed the connection' : errorText(error);
    this.#ended ??= connectionError(left ? 'ECONNRESET' : code, `${this.#name}: ${why}`, error);
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { timer, late, reject } of pending) {
      clearTimeout(timer);
      if (!late) reject(this.#ended);
    }
    this.#closed(this.#ended);
  }

  #message(data: Buffer, fds: number[]): void {
    try {
      const header = Header.decode(data);
      if ((header.flags & HEADER_FLAG.TYPE_MASK) === HEADER_FLAG.COMMAND) this.#command(header);
      else this.#reply(header, data.subarray(Header.size), fds);
    } finally {
      closeAll(fds);
    }
  }

  /** Servers may ask for memory that they cannot map (DMA_READ, DMA_WRITE); ours is always mappable. */
  #command(header: { id: number; command: number; flags: number }): void {
    const name = commandName(header.command);
    if (!name || COMMANDS[name].from !== 'server')
      throw connectionError('EPROTO', `the server sent command ${header.command}`);
    if (header.flags & HEADER_FLAG.NO_REPLY) return;
    const flags = HEADER_FLAG.REPLY | HEADER_FLAG.ERROR;
    this.#socket.send(encodeMessage({ ...header, flags, error: errnoOf({ code: 'ENOTSUP' }) }));
  }

  /** Takes the fds out of the list when the caller gets them. */
  #reply(
    header: { id: number; command: number; flags: number; error: number },
    payload: Buffer,
    fds: number[],
  ): void {
    const pending = this.#pending.get(header.id);
    if (!pending) throw connectionError('EPROTO', 'a reply that nobody asked for');
    const { command, maxFds, resolve, reject, timer, late } = pending;
    if (header.command !== COMMANDS[command].command)
      throw connectionError('EPROTO', `a reply to command ${header.command}, ${command} was asked`);
    if (fds.length > maxFds)
      throw connectionError('EPROTO', `${fds.length} file descriptors in a reply to ${command}`);
    clearTimeout(timer);
    this.#pending.delete(header.id);
    if (late) return;
    if (header.flags & HEADER_FLAG.ERROR) {
      const errno = header.error === 0 ? 'EIO' : errnoName(header.error);
      reject(new VhostPciError('message', errno, `${this.#name}: ${command} was refused: ${errno}`));
    } else resolve({ payload, fds: fds.splice(0) });
  }
}
