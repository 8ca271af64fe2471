// A lane: packets go from one port queue to another, a burst at a time. Belongs to one worker thread.
#pragma once

#include <cstdint>
#include <memory>

#include "port.h"

namespace vpci {

// What happens to packets that the destination has no room for now: they wait and hold the lane up, or they
// go.
enum class LanePolicy : uint8_t { kHold, kDrop };

struct Lane {
  // Segments of a burst beyond the first of each packet: 64 packets of 64 KiB in pages need fewer.
  static constexpr uint32_t kExtraSegments = 4096;

  Lane(uint32_t number, std::shared_ptr<PortQueue> source, std::shared_ptr<PortQueue> destination,
       LanePolicy p)
      : id(number), from(std::move(source)), to(std::move(destination)), policy(p), burst(kExtraSegments) {}

  const uint32_t id;
  const std::shared_ptr<PortQueue> from;
  const std::shared_ptr<PortQueue> to;
  const LanePolicy policy;
  Burst burst;

  // Nothing will come any more, and nothing waits.
  bool idle_for_good() const { return burst.empty() && (from->broken(false) || from->ended()); }

  // One burst; or, while none waits, some frames straight, so that their order is kept. True when packets moved.
  bool round() {
    bool moved = false;
    if (burst.empty()) {
      if (from->broken(false)) return false;
      const PortQueue::Straight straight = from->receive_into(*to);
      if (straight != PortQueue::Straight::kNo) return straight == PortQueue::Straight::kMoved;
      if (from->receive(burst) == 0) return false;
      moved = true;
    }
    const uint32_t sent = to->send(burst);
    if (sent > 0) {
      from->release(burst, sent);
      moved = true;
    }
    // A destination that was given up must not hold up a source that works.
    if (!burst.empty() && (policy == LanePolicy::kDrop || to->broken(true))) {
      drop_rest();
      moved = true;
    }
    return moved;
  }

  // The packets that wait are given up, for want of room at the destination.
  void drop_rest() {
    const uint32_t rest = burst.count();
    if (rest == 0) return;
    to->send_stats.drop(Drop::kNoBuffers, rest);
    from->release(burst, rest);
  }
};

}  // namespace vpci
