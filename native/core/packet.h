// A burst of packets on its way from one port queue to another: where their bytes are, never the bytes
// themselves. Owns no packet memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace vpci {

// struct virtio_net_hdr_v1 (VIRTIO 1.3, 5.1.6): always 12 bytes in this engine, as VIRTIO_F_VERSION_1 has it.
struct NetHeader {
  uint8_t flags = 0;
  uint8_t gso_type = 0;
  uint16_t hdr_len = 0;
  uint16_t gso_size = 0;
  uint16_t csum_start = 0;
  uint16_t csum_offset = 0;
  uint16_t num_buffers = 0;
};
static_assert(sizeof(NetHeader) == 12);

struct Segment {
  uint8_t* data;
  uint32_t length;
};

// One frame. Its bytes may be memory that another process changes at any time: a destination reads them once.
struct Packet {
  Segment first;          // first part of the frame, behind the header
  uint32_t length;        // of the frame, without the header
  uint16_t segments;      // at least 1
  uint16_t more;          // index into Burst::extra of segments 2…n
  NetHeader header;       // read once from the source and checked
};

// Packets [begin, end) are not yet delivered. Filled by PortQueue::receive, consumed by PortQueue::release.
struct Burst {
  static constexpr uint32_t kMax = 64;

  Packet packets[kMax];
  uint32_t begin = 0;
  uint32_t end = 0;
  std::vector<Segment> extra;  // sized once; sources never let it grow
  uint32_t extra_used = 0;

  explicit Burst(uint32_t extra_capacity) : extra(extra_capacity) {}
  uint32_t count() const { return end - begin; }
  bool empty() const { return begin == end; }
  void clear() { begin = end = extra_used = 0; }
};

}  // namespace vpci
