/** A small QMP client: commands, one at a time or many, and the events that came. */
import { connect, type Socket } from 'node:net';
import { until } from './scope.js';

export interface QmpEvent {
  readonly event: string;
  readonly data?: Record<string, unknown>;
}

type Reply = { id?: number; return?: unknown; error?: { class: string; desc: string } };

export class Qmp {
  readonly events: QmpEvent[] = [];
  readonly #socket: Socket;
  readonly #waiting = new Map<number, (reply: Reply) => void>();
  #next = 1;
  #closed = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    let rest = '';
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) if (line.trim() !== '') this.#line(JSON.parse(line));
    });
    const gone = (): void => {
      this.#closed = true;
      for (const answer of this.#waiting.values()) answer({ error: { class: 'Closed', desc: 'QEMU ended' } });
      this.#waiting.clear();
    };
    socket.on('error', gone);
    socket.on('close', gone);
  }

  /** Connects as soon as the socket is there, and enters command mode. */
  static async connect(path: string, ms: number): Promise<Qmp> {
    const qmp = new Qmp(await connectUnix(path, ms));
    await qmp.run('qmp_capabilities');
    return qmp;
  }

  #line(message: Reply & Partial<QmpEvent>): void {
    if (message.event !== undefined) this.events.push(message as QmpEvent);
    if (message.id === undefined) return;
    this.#waiting.get(message.id)?.(message);
    this.#waiting.delete(message.id);
  }

  /** Runs a command; rejects with QEMU's description when it fails, or when there is no answer within `ms`. */
  run(command: string, args: Record<string, unknown> = {}, ms = 60_000): Promise<unknown> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`QMP ${command}: no answer within ${ms} ms`)), ms);
      timer.unref();
      if (this.#closed) {
        clearTimeout(timer);
        reject(new Error(`QMP ${command}: QEMU ended`));
        return;
      }
      this.#waiting.set(id, (reply) => {
        clearTimeout(timer);
        if (reply.error) reject(new Error(`QMP ${command}: ${reply.error.desc}`));
        else resolve(reply.return);
      });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** Waits for an event after the first `from` ones. */
  event(name: string, ms: number, from = 0): Promise<QmpEvent> {
    return until(`QMP event ${name}`, ms, () => this.events.slice(from).find((e) => e.event === name));
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** A connected Unix socket; tries again until `ms` have passed. */
export function connectUnix(path: string, ms: number): Promise<Socket> {
  return until(`a server on ${path.split('/').pop()}`, ms, () => tryConnect(path));
}

function tryConnect(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => resolve(socket));
    socket.once('error', () => resolve(undefined));
  });
}

/** How the migration that runs ends. */
export function migrationEnd(qmp: Qmp, ms: number): Promise<string> {
  return until('migration ends', ms, async () => {
    const { status } = (await qmp.run('query-migrate')) as { status?: string };
    return ['completed', 'failed', 'cancelled'].includes(status ?? '') && status;
  });
}
