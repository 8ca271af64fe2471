// Device side of the packed ring against a driver that writes what it must not: every malformed ring by table, areas that
// cannot be, descriptors that change.
#include "malformed.h"
#include "packed_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::packed;

namespace {

struct Bad {
  const char* name;
  void (*write)(RawPacked& ring, uint16_t write);
  const char* cause;
};

PackedDesc& table(const RawPacked& r, uint32_t i) { return (&r.memory.ref<PackedDesc>(malformed::kTable))[i]; }

// What only this format can have wrong, in a ring of 8; `w` is WRITE in a receiveq.
const Bad kBad[] = {
    {"endless chain",
     [](RawPacked& r, uint16_t w) {
       for (int i = 0; i < 8; i++) r.put({kData, 16, static_cast<uint16_t>(w | kDescNext), 0});
     },
     "longer than the ring has room"},
    {"endless chain behind another",
     [](RawPacked& r, uint16_t w) {
       r.offer(1, {{kData, 4, w, 0}});  // too short for a packet: dropped
       for (int i = 0; i < 7; i++) r.put({kData, 16, static_cast<uint16_t>(w | kDescNext), 0});
     },
     "longer than the ring has room"},
    {"indirect last of a list",
     [](RawPacked& r, uint16_t w) {
       table(r, 0) = {kData, 100, 0, w};
       r.offer(0, {{kData, 4, w, 0}, {malformed::kTable, 16, kDescIndirect, 0}});
     },
     "indirect descriptor with NEXT"},
};

template <class Write>
void expect_broken(const char* row, const char* cause, bool indirect, const Write& write) {
  for (Position start : {kPackedStart, Position{7}, Position{kPositionWrap | 5}}) {
    for (bool transmit : {true, false}) {
      Memory m(kBytes);
      RawPacked ring(m, kBase, 8);
      ring.start(start);
      auto q = queue_for(m, ring, transmit, kPlain | (indirect ? kFeatureIndirect : 0));
      write(ring, transmit ? 0 : kDescWrite);
      Burst burst(64);
      Frames frames;
      frames.add(300, 1);
      for (int i = 0; i < 2; i++) {
        if (transmit)
          CHECK_EQ(q->receive(burst), 0);
        else
          q->send(frames.burst);
      }
      malformed::check_broken(*q, transmit, row, cause);
      q->detached();
      // Only a chain in front of the malformed one has been given back.
      if (q->next_avail(transmit) != start) CHECK_EQ(ring.take(), 1);
      CHECK_EQ(q->next_avail(transmit), ring.used);
    }
  }
}

}  // namespace

TEST("packed: a malformed ring breaks its side with the cause, in both directions, at the start and over the end") {
  for (const Bad& bad : kBad) expect_broken(bad.name, bad.cause, true, bad.write);
  for (const malformed::Chain& bad : malformed::kChains)
    expect_broken(bad.name, bad.cause, bad.indirect, [&](RawPacked& ring, uint16_t w) {
      for (uint32_t i = 0; i < bad.table.size(); i++)
        table(ring, i) = {bad.table[i].addr, bad.table[i].len, 0, static_cast<uint16_t>(bad.table[i].flags | w)};
      std::vector<VirtqDesc> chain = bad.descriptors;
      for (VirtqDesc& d : chain) d.flags |= w;
      ring.offer(0, chain);
    });
}

TEST("packed: a descriptor whose flags say anything but available is not touched") {
  for (uint16_t flags : {uint16_t{0}, uint16_t{kDescAvail | kDescUsed}, uint16_t{kDescUsed}, uint16_t{0x7f7f}}) {
    Memory m(kBytes);
    RawPacked ring(m, kBase, 8);
    ring.desc(0) = {0x10, 0, 99, static_cast<uint16_t>(flags & ~(flags == 0x7f7f ? 0x80 : 0))};
    auto q = queue_for(m, ring, true);
    Burst burst(64);
    CHECK_EQ(q->receive(burst), 0);
    CHECK(q->broken(false) == nullptr);
    q->detached();
    CHECK_EQ(q->next_avail(true), kPackedStart);
    CHECK_EQ(ring.desc(0).id, 99);
  }
}

TEST("packed: a chain in the wrong direction, or writable before readable, breaks the ring") {
  for (const malformed::Direction& row : malformed::kDirections) {
    Memory m(kBytes);
    RawPacked ring(m, kBase, 8);
    ring.offer(0, {{kData, 64, row.first, 0}, {kData + 64, 2048, row.second, 0}});
    auto q = queue_for(m, ring, row.transmit);
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

TEST("packed: the packets in front of a malformed chain are delivered, and the position stays in front of it") {
  Memory m(kBytes);
  RawPacked ring(m, kBase, 8);
  for (uint16_t i = 0; i < 3; i++) ring.offer(i, {{kData + i * 256u, 112, 0, 0}});
  for (int i = 0; i < 5; i++) ring.put({kData, 16, kDescNext, 0});
  auto q = queue_for(m, ring, true);
  Burst burst(64);
  CHECK_EQ(q->receive(burst), 3);
  q->release(burst, 3);
  CHECK_EQ(q->receive(burst), 0);
  CHECK_TEXT(q->broken(false), "longer than the ring");
  q->detached();
  CHECK_EQ(q->next_avail(true), kPositionWrap | 3);
  for (uint16_t i = 0; i < 3; i++) CHECK_EQ(ring.take(), i);
  CHECK_EQ(ring.take(), 65536);
}

TEST("packed: ring areas that are unaligned, overlap, leave their region, or a size or position that cannot be") {
  Memory m(kBytes, kBase, {{kBase, 0x80000, 0}, {kBase + 0x80000, 0x80000, 0x80000}});
  struct Row {
    RingAddresses at;
    Position start;
    const char* why;
  };
  for (const Row& row : {
           Row{{0, kBase, kBase + 0x1000, kBase + 0x2000}, 0, "size is not from 1 to 32768"},
           Row{{32769, kBase, kBase + 0x1000, kBase + 0x2000}, 0, "size is not from 1 to 32768"},
           Row{{8, kBase, kBase + 0x1000, kBase + 0x2000}, 8, "position is outside"},
           Row{{8, kBase, kBase + 0x1000, kBase + 0x2000}, 0xffff, "position is outside"},
           Row{{8, kBase + 8, kBase + 0x1000, kBase + 0x2000}, 0, "descriptor ring is unaligned"},
           Row{{8, kBase, kBase + 0x1002, kBase + 0x2000}, 0, "driver event area is unaligned"},
           Row{{8, kBase, kBase + 0x1000, kBase + 0x2002}, 0, "device event area is unaligned"},
           Row{{8, kBase, kBase + 64, kBase + 0x2000}, 0, "overlap"},
           Row{{8, kBase, kBase + 0x1000, kBase + 124}, 0, "overlap"},
           Row{{8, kBase, kBase + 0x1000, kBase + 0x1000}, 0, "overlap"},
           Row{{8, 0x1000, kBase + 0x1000, kBase + 0x2000}, 0, "descriptor ring is not inside"},
           Row{{8, kBase, kBase + kBytes, kBase + 0x2000}, 0, "driver event area is not inside"},
           Row{{8, kBase, kBase + 0x1000, UINT64_MAX - 3}, 0, "device event area is not inside"},
           Row{{8, kBase + 0x80000 - 16, kBase + 0x1000, kBase + 0x2000}, 0, "descriptor ring is not inside"},
       }) {
    PackedDevice ring;
    DeviceRing::Options o;
    o.ring = row.at;
    o.next_avail = row.start;
    std::string error;
    CHECK(!ring.init(m.table, o, &error));
    CHECK_TEXT(error.c_str(), row.why);
  }
  Memory other(kBytes);
  std::string error;
  auto two = RegionTable::create({{0, 0x10000, m.mapping, 0}, {0x100000, 0x10000, other.mapping, 0}}, &error);
  DeviceRing::Options o;
  o.ring = {8, 0x1000, 0x2000, 0x100000};
  PackedDevice apart;
  CHECK(!apart.init(two, o, &error));
  CHECK_TEXT(error.c_str(), "different mappings");
}

TEST("packed: a descriptor that changes after it was fetched changes nothing but its own packet") {
  Memory m(kBytes);
  RawPacked ring(m, kBase, 8);
  fill(m.at(kData) + 12, 100, 5);
  ring.offer(7, {{kData, 112, 0, 0}});
  ring.offer(3, {{kData, 12, 0, 0}, {kData + 12, 50, 0, 0}, {kData + 62, 50, 0, 0}});
  auto q = queue_for(m, ring, true, kPlain | kFeatureIndirect);
  Burst burst(64);
  CHECK_EQ(q->receive(burst), 2);
  // Another id, endless, a table: the ring is what it was.
  for (uint32_t i = 0; i < 8; i++) ring.desc(i) = {0x10, 0xffffffff, 99, kDescNext | kDescIndirect | kDescAvail};
  CHECK(burst.packets[0].first.data == m.at(kData) + 12);
  CHECK_EQ(burst.packets[1].length, 100);
  q->release(burst, 2);
  CHECK_EQ(ring.take(), 7);
  CHECK_EQ(ring.take(), 3);
  CHECK(q->broken(false) == nullptr);

  // Between the look ahead and the walk over the chain: it has the length that was seen.
  RawPacked next(m, kBase, 8);
  next.start(kPackedStart);
  auto again = queue_for(m, next, true, kPlain | kFeatureIndirect);
  for (uint16_t i = 0; i < 2; i++)
    next.offer(i, {{kData, 12, 0, 0}, {kData + 12, 50, 0, 0}, {kData + 62, 50, 0, 0}});
  Burst small(1);
  CHECK_EQ(again->receive(small), 1);
  for (uint32_t i = 3; i < 6; i++) next.desc(i).flags |= kDescNext;
  again->release(small, 1);
  CHECK_EQ(again->receive(small), 1);
  CHECK_EQ(small.packets[0].length, 100);
  next.desc(5).flags |= kDescIndirect;
  again->release(small, 1);
  CHECK_EQ(next.take(), 0);
  CHECK_EQ(next.take(), 1);
}
