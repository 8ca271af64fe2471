import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Bench, GVA, OFF, peer, virtqs } from './link-bench.js';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('the link', () => {
  it('tells memory first, then rings and ON once the driver has mapped it', async () => {
    const b = new Bench();
    b.now = peer(0n);
    b.link.changed();
    await b.settle();
    expect(b.trace).toEqual([]);
    b.link.driverOk();
    expect(b.trace).toEqual(['> mem-info-bar']);
    b.link.message(GVA);
    expect(b.trace).toEqual(['> mem-info-bar', '> virtq-info', '> connection on', 'started']);
    b.link.message(GVA);
    expect(b.trace).toHaveLength(4);
  });

  it('passes a change of enable on while ON, and goes through OFF for any other', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    b.now = peer(0n, { enable: 0 });
    b.link.changed();
    await b.settle();
    expect(b.trace).toEqual(['> virtq-info']);
    b.clear();
    b.now = peer(0x4000n);
    b.link.changed();
    await b.settle();
    expect(b.trace).toEqual(['> connection off']);
    b.link.message(OFF);
    expect(b.trace).toEqual(['> connection off', 'stopped', '> mem-info-bar']);
  });

  it('stays ON when only the MTU changed, which has its own message', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    b.now = peer(0n, { mtu: 9000 });
    b.link.changed();
    await b.settle();
    expect(b.trace).toEqual([]);
    expect(b.link.phase).toBe('on');
  });

  it('tells once of eventfds that were replaced, until the driver has taken the new ones', async () => {
    const b = new Bench();
    const flags: number[] = [];
    b.onSend = (message) => {
      if (message.kind === 'virtq-info') flags.push(...message.virtqs.map((q) => q.flags));
    };
    expect(b.link.ringsTaken()).toBe(false);
    b.link.ringsMoved();
    await b.turnOn(peer(0n));
    expect(b.link.ringsTaken()).toBe(true);
    for (let i = 0; i < 300; i++) b.link.ringsMoved();
    expect(b.trace).toEqual(['> virtq-info']);
    expect(flags).toEqual([1, 1, 5, 5]);
    expect(b.link.ringsTaken()).toBe(true);
    b.link.ringsMoved();
    expect(b.trace).toEqual(['> virtq-info', '> virtq-info']);
    const done = b.link.letGo();
    b.link.ringsMoved();
    expect(b.trace.slice(2)).toEqual(['> connection off']);
    expect(b.link.ringsTaken()).toBe(false);
    b.link.message(OFF);
    await done;
  });

  it('hands over where the driver left the rings', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    const done = b.link.letGo();
    const left = virtqs(0n, 1).map((q) => ({ ...q, next_avail: 77 }));
    b.link.message({ kind: 'virtq-info', virtqs: left });
    b.link.message(OFF);
    await done;
    expect(b.stoppedAt).toEqual(left);
  });

  it('forgets where a driver was that went without a word', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    b.link.message({ kind: 'virtq-info', virtqs: virtqs(0n, 1) });
    b.link.driverGone();
    expect(b.trace).toEqual(['stopped']);
    expect(b.stoppedAt).toBeUndefined();
  });

  it('stays off after it let go, until the peer changes', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    const done = b.link.letGo();
    b.link.message(OFF);
    await done;
    b.link.update();
    b.link.driverOk();
    expect(b.trace).toEqual(['> connection off', 'stopped']);
    b.link.changed();
    await b.settle();
    expect(b.trace.at(-1)).toBe('> mem-info-bar');
  });

  it('waits for the last word of a driver that is dismissed, and serves the next driver', async () => {
    const b = new Bench();
    expect(await b.link.dismiss(1000)).toBe(true);
    await b.turnOn(peer(0n));
    const done = b.link.dismiss(1000);
    expect(b.link.driverReady).toBe(false);
    const left = virtqs(0n, 1).map((q) => ({ ...q, next_avail: 77 }));
    b.link.message({ kind: 'virtq-info', virtqs: left });
    b.link.message(OFF);
    expect(await done).toBe(true);
    expect(b.stoppedAt).toEqual(left);
    b.link.changed();
    await b.settle();
    expect(b.trace).toEqual(['> connection off', 'stopped']);
    b.link.driverGone();
    await b.turnOn(peer(0n));

    const late = b.link.dismiss(1000);
    await vi.advanceTimersByTimeAsync(1001);
    expect(await late).toBe(false);
    expect(b.link.phase).toBe('stopping');
  });

  it('takes a sooner change before a later one', async () => {
    const b = new Bench();
    b.link.driverOk();
    b.now = peer(0n);
    b.link.changed(1000);
    b.link.changed();
    await vi.advanceTimersByTimeAsync(20);
    expect(b.trace).toEqual(['> mem-info-bar']);
  });

  it('answers a driver that wants to leave with OFF, and has the peer disconnected', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    b.link.message(OFF);
    expect(b.trace).toEqual(['stopped', 'left', '> connection off']);
    expect(b.link.driverReady).toBe(false);
    b.link.changed();
    await b.settle();
    expect(b.link.phase).toBe('off');
  });

  it('is not ON when the driver fails in the middle of being told', async () => {
    for (const at of ['mem-info-bar', 'virtq-info', 'log-base', 'logging', 'connection']) {
      const b = new Bench();
      b.now = peer(0n, { log: true });
      b.onSend = (m) => {
        if (m.kind === at) b.link.driverGone();
      };
      b.link.driverOk();
      b.link.message(GVA);
      expect(b.link.phase).toBe('off');
      expect(b.trace).not.toContain('started');
      b.onSend = () => {};
      b.link.driverOk();
      b.link.message(GVA);
      expect(b.link.phase).toBe('on');
    }
  });

  it('goes on without a driver that does not stop, and says so', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    let done = false;
    void b.link.letGo().then(() => {
      done = true;
    });
    await vi.advanceTimersByTimeAsync(2900);
    expect(done).toBe(false);
    await vi.advanceTimersByTimeAsync(200);
    expect(done).toBe(true);
    expect(b.errors[0]).toMatch(/did not stop within 3000 ms.*Restart the driver/);
    // It is not waited for again, for the next ring.
    let again = false;
    void b.link.letGo().then(() => {
      again = true;
    });
    await vi.advanceTimersByTimeAsync(1);
    expect(again).toBe(true);
    expect(b.errors).toHaveLength(1);
    // It still counts as having the memory: a peer that changes waits for it.
    b.now = peer(0x4000n);
    b.link.changed();
    await b.settle();
    expect(b.link.phase).toBe('stopping');
    b.link.message(OFF);
    expect(b.trace.slice(-2)).toEqual(['stopped', '> mem-info-bar']);
  });
});

describe('dirty logging', () => {
  it('is told to a driver that is ON, and confirmed by it', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    b.now = peer(0n, { log: true });
    let done = false;
    void b.link.setLogging(true).then(() => {
      done = true;
    });
    expect(b.trace).toEqual(['> log-base', '> logging on']);
    b.link.message({ kind: 'logging', on: false });
    await vi.advanceTimersByTimeAsync(10);
    expect(done).toBe(false);
    b.link.message({ kind: 'logging', on: true });
    await vi.advanceTimersByTimeAsync(0);
    expect(done).toBe(true);
  });

  it('comes before ON for a driver that is connected later', async () => {
    const b = new Bench();
    b.now = peer(0n, { log: true });
    await b.link.setLogging(true);
    b.link.driverOk();
    b.link.message(GVA);
    expect(b.trace).toEqual([
      '> mem-info-bar',
      '> virtq-info',
      '> log-base',
      '> logging on',
      '> connection on',
      'started',
    ]);
  });

  it('does not hide from the driver what changed just before', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    for (const [now, told] of [
      [peer(0n, { enable: 0, log: true }), '> virtq-info'],
      [peer(0x4000n, { enable: 0, log: true }), '> connection off'],
    ] as const) {
      b.now = now;
      b.link.changed();
      const done = b.link.setLogging(true);
      b.link.message({ kind: 'logging', on: true });
      await done;
      b.clear();
      await b.settle();
      expect(b.trace).toEqual([told]);
    }
  });

  it('waits for a driver that is about to stop: it still writes', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    b.now = peer(0x4000n);
    b.link.changed();
    await b.settle();
    let done = false;
    void b.link.setLogging(true).then(() => {
      done = true;
    });
    await vi.advanceTimersByTimeAsync(100);
    expect(done).toBe(false);
    b.link.message(OFF);
    await vi.advanceTimersByTimeAsync(0);
    expect(done).toBe(true);
  });

  it('takes an answer for that of the command that it belongs to', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n, { log: true }));
    const off = b.link.setLogging(false);
    await vi.advanceTimersByTimeAsync(3100);
    await off;
    let done = false;
    void b.link.setLogging(true).then(() => {
      done = true;
    });
    // A driver that stood still works off what it was told: ON with the peer, OFF, ON.
    for (const on of [true, false]) {
      b.link.message({ kind: 'logging', on });
      await vi.advanceTimersByTimeAsync(0);
      expect(done).toBe(false);
    }
    b.link.message({ kind: 'logging', on: true });
    await vi.advanceTimersByTimeAsync(0);
    expect(done).toBe(true);
  });

  it('is an error for the peer when the driver does not confirm it, and a warning when it is OFF', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    const outcome = b.link.setLogging(true).catch((error) => error);
    await vi.advanceTimersByTimeAsync(3100);
    expect(await outcome).toMatchObject({ scope: 'connection', code: 'ELOGGING' });
    const off = b.link.setLogging(false);
    await vi.advanceTimersByTimeAsync(3100);
    await off;
    expect(b.errors[0]).toMatch(/did not confirm .*restart the driver/i);
  });

  it('is over for whoever waits for it when the driver goes', async () => {
    const b = new Bench();
    await b.turnOn(peer(0n));
    const done = b.link.setLogging(true);
    b.link.driverGone();
    await done;
  });
});
