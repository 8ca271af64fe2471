// What a peer queue makes of what it receives: headers, lengths, chains, and what is given back of a burst.
#include "../core/net_header.h"
#include "peer_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::peer;

namespace {

struct HeaderRow {
  NetHeader header;
  bool passes;
  const char* what;
};
// Frame of 100 bytes, all features negotiated.
const HeaderRow kHeaders[] = {
    {{0, 0, 0, 0, 0, 0, 0}, true, "zero"},
    {{1, 0, 0, 0, 34, 16, 0}, true, "checksum"},
    {{1, 0, 0, 0, 82, 16, 0}, true, "checksum at the end"},
    {{1, 0, 0, 0, 83, 16, 0}, false, "checksum one byte behind the end"},
    {{1, 0, 0, 0, 100, 0, 0}, false, "start at the end"},
    {{1, 0, 0, 0, 0, 99, 0}, false, "offset half outside"},
    {{1, 0, 0, 0, 65535, 65535, 0}, false, "start and offset wrap 16 bits"},
    {{0, 0, 0, 0, 60000, 60000, 0}, true, "checksum fields without the flag"},
    {{1, kGsoTcp4, 54, 20, 34, 16, 0}, true, "tso4"},
    {{1, kGsoTcp6, 74, 20, 54, 16, 0}, true, "tso6"},
    {{1, kGsoTcp4 | kGsoEcn, 54, 20, 34, 16, 0}, true, "tso4 ecn"},
    {{1, kGsoUdp, 42, 20, 34, 6, 0}, true, "ufo"},
    {{1, kGsoTcp4, 54, 0, 34, 16, 0}, false, "gso_size 0"},
    {{1, kGsoTcp4, 101, 20, 34, 16, 0}, false, "hdr_len longer than the frame"},
    {{1, kGsoTcp4, 0, 20, 34, 16, 0}, true, "hdr_len is a hint"},
    {{0, kGsoTcp4, 54, 20, 34, 16, 0}, false, "gso without checksum"},
    {{1, 2, 54, 20, 34, 16, 0}, false, "gso type 2"},
    {{1, 0x7f, 54, 20, 34, 16, 0}, false, "gso type 7f"},
    {{1, kGsoEcn, 54, 20, 34, 16, 0}, false, "ecn alone"},
    {{1, kGsoUdpL4, 42, 20, 34, 6, 0}, false, "uso not negotiated"},
    {{0xfe, 0, 0, 0, 0, 0, 0}, true, "unknown flags are ignored"},
    {{0, 0, 200, 0, 0, 0, 0}, false, "hdr_len without gso"},
    {{0, 0, 0, 0, 0, 0, 0xffff}, true, "num_buffers on transmit"},
};

}  // namespace

TEST("every impossible header is dropped as bad-header with its chain completed, every other one passes") {
  for (const HeaderRow& row : kHeaders) {
    Peer p(kAllFeatures);
    p.transmit(0, row.header, 100);
    uint32_t n = p.q->receive(p.burst);
    if (n != row.passes) check::fail(__FILE__, __LINE__, row.what);
    CHECK_EQ(drops(p.q->receive_stats, Drop::kBadHeader), !row.passes);
    if (n) {
      const NetHeader& h = p.burst.packets[0].header;
      CHECK_EQ(h.num_buffers, 0);
      CHECK_EQ(h.flags & ~kHdrNeedsCsum, 0);
      if (!(h.flags & kHdrNeedsCsum)) CHECK_EQ(h.csum_start | h.csum_offset, 0);
      p.q->release(p.burst, 1);
    }
    CHECK_EQ(p.tx.used().idx, 1);
    CHECK_EQ(p.tx.used_at(0).id, 0);
    CHECK(p.q->broken(false) == nullptr);
  }
}

TEST("frames that are too short or too long are dropped and counted, the limits themselves pass") {
  struct Row {
    uint32_t bytes;
    Drop cause;
  };
  for (const Row& row : {Row{1, Drop::kTooShort}, Row{13, Drop::kTooShort}, Row{14, Drop::kCount},
                         Row{2000, Drop::kCount}, Row{2001, Drop::kTooLong}}) {
    Peer p(kAllFeatures, 64, 2000);
    p.transmit(5, {}, row.bytes);
    CHECK_EQ(p.q->receive(p.burst), row.cause == Drop::kCount);
    if (row.cause != Drop::kCount) CHECK_EQ(drops(p.q->receive_stats, row.cause), 1);
    p.q->release(p.burst, 1);
    CHECK_EQ(p.tx.used().idx, 1);
  }
  for (uint32_t length : {1u, 11u, 12u}) {  // a chain that is not longer than the header
    Peer p(kAllFeatures);
    p.tx.desc(0) = {kData, length, 0, 0};
    p.tx.offer(0);
    CHECK_EQ(p.q->receive(p.burst), 0);
    CHECK_EQ(drops(p.q->receive_stats, Drop::kTooShort), 1);
    CHECK_EQ(p.tx.used().idx, 1);
  }
}

TEST("a packet is the same however its bytes are split over descriptors, tables and regions") {
  check::Random r(11);
  for (int round = 0; round < 600; round++) {
    for (uint64_t features : {kAllFeatures, kAllFeatures & ~kFeatureVersion1}) {
      uint32_t header_bytes = net_header_bytes(features);
      // Two regions that follow one another as addresses and lie apart in the file.
      Memory m(1 << 20, kBase, {{kBase, 0x80000, 0x80000}, {kBase + 0x80000, 0x80000, 0}});
      RawRing tx(m, kBase, 32);
      PeerQueueOptions o;
      o.table = m.table;
      o.features = features;
      o.transmit.emplace();
      o.transmit->ring = tx.at;
      std::string error;
      auto q = PeerQueue::create(o, &error);
      uint32_t frame = 14 + static_cast<uint32_t>(r.below(400));
      std::vector<uint8_t> bytes(header_bytes + frame);
      fill(bytes.data() + header_bytes, frame, static_cast<uint64_t>(round));
      NetHeader h = {1, 0, 0, 0, static_cast<uint16_t>(r.below(frame - 1)), 0, 0};
      std::memcpy(bytes.data(), &h, header_bytes);
      // The data goes across the border of the regions.
      uint64_t address = kBase + 0x80000 - r.below(bytes.size());
      for (size_t i = 0; i < bytes.size(); i++) *m.at(address + i) = bytes[i];
      bool indirect = r.below(2);
      uint64_t table = kBase + 0x80000 - 16 * r.below(4) - (r.below(2) ? 7 : 0) + 0x1000 * r.below(2);
      if (table < address + bytes.size() && table + 512 > address) table = kBase + 0x90003;
      uint32_t pieces = 1 + static_cast<uint32_t>(r.below(20)), at = 0;
      for (uint32_t i = 0; i < pieces; i++) {
        uint32_t left = static_cast<uint32_t>(bytes.size()) - at;
        bool last = i == pieces - 1 || left == 1;
        uint32_t part = last ? left : 1 + static_cast<uint32_t>(r.below(std::min(left - 1, 40u)));
        VirtqDesc d = {address + at, part, static_cast<uint16_t>(last ? 0 : kDescNext),
                       static_cast<uint16_t>(i + 1)};
        if (indirect)
          for (uint32_t k = 0; k < 16; k++) *m.at(table + 16 * i + k) = reinterpret_cast<uint8_t*>(&d)[k];
        else
          tx.desc(i) = d;
        at += part;
        if (last) {
          pieces = i + 1;
          break;
        }
      }
      // WRITE on the descriptor that refers to the table is ignored.
      if (indirect)
        tx.desc(0) = {table, 16 * pieces,
                      static_cast<uint16_t>(kDescIndirect | (r.below(2) ? kDescWrite : 0)), 0};
      tx.offer(0);
      Burst burst(64);
      CHECK_EQ(q->receive(burst), 1);
      if (burst.empty()) {
        std::fprintf(stderr, "  %s\n", q->broken(false) ? q->broken(false) : "no cause");
        return;
      }
      CHECK_EQ(burst.packets[0].length, frame);
      CHECK_EQ(burst.packets[0].header.csum_start, h.csum_start);
      CHECK(bytes_of(burst, burst.packets[0]) ==
            std::vector<uint8_t>(bytes.begin() + header_bytes, bytes.end()));
    }
  }
}

TEST("chains that do not fit the rest of a burst come with the next one, those that fit none are dropped") {
  Peer p(kAllFeatures, 64);
  Burst small(3);
  auto chain = [&](uint16_t first, uint16_t pieces) {
    for (uint16_t i = 0; i < pieces; i++)
      p.tx.desc(first + i) = {kData + 64u * (first + i), 40,
                              static_cast<uint16_t>(i + 1 < pieces ? kDescNext : 0),
                              static_cast<uint16_t>(first + i + 1)};
    p.tx.offer(first);
  };
  chain(0, 3);
  chain(10, 3);
  chain(20, 5);
  chain(30, 1);
  CHECK_EQ(p.q->receive(small), 1);
  CHECK_EQ(small.packets[0].length, 108);
  p.q->release(small, 1);
  CHECK_EQ(p.q->receive(small), 1);
  p.q->release(small, 1);
  CHECK_EQ(p.q->receive(small), 1);
  CHECK_EQ(small.packets[0].length, 28);
  CHECK_EQ(drops(p.q->receive_stats, Drop::kBadChain), 1);
  p.q->release(small, 1);
  CHECK_EQ(p.tx.used().idx, 4);
  CHECK_EQ(p.tx.used_at(2).id, 20);
  CHECK_EQ(p.tx.used_at(3).id, 30);
}

TEST(
    "released packets and dropped ones between them are completed in ring order, the rest is given back "
    "unread") {
  check::Random r(5);
  for (int round = 0; round < 300; round++) {
    Peer p(kAllFeatures);
    std::vector<bool> good;
    uint32_t count = 1 + static_cast<uint32_t>(r.below(64));
    for (uint32_t i = 0; i < count; i++) {
      good.push_back(r.below(4) != 0);
      p.transmit(static_cast<uint16_t>(i), {}, good.back() ? 60 : 5);
    }
    uint32_t n = p.q->receive(p.burst);
    CHECK_EQ(n, static_cast<uint32_t>(std::count(good.begin(), good.end(), true)));
    Burst second(16);
    if (n) CHECK_EQ(p.q->receive(second), 0);  // one burst at a time
    uint32_t release = n ? static_cast<uint32_t>(r.below(n + 1)) : 0, released = 0;
    while (released < release) {
      uint32_t k = 1 + static_cast<uint32_t>(r.below(release - released));
      p.q->release(p.burst, k);
      released += k;
    }
    CHECK_EQ(p.burst.count(), n - release);
    p.q->detached();
    // Exactly the chains up to the last released packet and the drops behind it.
    uint32_t expected = 0, seen = 0;
    if (n == 0)
      expected = count;
    else if (release)
      for (; expected < count && (!good[expected] || seen < release); expected++) seen += good[expected];
    if (n && !release) expected = 0;
    CHECK_EQ(p.tx.used().idx, expected);
    CHECK_EQ(p.q->next_avail(true), expected);
    for (uint32_t i = 0; i < expected; i++) CHECK_EQ(p.tx.used_at(static_cast<uint16_t>(i)).id, i);
    // Attached again, the rest comes.
    uint32_t rest = p.q->receive(p.burst);
    CHECK_EQ(rest, n - release);
    for (uint32_t i = 0; i < rest; i++) CHECK_EQ(p.burst.packets[i].length, 60);
  }
}
