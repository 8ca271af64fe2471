// What a peer queue puts into receive buffers: every shape of chain, merging and its roll-back, offloads.
#include "../core/net_header.h"
#include "peer_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::peer;

TEST("receive buffers of any shape get header, frame, num_buffers and used lengths right") {
  check::Random r(21);
  for (int round = 0; round < 1500; round++) {
    bool mergeable = r.below(2), v1 = r.below(2);
    uint64_t features = kAllFeatures | (mergeable ? kNetMrgRxbuf : 0);
    if (!v1) features &= ~kFeatureVersion1;
    Peer p(features);
    const uint32_t header_bytes = net_header_bytes(features);
    struct Chain {
      uint16_t head;
      std::vector<std::pair<uint64_t, uint32_t>> pieces;
      uint32_t length = 0;
    };
    std::vector<Chain> chains;
    uint64_t at = kData;
    for (uint16_t d = 0; d < 60;) {
      Chain c{d, {}, 0};
      uint32_t pieces = 1 + static_cast<uint32_t>(r.below(4));
      for (uint32_t i = 0; i < pieces && d < 64; i++, d++) {
        uint32_t length = 1 + static_cast<uint32_t>(r.below(mergeable ? 200 : 700));
        if (i == 0 && r.below(10)) length += 12;
        bool last = i == pieces - 1 || d == 63;
        p.rx.desc(d) = {at, length, static_cast<uint16_t>(kDescWrite | (last ? 0 : kDescNext)),
                        static_cast<uint16_t>(d + 1)};
        c.pieces.push_back({at, length});
        c.length += length;
        at += length + r.below(64);
      }
      p.rx.offer(c.head);
      chains.push_back(c);
    }
    std::vector<uint8_t> before(p.m.mapping->data(), p.m.mapping->data() + kBytes);
    Frames frames;
    uint32_t count = 1 + static_cast<uint32_t>(r.below(20));
    for (uint32_t i = 0; i < count; i++) frames.add(14 + static_cast<uint32_t>(r.below(900)), r.next());
    uint32_t taken = p.q->send(frames.burst);

    // The model: chains in order; a packet takes as many as it needs, a first chain shorter than the header
    // goes back empty, a packet that does not fit one chain without merging is dropped.
    size_t c = 0;
    uint32_t expect_taken = 0;
    uint16_t used = 0;
    uint64_t too_long = 0, bad_chain = 0;
    for (; expect_taken < count; expect_taken++) {
      const auto& frame = frames.bytes[expect_taken];
      while (c < chains.size() && chains[c].length < header_bytes) {
        CHECK_EQ(p.rx.used_at(used).id, chains[c].head);
        CHECK_EQ(p.rx.used_at(used).len, 0);
        used++, c++, bad_chain++;
      }
      uint32_t need = header_bytes + static_cast<uint32_t>(frame.size()), got = 0, k = 0;
      while (got < need && c + k < chains.size() && (mergeable || k == 0)) got += chains[c + k++].length;
      if (got < need) {
        if (mergeable || k == 0) break;  // no room
        too_long++;
        continue;
      }
      NetHeader h;
      h.num_buffers = static_cast<uint16_t>(k);
      std::vector<uint8_t> want(reinterpret_cast<uint8_t*>(&h),
                                reinterpret_cast<uint8_t*>(&h) + header_bytes),
          have;
      want.insert(want.end(), frame.begin(), frame.end());
      uint32_t left = need;
      for (uint32_t i = 0; i < k; i++, c++, used++) {
        uint32_t part = std::min(left, chains[c].length);
        left -= part;
        CHECK_EQ(p.rx.used_at(used).id, chains[c].head);
        CHECK_EQ(p.rx.used_at(used).len, part);
        for (auto& [address, length] : chains[c].pieces) {
          uint32_t n = std::min(part, length);
          have.insert(have.end(), p.m.at(address), p.m.at(address) + n);
          // Nothing behind the used length is touched.
          uint64_t offset = address - kBase;
          CHECK(std::memcmp(p.m.at(address) + n, before.data() + offset + n, length - n) == 0);
          part -= n;
        }
      }
      CHECK(want == have);
    }
    CHECK_EQ(taken, expect_taken);
    CHECK_EQ(p.rx.used().idx, used);
    CHECK_EQ(drops(p.q->send_stats, Drop::kTooLong), too_long);
    CHECK_EQ(drops(p.q->send_stats, Drop::kBadChain), bad_chain);
    CHECK_EQ(p.q->send_stats.packets.get(), expect_taken - too_long);
    p.q->detached();
    CHECK_EQ(p.q->next_avail(false), used);
    if (check::failing()) return;
  }
}

TEST("a packet that more buffers than the ring holds could not take is dropped, not held for ever") {
  Peer p(kAllFeatures | kNetMrgRxbuf, 4);
  for (uint16_t i = 0; i < 4; i++) p.buffer(i, 100);
  Frames frames;
  frames.add(400, 1);
  frames.add(300, 2);
  CHECK_EQ(p.q->send(frames.burst), 2);
  CHECK_EQ(drops(p.q->send_stats, Drop::kTooLong), 1);
  CHECK_EQ(p.rx.used().idx, 4);
  CHECK_EQ(p.m.ref<NetHeader>(kData).num_buffers, 4);
}

TEST("offloads that the peer did not negotiate are completed or refused, never passed on") {
  struct Row {
    uint64_t features;
    NetHeader header;
    bool delivered;
    uint8_t flags, gso;
  };
  const uint64_t kNone = kFeatureVersion1;
  const uint64_t kTso = kFeatureVersion1 | kNetGuestCsum | kNetGuestTso4;
  const NetHeader tso4 = {1, kGsoTcp4, 54, 100, 34, 16, 0}, ecn = {1, kGsoTcp4 | kGsoEcn, 54, 100, 34, 16, 0};
  const NetHeader tso6 = {1, kGsoTcp6, 74, 100, 54, 16, 0}, ufo = {1, kGsoUdp, 42, 100, 34, 6, 0};
  const NetHeader uso = {1, kGsoUdpL4, 42, 100, 34, 6, 0}, csum = {1, 0, 0, 0, 34, 16, 0},
                  valid = {2, 0, 0, 0, 0, 0, 0};
  const Row rows[] = {
      {kNone, tso4, false, 0, 0},
      {kNone, csum, true, 0, 0},
      {kNone, valid, true, 0, 0},
      {kTso, tso4, true, 1, 1},
      {kTso, ecn, false, 0, 0},
      {kTso | kNetGuestEcn, ecn, true, 1, 0x81},
      {kTso, tso6, false, 0, 0},
      {kTso | kNetGuestTso6, tso6, true, 1, 4},
      {kTso, ufo, false, 0, 0},
      {kTso | kNetGuestUfo, ufo, true, 1, 3},
      {kTso, uso, false, 0, 0},
      {kTso | kNetGuestUso4, uso, false, 0, 0},
      {kTso | kNetGuestUso4 | kNetGuestUso6, uso, true, 1, 5},
      {kTso, csum, true, 1, 0},
      {kTso, valid, true, 2, 0},
      {kFeatureVersion1 | kNetGuestTso4, tso4, false, 0, 0},
  };
  for (const Row& row : rows) {
    Peer p(row.features);
    p.buffer(0, 2048);
    Frames frames;
    frames.add(500, 3, row.header);
    CHECK_EQ(p.q->send(frames.burst), 1);
    CHECK_EQ(p.rx.used().idx, row.delivered);
    CHECK_EQ(drops(p.q->send_stats, Drop::kOffload), !row.delivered);
    if (!row.delivered) continue;
    const NetHeader& h = p.m.ref<NetHeader>(kData);
    CHECK_EQ(h.flags, row.flags);
    CHECK_EQ(h.gso_type, row.gso);
    CHECK_EQ(h.num_buffers, 1);
    if (row.flags & 1)
      CHECK_EQ(h.csum_start, row.header.csum_start);
    else
      CHECK_EQ(h.csum_start | h.csum_offset | h.hdr_len | h.gso_size, 0);
  }
}

TEST("a checksum that is completed here verifies, for every length, start and split of the frame") {
  check::Random r(31);
  for (int round = 0; round < 500; round++) {
    Peer p(kFeatureVersion1 | kNetMrgRxbuf);
    for (uint16_t i = 0; i < 60; i++) p.buffer(i, 100);
    uint32_t length = 40 + static_cast<uint32_t>(r.below(1000));
    uint16_t start = static_cast<uint16_t>(r.below(length - 20)), offset = static_cast<uint16_t>(r.below(19));
    Frames frames;
    Packet& packet = frames.add(length, r.next(), {1, 0, 0, 0, start, offset, 0});
    std::vector<uint8_t> original = frames.bytes[0];
    uint32_t cut = 1 + static_cast<uint32_t>(r.below(length - 1));
    packet.first.length = cut;
    packet.segments = 2;
    packet.more = 0;
    frames.burst.extra[0] = {frames.bytes[0].data() + cut, length - cut};
    CHECK_EQ(p.q->send(frames.burst), 1);
    CHECK(frames.bytes[0] == original);
    std::vector<uint8_t> got;
    for (uint16_t i = 0; i < p.rx.used().idx; i++)
      got.insert(got.end(), p.m.at(kData + 4096u * i), p.m.at(kData + 4096u * i) + p.rx.used_at(i).len);
    got.erase(got.begin(), got.begin() + 12);
    CHECK_EQ(got.size(), length);
    // The plain definition: the 16-bit words from start, the sum of which the field now completes.
    auto sum_of = [&](const std::vector<uint8_t>& f) {
      uint64_t sum = 0;
      for (uint32_t i = start; i < length; i += 2) sum += f[i] << 8 | (i + 1 < length ? f[i + 1] : 0);
      while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
      return static_cast<uint16_t>(sum);
    };
    uint16_t field = static_cast<uint16_t>(got[start + offset] << 8 | got[start + offset + 1]);
    uint16_t expected = static_cast<uint16_t>(~sum_of(original));
    if (offset % 2) expected = static_cast<uint16_t>(expected << 8 | expected >> 8);
    if (offset % 2 == 0) CHECK_EQ(field, expected ? expected : 0xffff);
    got[start + offset] = original[start + offset];
    got[start + offset + 1] = original[start + offset + 1];
    CHECK(got == original);
  }
}
