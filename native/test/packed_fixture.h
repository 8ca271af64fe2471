// A hand-driven packed ring for tests: the driver's place in it, and whatever else it is told to write.
#pragma once

#include <map>

#include "../core/packed_device.h"
#include "fixture.h"

namespace vpci::test {

constexpr Position kPackedStart = kPositionWrap;  // offset 0, wrap counter 1 (VIRTIO 1.3, 2.8.1)

// Areas in pages of their own, in the order descriptors, driver events, device events.
struct RawPacked {
  const Memory& memory;
  RingAddresses at;
  Position avail = kPackedStart;  // where the next descriptor goes
  Position used = kPackedStart;   // where the next used one is expected
  std::map<uint16_t, uint16_t> lengths;  // of the chains that the device has, by id

  RawPacked(const Memory& m, uint64_t address, uint32_t size) : memory(m) {
    at.size = size;
    at.desc = address;
    at.driver = at.desc + ((desc_bytes(size) + 4095) & ~4095ull);
    at.device = at.driver + 4096;
  }
  static uint64_t bytes(uint32_t size) { return ((desc_bytes(size) + 4095) & ~4095ull) + 8192; }
  PackedDesc& desc(uint32_t i) const { return reinterpret_cast<PackedDesc*>(memory.at(at.desc))[i]; }
  uint32_t& driver_event() const { return memory.ref<uint32_t>(at.driver); }
  uint32_t& device_event() const { return memory.ref<uint32_t>(at.device); }
  void start(Position p) {
    avail = used = p;
    // What lies behind has been used in this lap, what lies ahead in the last one.
    for (uint32_t i = 0; i < at.size; i++) {
      const bool wrap = i < offset_of(p) ? wrap_of(p) : !wrap_of(p);
      desc(i).flags = wrap ? kDescAvail | kDescUsed : 0;
    }
  }
  uint16_t flags_at(Position p, uint16_t flags) const {
    return static_cast<uint16_t>(flags | (wrap_of(p) ? kDescAvail : kDescUsed));
  }
  // A chain of descriptors whose flags lack NEXT, AVAIL and USED. Its first one is written last.
  void offer(uint16_t id, const std::vector<VirtqDesc>& chain) {
    const uint32_t n = static_cast<uint32_t>(chain.size());
    for (uint32_t i = n; i-- > 0;) {
      const Position p = position_after(avail, i, at.size);
      const uint16_t flags = static_cast<uint16_t>(chain[i].flags | (i + 1 < n ? kDescNext : 0));
      PackedDesc& d = desc(offset_of(p));
      d.addr = chain[i].addr;
      // The id of the first ones means nothing.
      store_release64(rest_at(&d), rest_word(chain[i].len, i + 1 < n ? 0xdead : id, flags_at(p, flags)));
    }
    lengths[id] = static_cast<uint16_t>(n);
    avail = position_after(avail, n, at.size);
  }
  // One descriptor as it is, NEXT and all.
  void put(VirtqDesc d, uint16_t id = 0) {
    desc(offset_of(avail)) = {d.addr, d.len, id, flags_at(avail, d.flags)};
    avail = position_after(avail, 1, at.size);
  }
  // Takes the next used chain, as a driver does. Length in `len`; 65536 when there is none, 65537 when it is
  // one that the device never had.
  uint32_t take(uint32_t* len = nullptr, uint16_t* flags = nullptr) {
    const PackedRest rest = rest_of(load_acquire64(rest_at(&desc(offset_of(used)))));
    if (!is_used(rest.flags, wrap_of(used))) return 65536;
    const auto found = lengths.find(rest.id);
    if (found == lengths.end()) return 65537;
    used = position_after(used, found->second, at.size);
    lengths.erase(found);
    if (len) *len = rest.len;
    if (flags) *flags = rest.flags;
    return rest.id;
  }
  // Does the device want to be told of what was made available from `before` on?
  bool wants_kick(Position before) const {
    const uint32_t event = load_relaxed32(&device_event());
    const uint16_t flags = event >> 16 & kEventFlags;
    if (flags != kEventDesc) return flags == kEventEnable;
    return distance(before, static_cast<Position>(event), at.size) < distance(before, avail, at.size);
  }
};

// Where the USED bits of a ring change: where a device went that ended without a word.
inline uint32_t used_boundaries(const RawPacked& ring) {
  uint32_t n = 0;
  for (uint32_t i = 1; i < ring.at.size; i++)
    n += (ring.desc(i).flags & kDescUsed) != (ring.desc(i - 1).flags & kDescUsed);
  return n;
}

namespace packed {

using namespace region;

constexpr uint64_t kPlain = kFeatureVersion1 | kFeaturePacked;

inline PeerQueueOptions options_for(const Memory& m, const RawPacked& ring, bool transmit, uint64_t features) {
  PeerQueueOptions o = test::options_for(m, ring.at, transmit, features);
  (transmit ? o.transmit : o.receive)->next_avail = ring.used;
  return o;
}

inline std::shared_ptr<PeerQueue> queue_for(const Memory& m, const RawPacked& ring, bool transmit,
                                            uint64_t features = kPlain) {
  std::string error;
  auto q = PeerQueue::create(options_for(m, ring, transmit, features), &error);
  if (!q) check::fail(__FILE__, __LINE__, error.c_str());
  return q;
}

}  // namespace packed
}  // namespace vpci::test
