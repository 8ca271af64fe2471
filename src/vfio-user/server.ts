/**
 * A vfio-user server: serves one device to one client at a time, on a Unix socket of its own or on a connection that
 * somebody else made. Survives every client.
 */
import { closeSync } from 'node:fs';
import { UnixServer } from '../sys/unix-server.js';
import { errorText } from '../util/errors.js';
import { type Log, silentLog } from '../util/log.js';
import type { ServedDevice } from './served-device.js';
import { ServerSession } from './session.js';

export interface ServerOptions {
  /** Socket to listen on. Without it, connections come by `serve`. */
  readonly path?: string;
  readonly log?: Log;
}

/**
 * How long a second connection waits for the first to end. The end of a killed client and the arrival of its successor may
 * be seen in either order.
 */
const GRACE_MS = 300;

export class Server implements AsyncDisposable {
  readonly #device: ServedDevice;
  readonly #log: Log;
  readonly #listener: UnixServer | undefined;
  #session: ServerSession | undefined;
  #idle: Promise<void> = Promise.resolve();
  #waiting: { fd: number; timer: NodeJS.Timeout } | undefined;
  #closed = false;

  /** Throws a usage error when `path` cannot be listened on. */
  constructor(device: ServedDevice, options: ServerOptions = {}) {
    this.#device = device;
    this.#log = options.log ?? silentLog;
    this.#listener =
      options.path === undefined ? undefined : new UnixServer(options.path, (fd) => this.serve(fd));
  }

  /** The client's session, while there is one. */
  get session(): ServerSession | undefined {
    return this.#session;
  }

  /** Takes over a connected non-blocking socket. */
  serve(fd: number): void {
    if (this.#closed) closeSync(fd);
    else if (!this.#session) this.#start(fd);
    else if (this.#waiting) this.#refuse(fd);
    else {
      const timer = setTimeout(() => {
        // The first is on its way out: it is waited for.
        if (this.#session?.isEnding) return;
        this.#waiting = undefined;
        this.#refuse(fd);
      }, GRACE_MS);
      this.#waiting = { fd, timer };
    }
  }

  /** Ends the client's connection, if there is one; resolves when the device has let go of it. */
  async disconnect(reason?: Error): Promise<void> {
    this.#session?.close(reason);
    await this.#idle;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#listener?.close();
    this.#dropWaiting();
    await this.disconnect();
  }

  #start(fd: number): void {
    this.#log.info('client connected');
    let done = () => {};
    this.#idle = new Promise((resolve) => {
      done = resolve;
    });
    try {
      this.#session = new ServerSession(fd, this.#device, this.#log, () => {
        this.#session = undefined;
        done();
        this.#startWaiting();
      });
    } catch (error) {
      // Out of file descriptors or memory: this client loses, the device goes on.
      this.#log.error(`a client could not be served: ${errorText(error)}`);
      done();
    }
  }

  #startWaiting(): void {
    if (!this.#waiting) return;
    const { fd, timer } = this.#waiting;
    clearTimeout(timer);
    this.#waiting = undefined;
    this.#start(fd);
  }

  #refuse(fd: number): void {
    this.#log.warn('a second client was refused: the device serves one at a time');
    closeSync(fd);
  }

  #dropWaiting(): void {
    if (!this.#waiting) return;
    clearTimeout(this.#waiting.timer);
    closeSync(this.#waiting.fd);
    this.#waiting = undefined;
  }
}
