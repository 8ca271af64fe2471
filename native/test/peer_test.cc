// What a peer queue makes of what it receives, and its life: headers, chains, disabled rings, the dirty log,
// memory that vanishes, notifications.
#include <sys/eventfd.h>

#include "../core/frame_copy.h"
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

TEST("a started ring that is not enabled gives no packets: its own are discarded, those for it refused") {
  Peer p(kAllFeatures);
  p.q->set_enabled(false, false);
  for (uint16_t i = 0; i < 10; i++) p.transmit(i, {}, 60);
  p.buffer(0, 2048);
  CHECK_EQ(p.q->receive(p.burst), 0);
  CHECK_EQ(p.tx.used().idx, 10);
  CHECK_EQ(drops(p.q->receive_stats, Drop::kDisabled), 10);
  Frames frames;
  frames.add(60, 1);
  CHECK_EQ(p.q->send(frames.burst), 1);
  CHECK_EQ(drops(p.q->send_stats, Drop::kDisabled), 1);
  CHECK_EQ(p.rx.used().idx, 0);
  p.q->set_enabled(true, true);
  p.transmit(11, {}, 60);
  CHECK_EQ(p.q->receive(p.burst), 1);
  CHECK_EQ(p.q->send(frames.burst), 1);
  CHECK_EQ(p.rx.used().idx, 1);
}

TEST("the dirty log has exactly the pages that were written, in every mode") {
  check::Random r(41);
  for (int round = 0; round < 300; round++) {
    uint64_t features = kAllFeatures | (r.below(2) ? kNetMrgRxbuf : 0) | (r.below(2) ? kFeatureEventIdx : 0);
    Peer p(features, 16);
    Memory log_memory(4096);
    std::string error;
    auto log = DirtyLog::create(log_memory.mapping, 0, kBytes / 4096 / 8, &error);
    std::memset(p.m.at(kData), 0xa5, 0x100000);  // so that a written zero is a change
    p.q->set_dirty_log(log);
    for (uint16_t i = 0; i < 16; i++) {
      // Buffers of up to two pages anywhere, some of them over a page border.
      p.rx.desc(i) = {kData + 0x3000ull * i + r.below(0x1000), 64 + static_cast<uint32_t>(r.below(0x1f00)),
                      kDescWrite, 0};
      if (i % 3 == 0)
        p.rx.desc(i) = {p.rx.desc(i).addr, 64 + static_cast<uint32_t>(r.below(500)), kDescWrite | kDescNext,
                        static_cast<uint16_t>(i + 1)};
      p.rx.offer(i);
      if (i % 3 == 0) i++, p.rx.desc(i) = {kData + 0x3000ull * i, 2000, kDescWrite, 0};
    }
    for (uint16_t i = 0; i < 16; i++) {
      uint64_t at = kData + 0x100000 + 256ull * i;
      p.tx.desc(i) = {at, 12 + 60, 0, 0};
      p.tx.offer(i);
    }
    std::vector<uint8_t> before(p.m.mapping->data(), p.m.mapping->data() + kBytes);
    Frames frames;
    for (int i = 0; i < 12; i++) frames.add(14 + static_cast<uint32_t>(r.below(3000)), r.next());
    switch (r.below(4)) {
      case 0: p.q->arm(r.below(2)); break;
      case 1: p.q->set_enabled(false, true); break;
    }
    p.q->send(frames.burst);
    p.q->receive(p.burst);
    p.q->release(p.burst, static_cast<uint32_t>(r.below(17)));
    p.q->flush();
    p.q->detached();
    const uint8_t* bits = log_memory.mapping->data();
    for (uint64_t page = 0; page < kBytes / 4096; page++) {
      bool changed = std::memcmp(p.m.mapping->data() + page * 4096, before.data() + page * 4096, 4096) != 0;
      bool marked = bits[page / 8] >> page % 8 & 1;
      // A write of what was there already marks too; only ring pages see such writes.
      bool ring_page = page * 4096 == p.tx.at.device - kBase || page * 4096 == p.rx.at.device - kBase;
      if (changed && !marked) check::fail_equal(__FILE__, __LINE__, "page written and not logged", page, 0);
      if (marked && !changed && !ring_page)
        check::fail_equal(__FILE__, __LINE__, "page logged and not written", page, 0);
    }
    p.q->set_dirty_log(nullptr);
    if (check::failing()) return;
  }
}

TEST("nothing is logged while the log is off, and a log that is too short is not left") {
  Peer p(kAllFeatures, 16);
  Memory log_memory(4096);
  std::string error;
  p.q->set_dirty_log(DirtyLog::create(log_memory.mapping, 0, 1, &error));
  p.buffer(0, 2048);
  p.buffer(1, 2048);
  Frames frames;
  frames.add(60, 1);
  p.q->send(frames.burst);
  for (int i = 1; i < 4096; i++) CHECK_EQ(log_memory.mapping->data()[i], 0);
  p.q->set_dirty_log(nullptr);
  log_memory.mapping->data()[0] = 0;
  p.q->send(frames.burst);
  CHECK_EQ(log_memory.mapping->data()[0], 0);
}

TEST("peer memory that vanishes breaks both sides and nothing else") {
  for (int when = 0; when < 4; when++) {
    Peer p(kAllFeatures);
    for (uint16_t i = 0; i < 8; i++) p.transmit(i, {}, 60);
    for (uint16_t i = 0; i < 8; i++) p.buffer(i, 2048);
    Frames frames;
    frames.add(60, 1);
    uint32_t n = 0;
    if (when >= 1) n = p.q->receive(p.burst);
    if (when == 3) p.q->send(frames.burst);
    CHECK_EQ(::ftruncate(p.m.fd, when == 2 ? 0x80000 : 0), 0);
    if (when == 0) CHECK_EQ(p.q->receive(p.burst), 0);
    if (when >= 1) {
      CHECK_EQ(n, 8);
      uint8_t copy[512];
      for (uint32_t i = 0; i < n; i++) copy_packet(copy, p.burst, p.burst.packets[i]);
      p.q->release(p.burst, n);
    }
    p.q->send(frames.burst);
    p.q->flush();
    p.q->receive(p.burst);
    CHECK_TEXT(p.q->broken(false), "peer memory vanished");
    CHECK_TEXT(p.q->broken(true), "peer memory vanished");
    CHECK_EQ(p.q->send(frames.burst), 1);
    CHECK(p.q->arm(false) && p.q->arm(true));
    p.q->disarm(false);
    p.q->detached();
  }
}

TEST("completions are signalled by used_event in flush, buffers by the same rule, and both are counted") {
  for (bool event_idx : {true, false}) {
    Memory m(kBytes, kBase);
    RawRing tx(m, kBase, 64);
    int call = ::eventfd(0, EFD_NONBLOCK), kick = ::eventfd(3, EFD_NONBLOCK);
    PeerQueueOptions o;
    o.table = m.table;
    o.features = kFeatureVersion1 | (event_idx ? kFeatureEventIdx : 0);
    o.transmit.emplace();
    o.transmit->ring = tx.at;
    o.transmit->kick_fd = kick;
    o.transmit->notify.fd = call;
    std::string error;
    auto q = PeerQueue::create(o, &error);
    CHECK(q->wait_fd(false) >= 0);
    CHECK(q->wait_fd(false) != kick);  // a duplicate
    CHECK_EQ(q->wait_fd(true), PortQueue::kNever);
    Burst burst(16);
    auto one = [&] {
      uint16_t d = static_cast<uint16_t>(tx.avail_idx % 64);
      tx.desc(d) = {kData, 76, 0, 0};
      tx.offer(d);
      CHECK_EQ(q->receive(burst), 1);
      q->release(burst, 1);
      q->flush();
      uint64_t count = 0;
      return ::read(call, &count, 8) == 8;
    };
    CHECK(one());
    tx.used_event() = 5;
    if (!event_idx) tx.avail().flags = kAvailNoInterrupt;
    for (int i = 1; i < 9; i++) CHECK_EQ(one(), event_idx && i == 5);
    CHECK_EQ(q->receive_stats.notifications_sent.get(), event_idx ? 2 : 1);
    CHECK_EQ(q->receive_stats.notifications_suppressed.get(), event_idx ? 7 : 8);
    CHECK(q->arm(false));
    q->disarm(false);
    uint64_t count = 0;
    CHECK(::read(kick, &count, 8) < 0);  // drained through the duplicate
    q->detached();
    CHECK_EQ(tx.used().flags, 0);
    if (event_idx) CHECK_EQ(tx.avail_event(), q->next_avail(true));
    ::close(call);
    ::close(kick);
  }
}

TEST("options that no peer queue can have are refused with the side named") {
  Memory m(kBytes, kBase);
  PeerQueueOptions o;
  std::string error;
  CHECK(!PeerQueue::create(o, &error));
  o.table = m.table;
  CHECK(!PeerQueue::create(o, &error));
  CHECK_TEXT(error.c_str(), "no ring");
  o.receive.emplace();
  o.receive->ring = {7, kBase, kBase, kBase};
  CHECK(!PeerQueue::create(o, &error));
  CHECK_TEXT(error.c_str(), "receiveq: ring size");
  o.receive->ring = RawRing(m, kBase, 8).at;
  o.receive->kick_fd = 99999;
  CHECK(!PeerQueue::create(o, &error));
  CHECK_TEXT(error.c_str(), "duplicate");
  o.receive->kick_fd = -1;
  o.max_frame = 13;
  CHECK(!PeerQueue::create(o, &error));
}

TEST("the driver is notified once of what whoever served the ring before may not have told it") {
  Peer p(kAllFeatures | kFeatureEventIdx);
  p.rx.start(7);
  p.rx.used_event() = 7;  // wants to hear of the next one only
  const int call = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  PeerQueueOptions o;
  o.table = p.m.table;
  o.features = kAllFeatures | kFeatureEventIdx;
  o.receive.emplace();
  o.receive->ring = p.rx.at;
  o.receive->next_avail = 7;
  o.receive->notify.fd = call;
  auto q = PeerQueue::create(o, nullptr);
  uint64_t n = 0;
  q->flush();
  CHECK_EQ(::read(call, &n, sizeof n), 8);
  CHECK_EQ(n, 1);
  q->flush();
  CHECK_EQ(::read(call, &n, sizeof n), -1);
  ::close(call);
}
