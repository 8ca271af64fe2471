/**
 * Hot-plug of the device into the receiving VM, by its QEMU's QMP socket (D5): `plug` when the peer's memory is there,
 * `unplug` when the peer has gone. Keeps trying towards what was asked last, and says in the log what is in the way. A
 * session lasts as long as one step: the socket serves one client at a time, and others may want it too.
 */
import { createHash } from 'node:crypto';
import { resolve } from 'node:path';
import { errorText, VhostPciError } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { QMP_BUSY, QMP_GONE, QmpClient, QmpRefusal } from './qmp.js';

export interface ReceiverPlugOptions {
  /** The QMP socket of the receiver's QEMU. */
  readonly qmp: string;
  /** Id of a bus there that takes a hot-plugged device: a pcie-root-port. */
  readonly bus: string;
  /** Our socket, as that QEMU can reach it. */
  readonly vfioUser: string;
  readonly log: Log;
  readonly limits?: Partial<Limits>;
}

interface Limits {
  /** QEMU's greeting. */
  readonly greetMs: number;
  /** An answer: QEMU initialises the device in the meantime, by a good many messages to us. */
  readonly answerMs: number;
  /** The receiving guest's letting go. */
  readonly unplugMs: number;
  readonly retryMs: number;
}

const LIMITS: Limits = { greetMs: 5000, answerMs: 30_000, unplugMs: 30_000, retryMs: 1000 };
const DRIVER = 'vfio-user-pci';

export class ReceiverPlug implements AsyncDisposable {
  /** The device's id in that QEMU: the same for the same socket, so that what a killed process left is known again. */
  readonly id: string;
  readonly #options: ReceiverPlugOptions;
  readonly #limits: Limits;
  readonly #log: Log;
  readonly #abort = new AbortController();
  #wanted = false;
  /** Undefined: not known. */
  #present: boolean | undefined = false;
  #running: Promise<void> | undefined;
  readonly #waiters = new Set<() => void>();
  #wake: (() => void) | undefined;
  #told = '';

  constructor(options: ReceiverPlugOptions) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#log = options.log;
    const path = resolve(options.vfioUser);
    this.id = `vhost-pci-${createHash('sha256').update(path).digest('hex').slice(0, 8)}`;
  }

  /** The device is there to be plugged in; the socket is served. Returns at once. */
  plug(): void {
    this.#wanted = true;
    this.#run();
  }

  /** Resolves to true when the receiving VM has no such device (any more), to false after `limitMs`. */
  async unplug(limitMs: number): Promise<boolean> {
    this.#wanted = false;
    if (this.#present === false && !this.#running) return true;
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<boolean>((done) => {
      timer = setTimeout(done, limitMs, false);
    });
    let waiter = (): void => {};
    const out = new Promise<boolean>((done) => {
      waiter = () => done(!this.#wanted && this.#present === false);
    });
    this.#waiters.add(waiter);
    this.#run();
    const outcome = await Promise.race([out, limit]);
    clearTimeout(timer);
    this.#waiters.delete(waiter);
    return outcome;
  }

  /** The receiver has closed its connection: its VM has ended, or somebody else has unplugged the device. */
  receiverGone(): void {
    if (!this.#present) return;
    this.#present = undefined;
    this.#run();
  }

  /** Tries no more. What is plugged in stays. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    this.#wake?.();
    await this.#running;
    this.#release();
  }

  #run(): void {
    this.#wake?.();
    if (this.#running || this.#settled) return;
    this.#running = this.#work().finally(() => {
      this.#running = undefined;
      this.#run();
    });
  }

  get #settled(): boolean {
    return this.#abort.signal.aborted || this.#wanted === this.#present;
  }

  async #work(): Promise<void> {
    while (!this.#settled) {
      try {
        // A VM that has ended takes some time to be started again.
        if (this.#wanted && this.#present === undefined) await this.#nap();
        await (this.#wanted ? this.#add() : this.#remove());
        this.#told = '';
      } catch (error) {
        if (this.#abort.signal.aborted) return;
        this.#tell(error);
        await this.#nap();
      }
    }
    if (this.#present === false) this.#release();
  }

  /** A pause, cut short when something else is wanted. */
  async #nap(): Promise<void> {
    await new Promise<void>((done) => {
      const timer = setTimeout(done, this.#limits.retryMs);
      this.#wake = () => {
        clearTimeout(timer);
        done();
      };
    });
    this.#wake = undefined;
  }

  #release(): void {
    for (const done of this.#waiters) done();
  }

  async #add(): Promise<void> {
    const { bus, vfioUser } = this.#options;
    using qmp = await this.#connect();
    const device = { driver: DRIVER, id: this.id, bus, socket: { type: 'unix', path: resolve(vfioUser) } };
    // The answer may get lost after the device is there.
    this.#present = undefined;
    try {
      await qmp.run('device_add', device, this.#limits.answerMs);
    } catch (error) {
      if (!(error instanceof QmpRefusal)) throw error;
      this.#present = false;
      if (!/duplicate/i.test(error.message)) throw this.#inWords(error);
      await this.#removeLeftover(qmp);
      this.#present = undefined;
      await qmp.run('device_add', device, this.#limits.answerMs).catch((again) => {
        if (again instanceof QmpRefusal) this.#present = false;
        throw again instanceof QmpRefusal ? this.#inWords(again) : again;
      });
    }
    this.#present = true;
    this.#log.info(`the device is in the receiving VM now, on bus ${bus}, as ${this.id}`);
  }

  /** A device of our id that is not served any more, such as that of a process before this one. */
  async #removeLeftover(qmp: QmpClient): Promise<void> {
    const path = `/machine/peripheral/${this.id}`;
    const type = await qmp.run('qom-get', { path, property: 'type' }, this.#limits.answerMs);
    if (type !== DRIVER)
      throw this.#error(
        'ETAKEN',
        `the receiver's QEMU has another device, ${String(type)}, of id ${this.id}`,
      );
    this.#log.info(`the receiving VM still has a device of id ${this.id}, which is unplugged first`);
    await this.#delete(qmp);
  }

  async #remove(): Promise<void> {
    try {
      using qmp = await this.#connect();
      await this.#delete(qmp);
    } catch (error) {
      // Without its QEMU there is no device.
      if ((error as { code?: string }).code !== QMP_GONE || !(await this.#hasEnded())) throw error;
    }
    this.#present = false;
    this.#log.info('the device is out of the receiving VM');
  }

  /** QEMU asks the guest, which lets go of the device; DEVICE_DELETED says that it has. */
  async #delete(qmp: QmpClient): Promise<void> {
    const names = ['DEVICE_DELETED', 'DEVICE_UNPLUG_GUEST_ERROR'];
    const outcome = qmp.event(names, this.id, this.#limits.unplugMs);
    outcome.catch(() => {});
    try {
      await qmp.run('device_del', { id: this.id }, this.#limits.answerMs);
    } catch (error) {
      if (!(error instanceof QmpRefusal)) throw error;
      if (error.errorClass === 'DeviceNotFound') return;
      // The guest was asked before, and may still answer.
      if (!/already in the process of unplug/i.test(error.message))
        throw this.#error('EUNPLUG', `the receiver's QEMU does not unplug the device: ${error.message}`);
    }
    const event = await outcome.catch((error) => {
      if ((error as { code?: string }).code !== QMP_BUSY) throw error;
      throw this.#error(
        'EUNPLUG',
        `the receiving guest has not let go of the device within ${this.#limits.unplugMs / 1000} s; is its ` +
          'kernel up, and is "vhost-pci net" (or nobody) using the device? It is asked again',
      );
    });
    if (event !== 'DEVICE_DELETED')
      throw this.#error('EUNPLUG', 'the receiving guest refuses to let go of the device; it is asked again');
  }

  async #connect(): Promise<QmpClient> {
    try {
      return await QmpClient.connect(this.#options.qmp, this.#limits.greetMs, this.#abort.signal);
    } catch (error) {
      if ((error as { code?: string }).code !== QMP_BUSY) throw error;
      throw this.#error(
        QMP_BUSY,
        `--receiver-qmp ${this.#options.qmp}: QEMU does not greet; another program uses this socket. Give QEMU one ` +
          'more, such as -qmp unix:PATH,server=on,wait=off',
      );
    }
  }

  /** Whether nobody listens on the QMP socket any more. */
  async #hasEnded(): Promise<boolean> {
    try {
      const qmp = await this.#connect();
      qmp[Symbol.dispose]();
      return false;
    } catch (error) {
      return (error as { code?: string }).code === QMP_GONE;
    }
  }

  /** What QEMU says about a device that it does not take, and what to change. */
  #inWords({ message }: QmpRefusal): VhostPciError {
    const { bus } = this.#options;
    const port = `the id of an empty pcie-root-port, such as -device pcie-root-port,id=${bus},chassis=1,slot=1,pref64-reserve=SIZE`;
    if (/Bus '.*' not found/i.test(message))
      return this.#error('EBUS', `--receiver-bus ${bus}: the receiver's QEMU has no such bus; give ${port}`);
    if (/hotplug/i.test(message))
      return this.#error(
        'EBUS',
        `--receiver-bus ${bus} takes no hot-plugged device (${message}); give ${port}`,
      );
    if (/in use|not available|occupied|bus full|function/i.test(message))
      return this.#error('EBUS', `--receiver-bus ${bus} is not free (${message}); give ${port}`);
    if (/not a valid device model/i.test(message))
      return this.#error('EQEMU', `the receiver's QEMU has no ${DRIVER}; QEMU 10.1.1 or newer is needed`);
    return this.#error('EPLUG', `the receiver's QEMU does not take the device: ${message}`);
  }

  #error(code: string, text: string): VhostPciError {
    return new VhostPciError('device', code, text);
  }

  /** The same trouble is told once. */
  #tell(error: unknown): void {
    const text = errorText(error);
    if (text === this.#told) return;
    this.#told = text;
    const what = this.#wanted ? 'plugged into' : 'unplugged from';
    if ((error as { code?: string }).code === QMP_GONE)
      this.#log.warn(`waiting for the receiver's QEMU, to have the device ${what} it: ${text}`);
    else this.#log.error(`the device is not ${what} the receiving VM yet: ${text}`);
  }
}
