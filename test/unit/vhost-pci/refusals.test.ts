/** What a device process says of peers that it refuses, when they come again and again. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Refusals } from '../../../src/vhost-pci/device/refusals.js';
import { isOn, type LogLine, Rig, recordingLog } from './rig.js';

const INFO = 30;
const said = (lines: readonly LogLine[]): string[] => lines.filter((l) => l.level >= INFO).map((l) => l.msg);

describe('a peer that is refused and comes again', () => {
  let rig: Rig;
  beforeEach(() => {
    rig = new Rig();
  });
  afterEach((context) => rig.end(context));

  /** A peer whose memory is not the window. */
  async function foreigner(): Promise<void> {
    const peer = await rig.peer({ adopt: true });
    await expect(peer.start()).rejects.toThrow();
    await peer.disconnected;
    await peer[Symbol.asyncDispose]();
  }

  it('is told of in full, then now and then, and in full again after a peer was served', async () => {
    await rig.device();
    for (let n = 0; n < 25; n++) await foreigner();
    const lines = said(rig.lines);
    expect(lines.filter((l) => /^peer disconnected: .*memory is not .*share=on/.test(l))).toHaveLength(2);
    expect(lines.filter((l) => l.endsWith('(10 times now)'))).toHaveLength(1);
    // The first two connections are news as well.
    expect(lines.length).toBeLessThan(8);

    const receiver = rig.receiver();
    const peer = await rig.startedPeer();
    await isOn(receiver);
    await peer[Symbol.asyncDispose]();
    const at = rig.lines.length;
    await foreigner();
    expect(said(rig.lines.slice(at))).toContainEqual(expect.stringMatching(/memory is not .*memdev=mem\)$/));
  });
});

describe('reasons', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['performance'] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('are one for any numbers in them, and several for other words', () => {
    const { log, lines } = recordingLog();
    const refusals = new Refusals(log);
    for (let n = 0; n < 9; n++) refusals.tell('gone', new Error(`region ${n} at 0x${n}a000`));
    refusals.tell('gone', new Error('no region'));
    refusals.tell('refused', new Error('no region'));
    expect(said(lines)).toEqual(['gone: region 0 at 0x0a000', 'gone: no region', 'refused: no region']);
    refusals.tell('gone', new Error('region 9 at 0xffff'));
    expect(said(lines).at(-1)).toBe('gone: region 9 at 0xffff (10 times now)');
    for (let n = 0; n < 989; n++) refusals.tell('gone', new Error('region 1 at 0x1'));
    expect(said(lines)).toHaveLength(5);
    expect(said(lines).at(-1)).toMatch(/\(100 times now\)$/);
  });

  it('are new again after a minute without them', () => {
    const { log, lines } = recordingLog();
    const refusals = new Refusals(log);
    for (let n = 0; n < 3; n++) refusals.tell('gone', new Error('no region'));
    expect(refusals.repeating).toBe(true);
    vi.advanceTimersByTime(61_000);
    expect(refusals.repeating).toBe(false);
    refusals.tell('gone', new Error('no region'));
    expect(said(lines)).toEqual(['gone: no region', 'gone: no region']);
  });

  it('that are made up are not all remembered', () => {
    const { log, lines } = recordingLog();
    const refusals = new Refusals(log);
    const word = (n: number): string => String.fromCharCode(97 + (n % 26), 97 + Math.floor(n / 26));
    for (let n = 0; n < 500; n++) refusals.tell('gone', new Error(word(n)));
    refusals.tell('gone', new Error(word(499)));
    expect(lines).toHaveLength(501);
    refusals.tell('gone', new Error(word(0)));
    expect(lines.at(-1)).toMatchObject({ level: 40 });
  });
});
