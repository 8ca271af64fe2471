#include "source_queue.h"

#include <algorithm>

#include "test_frame.h"

namespace vpci {

using namespace test_frame;

std::shared_ptr<SourceQueue> SourceQueue::create(const Options& options) {
  const uint32_t least = options.has_stream ? kMinBytes : kEthernetBytes;
  if (options.bytes < least || options.bytes > 65535) return nullptr;
  return std::shared_ptr<SourceQueue>(new SourceQueue(options));
}

SourceQueue::SourceQueue(const Options& options) : options_(options) {
  stride_ = (options.bytes + 63) & ~63u;
  frames_ = options.has_stream ? Burst::kMax : 1;
  memory_.resize(static_cast<size_t>(stride_) * frames_);
  for (uint32_t i = 0; i < frames_; i++) {
    uint8_t* frame = memory_.data() + static_cast<size_t>(i) * stride_;
    memcpy(frame, options.destination, 6);
    memcpy(frame + 6, options.source, 6);
    memcpy(frame + 12, kEthertype, 2);
  }
}

void SourceQueue::write_frame(uint8_t* frame, uint64_t sequence) {
  const StreamHeader header{kMagic, options_.stream, sequence, options_.bytes,
                            header_sum(frame, sequence, options_.bytes)};
  memcpy(frame + kEthernetBytes, &header, sizeof header);
  write_pattern(frame + kPatternAt, options_.bytes - kPatternAt, sequence);
}

uint32_t SourceQueue::receive(Burst& burst) {
  burst.clear();
  uint64_t n = Burst::kMax;
  if (options_.count != 0) n = std::min<uint64_t>(n, options_.count - made_);
  for (uint32_t i = 0; i < n; i++) {
    uint8_t* frame = memory_.data();
    if (options_.has_stream) {
      frame += static_cast<size_t>(i) * stride_;
      write_frame(frame, made_ + i);
    }
    burst.packets[i] = Packet{{frame, options_.bytes}, options_.bytes, 1, 0, NetHeader{}};
  }
  burst.end = static_cast<uint32_t>(n);
  made_ += n;
  receive_stats.packets.add(n);
  receive_stats.bytes.add(n * options_.bytes);
  receive_stats.burst(static_cast<uint32_t>(n));
  return burst.end;
}

void SourceQueue::release(Burst& burst, uint32_t n) { burst.begin += n; }

// A source has no place for packets: what is sent to it by mistake is counted, never kept.
uint32_t SourceQueue::send(const Burst& burst) {
  send_stats.drop(Drop::kDisabled, burst.count());
  return burst.count();
}

}  // namespace vpci
