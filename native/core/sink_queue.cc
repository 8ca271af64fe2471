#include "sink_queue.h"

#include "test_frame.h"

namespace vpci {

using namespace test_frame;

namespace {
constexpr uint32_t kFrameBytes = 65536;
}  // namespace

SinkQueue::SinkQueue(const Options& options) : options_(options), frame_(kFrameBytes) {}

uint32_t SinkQueue::receive(Burst& burst) {
  burst.clear();
  return 0;
}

uint32_t SinkQueue::send(const Burst& burst) {
  uint64_t packets = 0;
  uint64_t bytes = 0;
  uint8_t* const frame = frame_.data();
  for (uint32_t i = burst.begin; i < burst.end; i++) {
    const Packet& packet = burst.packets[i];
    if (packet.length > kFrameBytes) {
      send_stats.drop(Drop::kTooLong);
      continue;
    }
    if (packet.segments == 1 && !options_.has_stream)
      copies_.add(frame, packet.first.data, packet.length);
    else
      copy_packet(frame, burst, packet);
    packets++;
    bytes += packet.length;
    if (options_.has_stream) verify(frame, packet.length);
  }
  copies_.run();
  send_stats.packets.add(packets);
  send_stats.bytes.add(bytes);
  send_stats.burst(burst.count());
  return burst.count();
}

void SinkQueue::verify(const uint8_t* frame, uint32_t length) {
  StreamHeader header;
  if (length < kMinBytes || memcmp(frame + 12, kEthertype, 2) != 0) {
    verified.foreign.add(1);
    return;
  }
  memcpy(&header, frame + kEthernetBytes, sizeof header);
  if (header.magic != kMagic || header.stream != options_.stream) {
    verified.foreign.add(1);
    return;
  }
  verified.packets.add(1);
  if (header.length != length || header.sum != header_sum(frame, header.sequence, length) ||
      !check_pattern(frame + kPatternAt, length - kPatternAt, header.sequence)) {
    verified.altered.add(1);  // its sequence number cannot be trusted either
    return;
  }
  if (header.sequence == next_) {
    next_++;
  } else if (header.sequence > next_) {
    verified.lost.add(header.sequence - next_);
    next_ = header.sequence + 1;
  } else {
    // Late after all: it was counted as lost when a later one overtook it. A duplicate is late as well.
    verified.reordered.add(1);
    if (verified.lost.get() > 0) verified.lost.set(verified.lost.get() - 1);
  }
}

}  // namespace vpci
