// A peer of two hand-driven rings and the queue that serves them, for the tests of both packet paths.
#pragma once

#include "fixture.h"

namespace vpci::test::peer {

constexpr uint64_t kBase = 0x40000000, kBytes = 2 << 20, kData = kBase + 0x80000;
constexpr uint64_t kAllFeatures = kFeatureVersion1 | kFeatureIndirect | kNetCsum | kNetGuestCsum |
                                  kNetHostTso4 | kNetHostTso6 | kNetHostEcn | kNetHostUfo | kNetGuestTso4 |
                                  kNetGuestTso6 | kNetGuestEcn | kNetGuestUfo;

inline uint64_t drops(const RingStats& s, Drop d) { return s.drops[static_cast<unsigned>(d)].get(); }

struct Peer {
  Memory m;
  RawRing tx, rx;
  std::shared_ptr<PeerQueue> q;
  Burst burst{256};
  explicit Peer(uint64_t features, uint32_t size = 64, uint32_t max_frame = kDefaultMaxFrame)
      : m(kBytes, kBase), tx(m, kBase, size), rx(m, kBase + 0x40000, size) {
    PeerQueueOptions o;
    o.table = m.table;
    o.features = features;
    o.max_frame = max_frame;
    o.transmit.emplace();
    o.transmit->ring = tx.at;
    o.receive.emplace();
    o.receive->ring = rx.at;
    std::string error;
    q = PeerQueue::create(o, &error);
    if (!q) check::fail(__FILE__, __LINE__, error.c_str());
  }
  // A packet of header and frame in one descriptor `d`, at kData + 4096 · d.
  void transmit(uint16_t d, const NetHeader& h, uint32_t frame, uint32_t header_bytes = 12) {
    uint64_t at = kData + 4096ull * d;
    std::memcpy(m.at(at), &h, header_bytes);
    fill(m.at(at) + header_bytes, frame, d + 100);
    tx.desc(d) = {at, header_bytes + frame, 0, 0};
    tx.offer(d);
  }
  void buffer(uint16_t d, uint32_t length) {
    rx.desc(d) = {kData + 4096ull * d, length, kDescWrite, 0};
    rx.offer(d);
  }
};

}  // namespace vpci::test::peer
