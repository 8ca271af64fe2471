// A peer's receiveq by hand, of either format, for the tests of frames that go straight into it.
#pragma once

#include "../core/lane.h"
#include "packed_fixture.h"
#include "tap_fixture.h"

namespace vpci::test::straight {

using namespace region;

constexpr uint64_t kTables = kBase + 0x20000;  // of indirect descriptors
constexpr uint64_t kFeatures = kFeatureVersion1 | kFeatureIndirect | kNetGuestCsum | kNetGuestTso4;
constexpr NetHeader kTso = {kHdrNeedsCsum, kGsoTcp4, 54, 1448, 34, 16, 0};
constexpr NetHeader kUso = {kHdrNeedsCsum, kGsoUdpL4, 42, 1448, 34, 6, 0};  // not negotiated

// Each descriptor is used once.
struct Split {
  static constexpr uint64_t kFeature = 0;
  static constexpr uint16_t kStart = 0xfffe;
  RawRing ring;
  uint16_t next = 0, taken = kStart;
  Split(const Memory& m, uint32_t size) : ring(m, kBase, size) { ring.start(kStart); }
  static void link(VirtqDesc* to, const std::vector<VirtqDesc>& chain, uint32_t first) {
    const uint32_t n = static_cast<uint32_t>(chain.size());
    for (uint32_t i = 0; i < n; i++) {
      const bool last = i + 1 == n;
      to[first + i] = {chain[i].addr, chain[i].len, static_cast<uint16_t>(chain[i].flags | (last ? 0 : kDescNext)),
                       static_cast<uint16_t>(last ? 0 : first + i + 1)};
    }
  }
  void table(uint64_t at, const std::vector<VirtqDesc>& entries) { link(&ring.memory.ref<VirtqDesc>(at), entries, 0); }
  void offer(const std::vector<VirtqDesc>& chain) {
    link(&ring.desc(0), chain, next);
    ring.offer(next);
    next = static_cast<uint16_t>(next + chain.size());
  }
  // The number of the chain that comes back next, or 65536.
  uint32_t take(uint32_t* length) {
    if (ring.used().idx == taken) return 65536;
    const VirtqUsedElem e = ring.used_at(taken++);
    *length = e.len;
    return e.id;
  }
  // Everything that the driver said of its chains becomes something else.
  void scribble() const {
    for (uint32_t i = 0; i < ring.at.size; i++) ring.desc(i) = {kBase, 1, kDescNext, 0xffff};
    for (uint32_t i = 0; i < ring.at.size; i++) ring.avail().ring[i] = 0xffff;
  }
};

struct Packed {
  static constexpr uint64_t kFeature = kFeaturePacked;
  static constexpr uint16_t kStart = kPositionWrap | 5;
  RawPacked ring;
  uint16_t next = 0;
  Packed(const Memory& m, uint32_t size) : ring(m, kBase, size) { ring.start(kStart); }
  void table(uint64_t at, const std::vector<VirtqDesc>& entries) const {
    for (uint32_t i = 0; i < entries.size(); i++)
      (&ring.memory.ref<PackedDesc>(at))[i] = {entries[i].addr, entries[i].len, 0, entries[i].flags};
  }
  void offer(const std::vector<VirtqDesc>& chain) {
    ring.offer(next, chain);
    next = static_cast<uint16_t>(next + chain.size());
  }
  uint32_t take(uint32_t* length) { return ring.take(length); }
  // The flags stay: they tell a driver's lap from a device's.
  void scribble() const {
    for (uint32_t i = 0; i < ring.at.size; i++) ring.desc(i) = {kBase, 1, 0xdead, ring.desc(i).flags};
  }
};

template <class Ring>
struct Receiver {
  // Two regions that lie the other way round in the file.
  Memory m{kBytes, kBase, {{kBase, kBytes / 2, kBytes / 2}, {kBase + kBytes / 2, kBytes / 2, 0}}};
  Memory bitmap{4096, 0};
  Ring rx;
  std::shared_ptr<PeerQueue> q;
  explicit Receiver(uint64_t features = kFeatures, uint32_t size = 256) : rx(m, size) {
    PeerQueueOptions o = options_for(m, rx.ring.at, false, features | Ring::kFeature);
    o.receive->next_avail = Ring::kStart;
    std::string error;
    q = PeerQueue::create(o, &error);
    if (!q) check::fail(__FILE__, __LINE__, error.c_str());
  }
  void log(DirtyLog::Writers writers = DirtyLog::Writers::kOne) {
    q->set_dirty_log(DirtyLog::create(bitmap.mapping, 0, kBytes / 4096 / 8, nullptr, writers));
  }
  bool marked(uint64_t address) const {
    const uint64_t page = static_cast<uint64_t>(m.at(address) - m.mapping->data()) / 4096;
    return bitmap.mapping->data()[page / 8] >> page % 8 & 1;
  }
  uint32_t marks() const {
    uint32_t n = 0;
    for (uint64_t i = 0; i < kBytes / 4096 / 8; i++) n += std::popcount(bitmap.mapping->data()[i]);
    return n;
  }
};

// Between a lane and its destination: tells which way frames took.
class Probe final : public PortQueue {
 public:
  explicit Probe(std::shared_ptr<PortQueue> to) : to_(std::move(to)) {}
  uint32_t given = 0, placed = 0, sent = 0;

  uint32_t receive(Burst& burst) override { return to_->receive(burst); }
  void release(Burst& burst, uint32_t n) override { to_->release(burst, n); }
  uint32_t send(const Burst& burst) override {
    const uint32_t n = to_->send(burst);
    sent += n;
    return n;
  }
  uint32_t room(iovec* pieces, uint32_t most, uint32_t bytes) override {
    const uint32_t n = to_->room(pieces, most, bytes);
    uint64_t all = 0;
    for (uint32_t i = 0; i < n; i++) all += pieces[i].iov_len;
    CHECK(n <= most);
    CHECK_EQ(all, n ? bytes : 0);
    given += n > 0;
    return n;
  }
  void place(const NetHeader& header, uint32_t length) override {
    to_->place(header, length);
    placed += length > 0;
  }
  int wait_fd(bool) override { return kNever; }
  bool arm(bool) override { return true; }
  void disarm(bool) override {}

 private:
  const std::shared_ptr<PortQueue> to_;
};

inline std::vector<uint8_t> frame_of(uint32_t length, uint64_t seed) {
  std::vector<uint8_t> frame(length);
  fill(frame.data(), length, seed);
  return frame;
}

// Into a room, as a system call writes there.
inline void write_to(const iovec* pieces, const std::vector<uint8_t>& frame) {
  for (size_t at = 0; at < frame.size(); pieces++) {
    const size_t part = std::min(frame.size() - at, pieces->iov_len);
    std::memcpy(pieces->iov_base, frame.data() + at, part);
    at += part;
  }
}

inline uint64_t drops(const RingStats& s, Drop d) { return s.drops[static_cast<unsigned>(d)].get(); }

}  // namespace vpci::test::straight
