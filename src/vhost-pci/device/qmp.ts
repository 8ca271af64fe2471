/**
 * A client of QEMU's machine protocol (QMP): commands and events, one JSON object a line. Trusts QEMU no further than that it
 * ends its lines. Knows no command but the one that opens a session.
 */
import { connect, type Socket } from 'node:net';
import { VhostPciError } from '../../util/errors.js';

/** The connection cannot be made or has ended: most likely QEMU has. */
export const QMP_GONE = 'EQMPGONE';
/** QEMU does not answer; its QMP socket serves one client at a time. */
export const QMP_BUSY = 'EQMPBUSY';

/** QEMU refused a command. */
export class QmpRefusal extends Error {
  /** Such as `GenericError`, `DeviceNotFound`. */
  readonly errorClass: string;

  constructor(errorClass: string, text: string) {
    super(text);
    this.errorClass = errorClass;
  }
}

interface Reply {
  readonly id?: unknown;
  readonly QMP?: unknown;
  readonly return?: unknown;
  readonly error?: { readonly class?: unknown; readonly desc?: unknown };
  readonly event?: unknown;
  readonly data?: Readonly<Record<string, unknown>>;
}

interface Awaited {
  readonly matches: (reply: Reply) => boolean;
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
}

/** Longest line taken; QEMU's answers to our commands are short. */
const LONGEST_LINE = 1 << 20;

export class QmpClient implements Disposable {
  readonly #path: string;
  readonly #socket: Socket;
  readonly #awaited = new Set<Awaited>();
  #next = 1;
  #rest = '';
  #ended: Error | undefined;

  private constructor(path: string, socket: Socket) {
    this.#path = path;
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#received(text));
    socket.on('error', (error) => this.#end(error.message));
    socket.on('close', () => this.#end('it has ended'));
  }

  /**
   * Connects and opens the session. Throws EQMPGONE when nobody listens, EQMPBUSY when nobody greets within `limitMs`,
   * EQMPBAD for what is no QMP, and an AbortError when `signal` says so.
   */
  static async connect(path: string, limitMs: number, signal: AbortSignal): Promise<QmpClient> {
    signal.throwIfAborted();
    const client = new QmpClient(path, connect(path));
    const abort = (): void => client.#end('it was given up');
    signal.addEventListener('abort', abort, { once: true });
    client.#socket.once('close', () => signal.removeEventListener('abort', abort));
    try {
      await client.#await((reply) => reply.QMP !== undefined, limitMs);
      await client.run('qmp_capabilities', {}, limitMs);
      return client;
    } catch (error) {
      client[Symbol.dispose]();
      signal.throwIfAborted();
      throw error;
    }
  }

  /** Resolves to what the command returns. Throws QmpRefusal, EQMPBUSY without an answer in time, EQMPGONE. */
  async run(command: string, args: object, limitMs: number): Promise<unknown> {
    const id = this.#next++;
    const answer = this.#await((reply) => reply.id === id, limitMs);
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    const { error, return: value } = await answer;
    if (!error) return value;
    throw new QmpRefusal(String(error.class), String(error.desc));
  }

  /** Resolves with the next event of this name whose `device` is the given; to be asked for before its cause. */
  async event(names: readonly string[], device: string, limitMs: number): Promise<string> {
    const { event } = await this.#await(
      (reply) => names.includes(String(reply.event)) && reply.data?.device === device,
      limitMs,
    );
    return String(event);
  }

  [Symbol.dispose](): void {
    this.#end('it was closed');
  }

  async #await(matches: (reply: Reply) => boolean, limitMs: number): Promise<Reply> {
    if (this.#ended) throw this.#ended;
    let timer: NodeJS.Timeout | undefined;
    let awaited: Awaited | undefined;
    try {
      return await new Promise<Reply>((resolve, reject) => {
        awaited = { matches, resolve, reject };
        this.#awaited.add(awaited);
        const late = `nothing came from QEMU on ${this.#path} within ${limitMs / 1000} s`;
        timer = setTimeout(() => reject(new VhostPciError('connection', QMP_BUSY, late)), limitMs);
      });
    } finally {
      clearTimeout(timer);
      if (awaited) this.#awaited.delete(awaited);
    }
  }

  #received(text: string): void {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    const replies = lines.filter((line) => line.trim() !== '').map(parse);
    for (const reply of replies)
      for (const awaited of this.#awaited) if (reply && awaited.matches(reply)) awaited.resolve(reply);
    if (this.#rest.length > LONGEST_LINE || replies.includes(undefined))
      this.#end('it does not speak QMP', 'EQMPBAD');
  }

  #end(why: string, code = QMP_GONE): void {
    this.#ended ??= new VhostPciError('connection', code, `QEMU on ${this.#path}: ${why}`);
    for (const { reject } of this.#awaited) reject(this.#ended);
    this.#socket.destroy();
  }
}

/** The object in a line, or undefined. */
function parse(line: string): Reply | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}
