/** The header before every packet (VIRTIO 1.3, 5.1.6). Only the layout: the engine checks and builds headers itself. */
import { struct } from '../util/struct.js';

export const VirtioNetHeader = struct('virtio_net_hdr_v1', 12, {
  flags: 'u8',
  gso_type: 'u8',
  hdr_len: 'u16',
  gso_size: 'u16',
  csum_start: 'u16',
  csum_offset: 'u16',
  num_buffers: 'u16',
});

export const HEADER_FLAG = { NEEDS_CSUM: 1, DATA_VALID: 2, RSC_INFO: 4 } as const;
export const GSO = { NONE: 0, TCPV4: 1, UDP: 3, TCPV6: 4, UDP_L4: 5, ECN: 0x80 } as const;
