import { describe, expect, it } from 'vitest';
import { parseMac } from '../../../src/net/mac.js';
import { ethernetFrame, MIN_FRAME_BYTES, rarpAnnouncement } from '../../../src/net/rarp.js';

describe('RARP announcement', () => {
  it('is the frame that virtual machine monitors send', () => {
    const frame = rarpAnnouncement(parseMac('52:54:00:12:34:56'));
    expect(frame.toString('hex')).toBe(
      'ffffffffffff5254001234568035' + // Ethernet: broadcast, source, RARP
        '0001080006040003' + // Ethernet, IPv4, 6, 4, request reverse
        '52540012345600000000' + // sender
        '52540012345600000000' + // target
        '00'.repeat(18),
    );
  });

  it('does not take an address of another length', () => {
    expect(() => rarpAnnouncement(Buffer.alloc(5))).toThrow(expect.objectContaining({ scope: 'bug' }));
  });
});

describe('Ethernet frame', () => {
  it('is padded to the minimum, and not cut', () => {
    const mac = Buffer.alloc(6);
    expect(ethernetFrame(mac, mac, 0x0800, Buffer.alloc(1))).toHaveLength(MIN_FRAME_BYTES);
    expect(ethernetFrame(mac, mac, 0x0800, Buffer.alloc(46))).toHaveLength(MIN_FRAME_BYTES);
    expect(ethernetFrame(mac, mac, 0x0800, Buffer.alloc(1500))).toHaveLength(1514);
  });
});
