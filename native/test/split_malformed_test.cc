// Device side of the split ring against a driver that writes what it must not: every malformed ring by table, areas that
// cannot be, descriptors that change.
#include "../core/split_device.h"
#include "malformed.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::region;

namespace {

using malformed::kTable;

struct Bad {
  const char* name;
  void (*write)(RawRing& ring);
  const char* cause;
};

VirtqDesc& table(const RawRing& r, uint32_t i) { return (&r.memory.ref<VirtqDesc>(kTable))[i]; }

// What only this format can have wrong, in a ring of 8. Flags are for readable chains.
const Bad kBad[] = {
    {"head", [](RawRing& r) { r.offer(8); }, "head is outside"},
    {"head max", [](RawRing& r) { r.offer(0xffff); }, "head is outside"},
    {"next",
     [](RawRing& r) {
       r.desc(0) = {kData, 100, kDescNext, 8};
       r.offer(0);
     },
     "next descriptor is outside"},
    {"self loop",
     [](RawRing& r) {
       r.desc(0) = {kData, 100, kDescNext, 0};
       r.offer(0);
     },
     "loops"},
    {"long loop",
     [](RawRing& r) {
       for (uint16_t i = 0; i < 8; i++)
         r.desc(i) = {kData, 16, kDescNext, static_cast<uint16_t>((i + 1) % 8)};
       r.offer(0);
     },
     "loops"},
    {"avail jump", [](RawRing& r) { r.avail().idx = 9; }, "available index"},
    {"avail behind", [](RawRing& r) { r.avail().idx = 0xffff; }, "available index"},
    {"indirect nested",
     [](RawRing& r) {
       table(r, 0) = {kTable, 16, kDescIndirect, 0};
       r.desc(0) = {kTable, 16, kDescIndirect, 0};
       r.offer(0);
     },
     "inside an indirect"},
    {"indirect next outside",
     [](RawRing& r) {
       table(r, 0) = {kData, 100, kDescNext, 2};
       r.desc(0) = {kTable, 32, kDescIndirect, 0};
       r.offer(0);
     },
     "outside the indirect table"},
    {"indirect loop",
     [](RawRing& r) {
       table(r, 0) = {kData, 100, kDescNext, 0};
       r.desc(0) = {kTable, 32, kDescIndirect, 0};
       r.offer(0);
     },
     "loops"},
};

// As a chain of NEXT and next; its first descriptor is to[0].
void link(VirtqDesc* to, const std::vector<VirtqDesc>& chain) {
  for (size_t i = 0; i < chain.size(); i++) {
    const bool last = i + 1 == chain.size();
    to[i] = {chain[i].addr, chain[i].len, static_cast<uint16_t>(chain[i].flags | (last ? 0 : kDescNext)),
             static_cast<uint16_t>(last ? 0 : i + 1)};
  }
}

// In a receiveq the same chains are writable.
template <class Write>
void expect_broken(const char* row, const char* cause, bool indirect, const Write& write) {
  for (bool transmit : {true, false}) {
    Memory m(kBytes);
    RawRing ring(m, kBase, 8);
    write(ring);
    if (!transmit) {
      for (uint32_t i = 0; i < 8; i++)
        if (ring.desc(i).len || ring.desc(i).flags) ring.desc(i).flags |= kDescWrite;
      for (uint32_t i = 0; i < 9; i++) table(ring, i).flags |= kDescWrite;
    }
    std::string error;
    const uint64_t features = kFeatureVersion1 | (indirect ? kFeatureIndirect : 0);
    auto q = PeerQueue::create(options_for(m, ring.at, transmit, features), &error);
    CHECK(q != nullptr);
    if (transmit) {
      Burst burst(64);
      CHECK_EQ(q->receive(burst), 0);
      CHECK_EQ(q->receive(burst), 0);
    } else {
      Frames frames;
      frames.add(300, 1);
      CHECK_EQ(q->send(frames.burst), 0);
    }
    malformed::check_broken(*q, transmit, row, cause);
    q->detached();
    CHECK_EQ(q->next_avail(transmit), 0);
    CHECK_EQ(ring.used().idx, 0);
  }
}

}  // namespace

TEST("a malformed ring breaks its side with the cause, in both directions") {
  for (const Bad& bad : kBad) expect_broken(bad.name, bad.cause, true, bad.write);
  for (const malformed::Chain& bad : malformed::kChains)
    expect_broken(bad.name, bad.cause, bad.indirect, [&](RawRing& ring) {
      link(&table(ring, 0), bad.table);
      link(&ring.desc(0), bad.descriptors);
      ring.offer(0);
    });
}

TEST("a chain in the wrong direction, or writable before readable, breaks the ring") {
  for (const malformed::Direction& row : malformed::kDirections) {
    Memory m(kBytes);
    RawRing ring(m, kBase, 8);
    ring.desc(0) = {kData, 64, static_cast<uint16_t>(row.first | kDescNext), 1};
    ring.desc(1) = {kData + 64, 2048, row.second, 0};
    ring.offer(0);
    std::string error;
    auto q = PeerQueue::create(options_for(m, ring.at, row.transmit, kFeatureVersion1), &error);
    Burst burst(64);
    Frames frames;
    frames.add(100, 1);
    if (row.transmit)
      q->receive(burst);
    else
      q->send(frames.burst);
    CHECK_TEXT(q->broken(!row.transmit), row.cause);
  }
}

TEST("the packets in front of a malformed chain are delivered, and the index stays in front of it") {
  Memory m(kBytes);
  RawRing ring(m, kBase, 8);
  for (uint16_t i = 0; i < 3; i++) {
    ring.desc(i) = {kData + i * 256u, 112, 0, 0};
    ring.offer(i);
  }
  ring.offer(77);
  ring.offer(3);
  std::string error;
  auto q = PeerQueue::create(options_for(m, ring.at, true, kFeatureVersion1), &error);
  Burst burst(64);
  CHECK_EQ(q->receive(burst), 3);
  q->release(burst, 3);
  CHECK_EQ(q->receive(burst), 0);
  CHECK_TEXT(q->broken(false), "head is outside");
  q->detached();
  CHECK_EQ(q->next_avail(true), 3);
  CHECK_EQ(ring.used().idx, 3);
}

TEST("ring areas that are unaligned, overlap, leave their region or have a wrong size are refused") {
  Memory m(kBytes, kBase, {{kBase, 0x80000, 0}, {kBase + 0x80000, 0x80000, 0x80000}});
  struct Row {
    RingAddresses at;
    const char* why;
  };
  for (const Row& row : {
           Row{{0, kBase, kBase + 0x1000, kBase + 0x2000}, "power of two"},
           Row{{3, kBase, kBase + 0x1000, kBase + 0x2000}, "power of two"},
           Row{{65536, kBase, kBase + 0x1000, kBase + 0x2000}, "power of two"},
           Row{{8, kBase + 8, kBase + 0x1000, kBase + 0x2000}, "descriptor table is unaligned"},
           Row{{8, kBase, kBase + 0x1001, kBase + 0x2000}, "available ring is unaligned"},
           Row{{8, kBase, kBase + 0x1000, kBase + 0x2002}, "used ring is unaligned"},
           Row{{8, kBase, kBase + 64, kBase + 0x2000}, "overlap"},
           Row{{8, kBase, kBase + 0x1000, kBase + 0x1010}, "overlap"},
           Row{{8, kBase, kBase + 0x1000, kBase}, "overlap"},
           Row{{8, 0x1000, kBase + 0x1000, kBase + 0x2000}, "descriptor table is not inside"},
           Row{{8, kBase, kBase + kBytes - 8, kBase + 0x2000}, "available ring is not inside"},
           Row{{8, kBase, kBase + 0x1000, UINT64_MAX - 3}, "used ring is not inside"},
           Row{{8, kBase + 0x80000 - 16, kBase + 0x1000, kBase + 0x2000}, "descriptor table is not inside"},
       }) {
    SplitDevice ring;
    SplitDevice::Options o;
    o.ring = row.at;
    std::string error;
    CHECK(!ring.init(m.table, o, &error));
    CHECK_TEXT(error.c_str(), row.why);
  }
}

TEST("ring areas in different or read-only mappings, or seen twice, are refused") {
  Memory m(kBytes);
  Memory other(kBytes);
  auto read_only = Mapping::create(m.fd, 0, kBytes, false);
  std::string error;
  SplitDevice::Options o;
  o.ring = {8, 0x1000, 0x100000, 0x101000};
  SplitDevice a, b, c;
  auto two = RegionTable::create({{0, 0x10000, m.mapping, 0}, {0x100000, 0x10000, other.mapping, 0}}, &error);
  CHECK(!a.init(two, o, &error));
  CHECK_TEXT(error.c_str(), "different mappings");
  auto ro = RegionTable::create({{0, kBytes, read_only, 0}, {kBytes, kBytes, read_only, 0}}, &error);
  CHECK(!b.init(ro, o, &error));
  CHECK_TEXT(error.c_str(), "read-only");
  auto twice =
      RegionTable::create({{0, 0x10000, m.mapping, 0}, {0x100000, 0x10000, m.mapping, 0x1000}}, &error);
  CHECK(!c.init(twice, o, &error));
  CHECK_TEXT(error.c_str(), "overlap");
}

TEST("a descriptor that changes after it was fetched changes nothing") {
  Memory m(kBytes);
  RawRing ring(m, kBase, 8);
  ring.desc(0) = {kData, 112, 0, 0};
  fill(m.at(kData) + 12, 100, 5);
  ring.offer(0);
  std::string error;
  auto q = PeerQueue::create(options_for(m, ring.at, true, kFeatureVersion1), &error);
  Burst burst(64);
  CHECK_EQ(q->receive(burst), 1);
  ring.desc(0) = {0x10, 0xffffffff, kDescNext | kDescIndirect, 99};
  ring.avail().ring[0] = 0x7777;
  m.at(kData)[0] = 1;
  CHECK(burst.packets[0].first.data == m.at(kData) + 12);
  CHECK_EQ(burst.packets[0].length, 100);
  CHECK_EQ(burst.packets[0].header.flags, 0);
  q->release(burst, 1);
  CHECK_EQ(ring.used_at(0).id, 0);
  CHECK(q->broken(false) == nullptr);
}

TEST("a chain of more than 2^32 bytes breaks the ring, one of exactly as many does not") {
  constexpr uint64_t kGiB = 1ull << 30;
  for (bool over : {false, true}) {
    Memory m(kGiB, 0);
    RawRing ring(m, 0, 8);
    for (uint16_t i = 0; i < 4; i++)
      ring.desc(i) = {0, kGiB, static_cast<uint16_t>(i < 3 || over ? kDescNext : 0),
                      static_cast<uint16_t>(i + 1)};
    ring.desc(4) = {0, 1, 0, 0};
    ring.offer(0);
    std::string error;
    auto q = PeerQueue::create(options_for(m, ring.at, true, kFeatureVersion1), &error);
    Burst burst(64);
    CHECK_EQ(q->receive(burst), 0);
    if (over)
      CHECK_TEXT(q->broken(false), "more than 2^32");
    else
      CHECK(q->broken(false) == nullptr);
    CHECK_EQ(q->receive_stats.drops[static_cast<int>(Drop::kTooLong)].get(), over ? 0 : 1);
  }
}

TEST("a used index that somebody else writes ends the service, and is left alone") {
  for (bool transmit : {true, false}) {
    Memory m(kBytes);
    RawRing ring(m, kBase, 8);
    for (uint16_t i = 0; i < 4; i++)
      ring.desc(i) = {kData + i * 2048ull, 1000, static_cast<uint16_t>(transmit ? 0 : kDescWrite), 0};
    std::string error;
    auto q = PeerQueue::create(options_for(m, ring.at, transmit, kFeatureVersion1), &error);
    Burst burst(64);
    const auto move = [&] {
      Frames frames;
      frames.add(100, 1);
      const uint32_t n = transmit ? q->receive(burst) : q->send(frames.burst);
      if (transmit) q->release(burst, n);
      q->flush();
      return n;
    };
    for (uint16_t i = 0; i < 2; i++) {
      ring.offer(i);
      CHECK_EQ(move(), 1);
    }
    const uint16_t ours = ring.used().idx;
    CHECK(q->broken(!transmit) == nullptr);
    ring.offer(2);
    ring.used().idx = static_cast<uint16_t>(ours + 1);
    CHECK_EQ(move(), 0);
    CHECK_TEXT(q->broken(!transmit), "used index was written by somebody else");
    ring.offer(3);
    move();
    q->detached();
    CHECK_EQ(ring.used().idx, ours + 1);
  }
}
