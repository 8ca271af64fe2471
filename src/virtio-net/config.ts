/** Device configuration and control commands of the network device (VIRTIO 1.3, 5.1.4 and 5.1.6.5). Only layouts. */
import { struct } from '../util/struct.js';

export const VirtioNetConfig = struct('virtio_net_config', 24, {
  mac: { bytes: 6 },
  status: 'u16',
  max_virtqueue_pairs: 'u16',
  mtu: 'u16',
  speed: 'u32',
  duplex: 'u8',
  rss_max_key_size: 'u8',
  rss_max_indirection_table_length: 'u16',
  supported_hash_types: 'u32',
});

/** Bits of `status`; PEER_CONNECTION is the seed's. */
export const NET_STATUS = { LINK_UP: 1, ANNOUNCE: 2, PEER_CONNECTION: 4 } as const;

export const MAX_QUEUE_PAIRS = 0x8000;
export const MIN_MTU = 68;
