/**
 * The state of the link between one peer and the receiving driver: who is told what, in which order, and when the
 * driver has let go (docs/protocol.md, P5). A state machine over control messages; knows no sockets, PCI or rings.
 *
 *     off ──MEM_INFO_BAR──▶ announced ──GVA; VIRTQ_INFO, ON──▶ on ──OFF──▶ stopping ──driver's OFF──▶ off
 */
import { VhostPciError } from '../../util/errors.js';
import type { Log } from '../../util/log.js';
import { type MemInfoBar, type Message, VIRTQ_FLAG, type Virtq } from '../messages.js';

/** What the driver is to see of a peer that is ready. */
export interface PublishedPeer {
  readonly info: Omit<MemInfoBar, 'kind'>;
  readonly virtqs: readonly Virtq[];
  /** Where the driver finds its dirty bitmap, while the peer's memory is being logged. */
  readonly log?: { readonly gpa: bigint; readonly size: bigint };
}

export interface LinkEnds {
  /** The peer as it is now, or undefined while it is not ready. */
  wanted(): PublishedPeer | undefined;
  /** Sends a control message to the driver. */
  send(message: Message): void;
  /** The driver asked for the disconnection: the peer's vhost-user connection has to go (D8). */
  driverLeft(): void;
  /** The driver gave a ring of the peer up. */
  ringBroken(ring: number): void;
  /** The driver has the peer's rings from now on. */
  started(virtqs: readonly Virtq[]): void;
  /** The driver has let go of them; `virtqs` says where, unless it went without a word. */
  stopped(virtqs: readonly Virtq[] | undefined): void;
}

export type LinkPhase = 'off' | 'announced' | 'on' | 'stopping';

/** How long a driver may take to let go, or to confirm logging, before the peer goes on without it. */
const ANSWER_LIMIT_MS = 3000;
/** Of so many limits that a peer in migration waits for its driver, one is told of. */
const REMIND_EVERY = 10;
/**
 * After rings changed, how long to wait for the next change before the peer is published: front-ends change rings
 * one message at a time.
 */
const SETTLE_MS = 5;
/** The same after a ring stopped: front-ends stop the others next, each with an answer to wait for. */
export const STOP_SETTLE_MS = 50;

export class Link {
  readonly #ends: LinkEnds;
  readonly #log: Log;
  #phase: LinkPhase = 'off';
  #driverReady = false;
  #suspended = false;
  /** When the driver was last asked to stop. */
  #askedAt = 0;
  #published: PublishedPeer | undefined;
  /** The driver has been told that rings have other eventfds, and has not taken them yet. */
  #moved = false;
  /** Indices that the driver reported when it last let go. */
  #stoppedAt: readonly Virtq[] | undefined;
  #waiters: (() => void)[] = [];
  /** What the driver was told and has not confirmed, in order. */
  #logWaiters: { on: boolean; done: () => void }[] = [];
  #settle: { readonly timer: NodeJS.Timeout; readonly at: number } | undefined;

  constructor(ends: LinkEnds, log: Log) {
    this.#ends = ends;
    this.#log = log;
  }

  get phase(): LinkPhase {
    return this.#phase;
  }

  get driverReady(): boolean {
    return this.#driverReady;
  }

  /** The driver set DRIVER_OK. */
  driverOk(): void {
    this.#driverReady = true;
    this.update();
  }

  /** The driver is gone, or has reset the device: it touches nothing any more. */
  driverGone(): void {
    this.#driverReady = false;
    this.#stoppedAt = undefined;
    this.#enter('off');
  }

  /** Something about the peer changed; looks at it again once the changes have settled. */
  changed(settleMs = SETTLE_MS): void {
    this.#suspended = false;
    const at = performance.now() + settleMs;
    if (this.#settle && this.#settle.at <= at) return;
    clearTimeout(this.#settle?.timer);
    const timer = setTimeout(() => {
      this.#settle = undefined;
      this.update();
    }, settleMs);
    this.#settle = { timer, at };
  }

  /**
   * Resolves when the driver has let go of the peer's memory. Stays off until `changed`. Resolves to false, with an error in
   * the log, when the driver does not answer within the limit: nothing can take the memory away from it. While `mustStop`
   * holds there is no limit, only errors in the log.
   */
  async letGo(mustStop: () => boolean = () => false): Promise<boolean> {
    this.#suspended = true;
    // First, since the limit counts from the moment when the driver is asked.
    this.update();
    return this.phase === 'off' || this.#off(mustStop);
  }

  /** Asks the driver to let go and leaves it at that, until another driver comes. Resolves to false when it is late. */
  async dismiss(limitMs: number): Promise<boolean> {
    this.#driverReady = false;
    this.update();
    if (this.phase === 'off') return true;
    return !(await late(new Promise<void>((resolve) => this.#waiters.push(resolve)), limitMs));
  }

  /** Resolves when the link is off, or the driver is late: it is waited for once, not for each ring again. */
  async #off(mustStop: () => boolean = () => false): Promise<boolean> {
    const off = new Promise<void>((resolve) => this.#waiters.push(resolve));
    const left = this.#askedAt + ANSWER_LIMIT_MS - performance.now();
    if (!(await late(off, Math.max(left, 0)))) return true;
    for (let looks = 0; mustStop(); looks++) {
      if (looks % REMIND_EVERY === 0)
        this.#log.error(
          `the driver has not stopped for ${Math.round((performance.now() - this.#askedAt) / 1000)} s. The peer is being migrated ` +
            'and stands still until the driver stops or ends, because what it still writes would be lost. End the driver',
        );
      if (!(await late(off, ANSWER_LIMIT_MS))) return true;
    }
    if (left > 0)
      this.#log.error(
        `the driver did not stop within ${ANSWER_LIMIT_MS} ms; the peer goes on without its answer. Restart the driver`,
      );
    return false;
  }

  /**
   * Resolves when the driver has confirmed that logging is on or off; at once while no driver has the memory. Throws
   * (scope `connection`) when it does not confirm ON within the limit: a migration would miss what it writes.
   */
  async setLogging(on: boolean): Promise<void> {
    if (this.#phase === 'stopping' && !(await this.#off()) && on) throw unconfirmed('that it stopped');
    if (this.#phase !== 'on') return;
    // What else has changed of the peer is told by `update`, which compares with what the driver knows.
    const log = on ? this.#ends.wanted()?.log : undefined;
    const confirmed = new Promise<void>((done) => this.#logWaiters.push({ on, done }));
    if (log) this.#ends.send({ kind: 'log-base', ...log });
    this.#ends.send({ kind: 'logging', on });
    if (!(await late(confirmed, ANSWER_LIMIT_MS))) return;
    if (on) throw unconfirmed('that it logs');
    this.#log.error(unconfirmed('that it logs no more').message);
  }

  /** Eventfds that the driver took are not the peer's any more (docs/protocol.md, P7). Told once, until it takes again. */
  ringsMoved(): void {
    if (this.#phase !== 'on' || !this.#published || this.#moved) return;
    this.#moved = true;
    const virtqs = this.#published.virtqs.map((q) => ({ ...q, flags: q.flags | VIRTQ_FLAG.MOVED }));
    this.#ends.send({ kind: 'virtq-info', virtqs });
  }

  /** The driver takes the eventfds of rings; false when it has no rings, or is to let go of them. */
  ringsTaken(): boolean {
    this.#moved = false;
    return this.#phase === 'on';
  }

  /** A control message from the driver. */
  message(message: Message): void {
    switch (message.kind) {
      case 'mem-info-gva':
        if (this.#phase === 'announced') this.#turnOn();
        return;
      case 'virtq-info':
        // Before OFF, or as the answer to a change of `enable`; the last one before OFF counts.
        this.#stoppedAt = message.virtqs;
        return;
      case 'connection':
        if (!message.on) this.#driverOff();
        return;
      case 'logging':
        this.#loggingConfirmed(message.on);
        return;
      case 'broken':
        if (this.#phase === 'on') this.#ends.ringBroken(message.ring);
        return;
      default:
        this.#log.warn(`the driver sent ${message.kind}, which only a device sends; ignored`);
    }
  }

  /** Takes the next step towards what is wanted. Safe to call at any time. */
  update(): void {
    const wanted = this.#driverReady && !this.#suspended ? this.#ends.wanted() : undefined;
    const published = this.#published;
    switch (this.#phase) {
      case 'off':
        if (!wanted) return;
        this.#stoppedAt = undefined;
        this.#published = wanted;
        this.#enter('announced');
        this.#ends.send({ kind: 'mem-info-bar', ...wanted.info });
        return;
      case 'announced':
      case 'on':
        if (!wanted || !published || !sameButEnable(wanted, published, this.#phase)) {
          this.#askedAt = performance.now();
          this.#enter('stopping');
          this.#ends.send({ kind: 'connection', on: false });
        } else if (this.#phase === 'on' && !sameEnable(wanted, published)) {
          this.#published = wanted;
          this.#ends.send({ kind: 'virtq-info', virtqs: wanted.virtqs });
        }
        return;
      case 'stopping':
        return;
    }
  }

  /** Ends timers; the link is not used afterwards. */
  close(): void {
    clearTimeout(this.#settle?.timer);
    this.#driverReady = false;
    this.#enter('off');
  }

  #turnOn(): void {
    const wanted = this.#suspended ? undefined : this.#ends.wanted();
    if (!wanted || !this.#published || !sameButEnable(wanted, this.#published, this.#phase)) {
      this.update();
      return;
    }
    this.#published = wanted;
    const messages: Message[] = [{ kind: 'virtq-info', virtqs: wanted.virtqs }];
    if (wanted.log) {
      messages.push({ kind: 'log-base', ...wanted.log }, { kind: 'logging', on: true });
      // Nobody waits for this one, but it is not the answer to a later ON.
      this.#logWaiters.push({ on: true, done: () => {} });
    }
    messages.push({ kind: 'connection', on: true });
    for (const message of messages) {
      this.#ends.send(message);
      // A driver whose queues turn out to be broken is gone by now.
      if (this.#phase !== 'announced') return;
    }
    this.#ends.started(wanted.virtqs);
    this.#enter('on');
  }

  /** Answers come in the order of the commands; one that the driver refused has none. */
  #loggingConfirmed(on: boolean): void {
    const at = this.#logWaiters.findIndex((w) => w.on === on);
    this.#logWaiters
      .splice(0, at + 1)
      .at(-1)
      ?.done();
  }

  #driverOff(): void {
    if (this.#phase === 'stopping') {
      this.#enter('off');
      this.update();
      return;
    }
    // Unasked: the driver wants to unload. The seed: disconnect the peer, then update the driver with OFF.
    this.#driverReady = false;
    this.#enter('off');
    this.#ends.driverLeft();
    this.#ends.send({ kind: 'connection', on: false });
  }

  #enter(phase: LinkPhase): void {
    const before = this.#phase;
    this.#phase = phase;
    if (phase === 'off' && before !== 'off') {
      this.#published = undefined;
      this.#moved = false;
      this.#ends.stopped(this.#stoppedAt);
      this.#stoppedAt = undefined;
      for (const done of this.#waiters.splice(0)) done();
      for (const { done } of this.#logWaiters.splice(0)) done();
    }
    if (phase !== before) this.#log.debug(`link: ${before} to ${phase}`);
  }
}

/** next_avail is where a ring starts from, not a change of it; enable may change while ON. */
function virtqKey(q: Virtq): string {
  return `${q.flags} ${q.num} ${q.desc} ${q.avail} ${q.used}`;
}

/** While ON, a new MTU has a message of its own. */
function sameButEnable(a: PublishedPeer, b: PublishedPeer, phase: LinkPhase): boolean {
  const key = (p: PublishedPeer): string =>
    [
      `${p.info.bar} ${p.info.features} ${phase === 'on' ? '' : p.info.mtu}`,
      ...p.info.regions.map((r) => `${r.gpa} ${r.size} ${r.bar_offset}`),
      ...p.virtqs.map(virtqKey),
    ].join('\n');
  return key(a) === key(b);
}

function sameEnable(a: PublishedPeer, b: PublishedPeer): boolean {
  return a.virtqs.every((q, i) => q.enable === b.virtqs[i]?.enable);
}

function unconfirmed(what: string): VhostPciError {
  const text = `the driver did not confirm ${what} within ${ANSWER_LIMIT_MS} ms; restart the driver`;
  return new VhostPciError('connection', 'ELOGGING', text);
}

/** True when `answer` is not there within the limit. */
async function late(answer: Promise<void>, limitMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<'late'>((resolve) => {
    timer = setTimeout(resolve, limitMs, 'late');
  });
  const outcome = await Promise.race([answer, limit]);
  clearTimeout(timer);
  return outcome === 'late';
}
