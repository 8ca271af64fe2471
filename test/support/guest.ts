/** Commands in a test guest, over the serial port that guest/init serves. */
import type { Socket } from 'node:net';
import { connectUnix } from './qmp.js';
import { until } from './scope.js';

export interface GuestResult {
  readonly output: string;
  readonly status: number;
}

/** guest/init ends each answer with this byte, the command's number and its exit status. */
const MARK = '\x1e';
/**
 * A guest on a busy host now and then loses bytes of its serial port, mostly the first ones after a pause. So a command
 * carries its length and is confirmed; one that is not, or whose end does not come, is sent again, and the guest
 * runs none twice. Blanks before it mean nothing.
 */
const PADDING = ' '.repeat(32);
const CONFIRM_MS = 2000;
const ANSWER_MS = 10_000;

export class GuestShell {
  readonly #socket: Socket;
  #received = '';
  #next = 1;
  #boots = 0;
  #gone = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      this.#received += text;
      const ready = this.#received.lastIndexOf(`${MARK}ready 0\n`);
      if (ready < 0) return;
      this.#boots += this.#received.split(`${MARK}ready 0\n`).length - 1;
      this.#received = this.#received.slice(ready + `${MARK}ready 0\n`.length);
    });
    const gone = (): void => {
      this.#gone = true;
    };
    socket.on('error', gone);
    socket.on('close', gone);
  }

  /** Connects before the guest gets as far as serving, so that its ready mark is not missed. */
  static async connect(path: string): Promise<GuestShell> {
    return new GuestShell(await connectUnix(path, 20_000));
  }

  /** How often the guest has come up. */
  get boots(): number {
    return this.#boots;
  }

  /** Waits until the guest has come up `boots` times. */
  async ready(boots: number, ms: number, detail: () => string): Promise<void> {
    await until(
      `guest is up (${boots})`,
      ms,
      () => {
        if (this.#gone) throw new Error(`QEMU ended before its guest was up${detail()}`);
        return this.#boots >= boots;
      },
      detail,
    );
  }

  /** Runs a shell command to its end; commands are run one after the other by the guest. */
  async run(command: string, ms: number): Promise<GuestResult> {
    const id = this.#next++;
    const end = new RegExp(`\\n?${MARK}${id} (\\d+)\\n`);
    // The confirmation, and answers to earlier commands that were sent twice.
    const noise = new RegExp(`\\n?${MARK}(${id} ack|(?!${id} )\\S* \\S+)\\n`);
    const boots = this.#boots;
    const encoded = Buffer.from(command).toString('base64');
    let resendAt = 0;
    const send = (patience: number): void => {
      this.#socket.write(`${PADDING}${id} ${encoded.length} ${encoded}\n`);
      resendAt = Date.now() + patience;
    };
    send(CONFIRM_MS);
    let confirmed = false;
    return until(
      `guest runs: ${command}`,
      ms,
      () => {
        if (this.#gone) throw new Error(`QEMU ended while its guest ran: ${command}`);
        if (this.#boots !== boots) throw new Error(`the guest restarted while it ran: ${command}`);
        for (let cut = noise.exec(this.#received); cut; cut = noise.exec(this.#received)) {
          this.#received =
            this.#received.slice(0, cut.index) + this.#received.slice(cut.index + cut[0].length);
          if (cut[1] !== `${id} ack`) continue;
          confirmed = true;
          resendAt = Date.now() + ANSWER_MS;
        }
        const found = end.exec(this.#received);
        if (!found) {
          if (Date.now() > resendAt) send(confirmed ? ANSWER_MS : CONFIRM_MS);
          return undefined;
        }
        const output = this.#received.slice(0, found.index);
        this.#received = this.#received.slice(found.index + found[0].length);
        return { output: output.trim(), status: Number(found[1]) };
      },
      () => `\n--- so far: ${this.#received}`,
    );
  }

  close(): void {
    this.#socket.destroy();
  }
}
