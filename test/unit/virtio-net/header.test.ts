import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NET_STATUS, VirtioNetConfig } from '../../../src/virtio-net/config.js';
import { GSO, HEADER_FLAG, VirtioNetHeader } from '../../../src/virtio-net/header.js';

const u16 = fc.nat(0xffff);

describe('virtio_net_hdr', () => {
  it('lies as VIRTIO 1.3, 5.1.6 has it', () => {
    const bytes = VirtioNetHeader.encode({
      flags: HEADER_FLAG.NEEDS_CSUM,
      gso_type: GSO.TCPV4 | GSO.ECN,
      hdr_len: 54,
      gso_size: 1448,
      csum_start: 34,
      csum_offset: 16,
      num_buffers: 1,
    });
    expect(bytes.toString('hex')).toBe('01813600a805220010000100');
  });

  it('is the same after being written and read', () => {
    const header = fc.record({
      flags: fc.nat(255),
      gso_type: fc.nat(255),
      hdr_len: u16,
      gso_size: u16,
      csum_start: u16,
      csum_offset: u16,
      num_buffers: u16,
    });
    fc.assert(
      fc.property(header, (value) => {
        expect(VirtioNetHeader.decode(VirtioNetHeader.encode(value))).toEqual(value);
      }),
    );
  });

  it('is not read from fewer bytes than it has', () => {
    expect(() => VirtioNetHeader.decode(Buffer.alloc(11))).toThrow(
      expect.objectContaining({ code: 'ETRUNCATED' }),
    );
  });
});

describe('virtio_net_config', () => {
  it('lies as VIRTIO 1.3, 5.1.4 has it', () => {
    const bytes = VirtioNetConfig.encode({
      mac: Buffer.from([2, 0, 0, 0, 0, 1]),
      status: NET_STATUS.LINK_UP | NET_STATUS.PEER_CONNECTION,
      max_virtqueue_pairs: 2,
      mtu: 1500,
      speed: 10000,
      duplex: 1,
    });
    expect(bytes.toString('hex')).toBe(
      '020000000001050002 00dc0510270000010000 0000000000'.replaceAll(' ', ''),
    );
  });
});
