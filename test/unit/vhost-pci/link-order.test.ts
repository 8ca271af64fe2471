/** The link under any order of events: the rules of the messages, and of letting go, hold. */
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { PublishedPeer } from '../../../src/vhost-pci/device/link.js';
import type { Message } from '../../../src/vhost-pci/messages.js';
import { Bench, GVA, OFF, peer, virtqs } from './link-bench.js';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

/** One thing that may happen to a link. */
type Event =
  | { readonly do: 'driverOk' | 'driverGone' | 'letGo' | 'wait' | 'logging' }
  | { readonly do: 'peer'; readonly now: PublishedPeer | undefined }
  | { readonly do: 'message'; readonly message: Message };

const anyEvent: fc.Arbitrary<Event> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.constantFrom<Event>({ do: 'driverOk' }, { do: 'letGo' }, { do: 'wait' }, { do: 'wait' }),
  },
  { weight: 1, arbitrary: fc.constantFrom<Event>({ do: 'driverGone' }, { do: 'logging' }) },
  {
    weight: 3,
    arbitrary: fc
      .constantFrom(
        undefined,
        peer(0n),
        peer(0n, { enable: 0 }),
        peer(0x4000n),
        peer(0n, { log: true }),
        peer(0n, { mtu: 9 }),
      )
      .map((now): Event => ({ do: 'peer', now })),
  },
  {
    weight: 5,
    arbitrary: fc
      .constantFrom<Message>(
        GVA,
        GVA,
        OFF,
        { kind: 'connection', on: true },
        { kind: 'virtq-info', virtqs: virtqs(0n, 1) },
        { kind: 'logging', on: true },
        { kind: 'logging', on: false },
        { kind: 'broken', ring: 1 },
        { kind: 'mtu', mtu: 1500 },
        { kind: 'announce', mac: Buffer.alloc(6) },
      )
      .map((message): Event => ({ do: 'message', message })),
  },
);

/** What may be said when, told from the messages alone. */
class Rules {
  driver = false;
  /** What the driver has been told last, and what it has said since. */
  state: 'nothing' | 'memory' | 'mapped' | 'rings' | 'on' | 'asked to stop' = 'nothing';

  sent(m: Message): void {
    const allowed = (...states: Rules['state'][]): void => {
      if (!this.driver) throw new Error(`${m.kind} to a driver that is not there`);
      if (!states.includes(this.state)) throw new Error(`${m.kind} after "${this.state}"`);
    };
    if (m.kind === 'mem-info-bar') {
      allowed('nothing');
      this.state = 'memory';
    } else if (m.kind === 'virtq-info') {
      allowed('mapped', 'on');
      if (this.state === 'mapped') this.state = 'rings';
    } else if (m.kind === 'log-base' || m.kind === 'logging') allowed('rings', 'on');
    else if (m.kind === 'connection' && m.on) {
      allowed('rings');
      this.state = 'on';
    } else if (m.kind === 'connection') {
      allowed('memory', 'mapped', 'on');
      this.state = 'asked to stop';
    } else throw new Error(`${m.kind} is not the link's to send`);
  }

  /** The driver may touch the peer's memory. */
  get touches(): boolean {
    return this.state === 'on' || this.state === 'asked to stop';
  }
}

async function replay(events: readonly Event[]): Promise<void> {
  const b = new Bench();
  const rules = new Rules();
  let leaving = false;
  const check = (m: Message): void => {
    if (leaving && m.kind === 'connection' && !m.on) return;
    rules.sent(m);
  };
  b.onSend = check;
  const waiting: Promise<void>[] = [];
  const failures: string[] = [];
  for (const event of events) {
    switch (event.do) {
      case 'driverOk':
        rules.driver = true;
        b.link.driverOk();
        break;
      case 'driverGone':
        rules.driver = false;
        rules.state = 'nothing';
        b.link.driverGone();
        break;
      case 'peer':
        b.now = event.now;
        b.link.changed();
        break;
      case 'wait':
        await b.settle();
        break;
      case 'logging':
        waiting.push(b.link.setLogging(true).catch((error) => expect(error.code).toBe('ELOGGING')));
        break;
      case 'letGo': {
        waiting.push(
          b.link.letGo().then((stopped) => {
            if (stopped && rules.touches) failures.push(`let go while the driver is "${rules.state}"`);
          }),
        );
        // Its resolution is checked before the next event.
        await vi.advanceTimersByTimeAsync(0);
        break;
      }
      case 'message': {
        const { message } = event;
        if (message.kind === 'mem-info-gva' && rules.state === 'memory') rules.state = 'mapped';
        if (message.kind === 'connection' && !message.on) {
          leaving = rules.state !== 'asked to stop';
          // An OFF that nobody asked for is the driver's last word until it sets DRIVER_OK again.
          if (leaving) rules.driver = false;
          rules.state = 'nothing';
        }
        b.link.message(message);
        leaving = false;
        await vi.advanceTimersByTimeAsync(0);
        break;
      }
    }
    expect(failures).toEqual([]);
    expect(b.link.driverReady).toBe(rules.driver);
    expect(b.link.phase === 'on').toBe(rules.state === 'on');
  }
  await vi.advanceTimersByTimeAsync(10_000);
  await Promise.all(waiting);
  expect(failures).toEqual([]);
  // From wherever it came to: a fresh driver and a peer that is ready are joined.
  rules.driver = false;
  rules.state = 'nothing';
  b.link.driverGone();
  rules.driver = true;
  b.link.driverOk();
  b.now = peer(0x8000n);
  b.link.changed();
  await b.settle();
  if ((rules.state as string) === 'asked to stop') {
    rules.state = 'nothing';
    b.link.message(OFF);
  }
  rules.state = 'mapped';
  b.link.message(GVA);
  expect(b.link.phase).toBe('on');
  b.link.close();
}

describe('whatever happens in whatever order', () => {
  it('the driver is told in the right order, and nobody is let go of who still has the memory', async () => {
    await fc.assert(fc.asyncProperty(fc.array(anyEvent, { maxLength: 40 }), replay), { numRuns: 300 });
  });
});
