/** A link between ends that note everything. Owns no test. */
import { expect, vi } from 'vitest';
import { Link, type LinkEnds, type PublishedPeer } from '../../../src/vhost-pci/device/link.js';
import { type Message, VIRTQ_FLAG, type Virtq } from '../../../src/vhost-pci/messages.js';
import { recordingLog } from './rig.js';

export function virtqs(desc: bigint, enable: number): Virtq[] {
  const q = { next_avail: 0, flags: VIRTQ_FLAG.STARTED, enable, num: 64, reserved: 0, avail: 1n, used: 2n };
  return [
    { ...q, desc },
    { ...q, desc: desc + 0x1000n },
  ];
}

export function peer(
  desc: bigint,
  options: { enable?: number; mtu?: number; log?: boolean } = {},
): PublishedPeer {
  const regions = [{ gpa: 0n, size: 4096n, bar_offset: 0n }];
  return {
    info: { bar: 2, features: 0n, mtu: options.mtu ?? 0, regions },
    virtqs: virtqs(desc, options.enable ?? 1),
    ...(options.log && { log: { gpa: 0x8000n, size: 128n } }),
  };
}

export const OFF: Message = { kind: 'connection', on: false };
export const GVA: Message = { kind: 'mem-info-gva', address: 0n };

/** A link whose ends note everything in one list. */
export class Bench implements LinkEnds {
  readonly trace: string[] = [];
  readonly link: Link;
  readonly lines: ReturnType<typeof recordingLog>['lines'];
  now: PublishedPeer | undefined;
  stoppedAt: readonly Virtq[] | undefined;
  /** Called with each message before `send` returns. */
  onSend: (message: Message) => void = () => {};

  constructor() {
    const { log, lines } = recordingLog();
    this.lines = lines;
    this.link = new Link(this, log);
  }

  wanted(): PublishedPeer | undefined {
    return this.now;
  }
  send(message: Message): void {
    this.trace.push(`> ${message.kind}${'on' in message ? (message.on ? ' on' : ' off') : ''}`);
    this.onSend(message);
  }
  driverLeft(): void {
    this.trace.push('left');
  }
  ringBroken(ring: number): void {
    this.trace.push(`broken ${ring}`);
  }
  started(): void {
    this.trace.push('started');
  }
  stopped(at: readonly Virtq[] | undefined): void {
    this.stoppedAt = at;
    this.trace.push('stopped');
  }

  get errors(): string[] {
    return this.lines.filter((l) => l.level >= 50).map((l) => l.msg);
  }
  clear(): void {
    this.trace.length = 0;
  }
  async settle(): Promise<void> {
    await vi.advanceTimersByTimeAsync(60);
  }
  async turnOn(now: PublishedPeer): Promise<void> {
    this.now = now;
    this.link.driverOk();
    this.link.message(GVA);
    expect(this.link.phase).toBe('on');
    this.clear();
  }
}
