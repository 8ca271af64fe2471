/**
 * One client of a server: the loop over the command table. Sizes, file descriptors, the order of VERSION and the form
 * of replies are dealt with here, once; what commands mean is in commands.ts.
 */
import { closeAll, FramedSocket } from '../sys/framed-socket.js';
import { errorText, VhostPciError } from '../util/errors.js';
import type { Log } from '../util/log.js';
import { HANDLERS, type Request, type ServerContext } from './commands.js';
import { DmaTable } from './dma-table.js';
import { IrqVectors } from './irq-vectors.js';
import {
  COMMANDS,
  type CommandRow,
  commandName,
  connectionError,
  encodeMessage,
  errnoOf,
  FRAMING,
  HEADER_FLAG,
  Header,
  refuse,
} from './protocol.js';
import type { ServedDevice } from './served-device.js';

export class ServerSession implements Disposable {
  readonly #context: ServerContext;
  readonly #socket: FramedSocket;
  readonly #log: Log;

  /** Takes over `fd`. `ended` is called once, when no request runs any more and the device has let go. */
  constructor(fd: number, device: ServedDevice, log: Log, ended: () => void) {
    this.#log = log;
    const irqs = new IrqVectors((index, start, count) => device.irqsChanged?.(index, start, count));
    this.#context = { device, log, irqs, dma: new DmaTable(), client: undefined };
    let running: Promise<void> = Promise.resolve();
    this.#socket = new FramedSocket(fd, FRAMING, {
      message: (data, fds) => {
        running = this.#message(data, fds);
        return running;
      },
      closed: (error) => {
        // A request that still runs may use the memory: the device lets go after it.
        void running.catch(() => {}).then(() => this.#end(error, ended));
      },
    });
    try {
      device.attached(this.#context);
    } catch (error) {
      log.error(`attaching the device: ${errorText(error)}`);
      this.#socket.close(error as Error);
    }
  }

  get irqs(): IrqVectors {
    return this.#context.irqs;
  }

  get dma(): DmaTable {
    return this.#context.dma;
  }

  /** Its connection is over, and the device has not let go yet. */
  get isEnding(): boolean {
    return this.#socket.closed;
  }

  close(error?: Error): void {
    this.#socket.close(error);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #end(error: Error | undefined, ended: () => void): Promise<void> {
    const { device, irqs, dma } = this.#context;
    // vfio-user, "Client Disconnection": memory is unmapped and eventfds are closed, the device keeps its state.
    try {
      // QEMU does so after an answer that came later than its x-msg-timeout.
      if ((error as { code?: string } | undefined)?.code === 'ESHUTDOWN') await device.unheard?.();
      irqs.clearAll();
      await device.detached(error);
    } catch (failure) {
      this.#log.error(`detaching the device: ${errorText(failure)}`);
    }
    dma.clear();
    ended();
  }

  async #message(data: Buffer, fds: number[]): Promise<void> {
    const header = Header.decode(data);
    const row: CommandRow | undefined = COMMANDS[commandName(header.command) ?? ('' as never)];
    const what = row?.name ?? `command ${header.command}`;
    const request: Request = { payload: data.subarray(Header.size), fds };
    const answer = { id: header.id, command: header.command };
    const silent = (header.flags & HEADER_FLAG.NO_REPLY) !== 0;
    try {
      if ((header.flags & HEADER_FLAG.TYPE_MASK) === HEADER_FLAG.REPLY)
        throw connectionError('EPROTO', 'a reply that nobody asked for');
      this.#check(row, request);
      const reply = await HANDLERS[commandName(header.command)!](request, this.#context);
      if (!silent)
        this.#socket.send(
          encodeMessage({ ...answer, flags: HEADER_FLAG.REPLY }, reply?.payload ?? Buffer.alloc(0)),
          reply?.fds,
        );
    } catch (error) {
      if (!(error instanceof VhostPciError)) this.#log.warn(`${what} failed: ${errorText(error)}`);
      else this.#log.debug(`${what} refused: ${error.code}, ${error.message}`);
      const fatal = error instanceof VhostPciError && error.scope === 'connection';
      if (!silent && (header.flags & HEADER_FLAG.TYPE_MASK) === HEADER_FLAG.COMMAND) {
        // vfio-user, "Header": an error reply is the header alone.
        const flags = HEADER_FLAG.REPLY | HEADER_FLAG.ERROR;
        this.#socket.send(encodeMessage({ ...answer, flags, error: errnoOf(error) }));
      }
      if (fatal) throw new VhostPciError('connection', error.code, `${what}: ${error.message}`);
    } finally {
      // Whoever keeps an fd has taken it out of the list.
      closeAll(request.fds);
    }
  }

  /** What is wrong with the form of a request ends the connection, after an error reply. */
  #check(row: CommandRow | undefined, { payload, fds }: Request): void {
    if (this.#context.client === undefined ? row !== COMMANDS.VERSION : row === COMMANDS.VERSION)
      throw connectionError('EPROTO', 'VERSION has to be the first command, once');
    if (!row) throw refuse('ENOTSUP', 'an unknown command');
    if (row.from !== 'client') throw connectionError('EPROTO', 'a command that only servers send');
    const fixed = row.request?.size ?? 0;
    if (payload.length < fixed || payload.length > fixed + row.extra)
      throw connectionError('EINVAL', `${payload.length} bytes of payload`);
    if (fds.length > row.fds) throw connectionError('EINVAL', `${fds.length} file descriptors`);
  }
}
