// Long frames from a TAP straight into the buffers of their destination: what is in the ring is what send puts there.
#include "malformed.h"
#include "straight_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::straight;

namespace {

// Chains of any shape that hold some frames of up to `longest` bytes, the same in both rings.
template <class Ring>
void offer_some(check::Random& r, bool mergeable, uint32_t longest, Receiver<Ring>& a, Receiver<Ring>& b) {
  uint64_t data = kData + r.below(0x1000), table = kTables;
  for (uint32_t left = 250; left > 0 && data < kBase + kBytes - 0x8000;) {
    const uint32_t pieces = 1 + static_cast<uint32_t>(r.below(std::min(left, mergeable ? 4u : 20u)));
    const uint32_t least = mergeable ? 500 : r.below(8) ? longest / pieces + 13 : 300;
    std::vector<VirtqDesc> chain;
    for (uint32_t i = 0; i < pieces; i++) {
      const bool tiny = i == 0 && r.below(4) == 0;  // the header over several pieces, or a chain shorter than it
      const uint32_t length = static_cast<uint32_t>(tiny ? 1 + r.below(14) : least + r.below(500));
      chain.push_back({data, length, kDescWrite, 0});
      data += length + r.below(100);
    }
    const bool indirect = r.below(3) == 0;
    for (Receiver<Ring>* to : {&a, &b}) {
      if (indirect) {
        to->rx.table(table, chain);
        to->rx.offer({{table, 16 * pieces, kDescIndirect, 0}});
      } else {
        to->rx.offer(chain);
      }
    }
    left -= indirect ? 1 : pieces;
    if (indirect) table += 16 * pieces;
  }
}

// One of two equal rings gets the frames from a TAP, the other one by send: they stay equal, and their logs too.
template <class Ring>
void equal_to_send(uint64_t seed) {
  check::Random r(seed);
  uint64_t placed = 0, sent = 0;
  for (int round = 0; round < 150 && !check::failing(); round++) {
    const bool mergeable = r.below(2);
    uint64_t features = kFeatures | (mergeable ? kNetMrgRxbuf : 0) | (r.below(2) ? kFeatureEventIdx : 0);
    if (!Ring::kFeature && r.below(4) == 0) features &= ~kFeatureVersion1;
    const uint32_t longest = 9000 + static_cast<uint32_t>(r.below(12000));
    Receiver<Ring> a(features), b(features);
    offer_some(r, mergeable, longest, a, b);
    if (r.below(2)) {
      const auto writers = r.below(2) ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral;
      a.log(writers);
      b.log(writers);
    }
    FakeTap fake;
    auto tap = TapQueue::create(fake.fds[0], longest);
    auto probe = std::make_shared<Probe>(a.q);
    Lane lane(0, tap, probe, LanePolicy::kHold);
    for (int i = 0; i < 12; i++) {
      const uint32_t length = r.below(4) ? 8192 + static_cast<uint32_t>(r.below(longest - 8191)) : 60;
      const NetHeader header = length > 60 && r.below(2) ? kTso : NetHeader{};
      Frames frames;
      frames.add(length, r.next(), header);
      fake.give(header, frames.bytes[0]);
      while (lane.round()) {
      }
      const uint32_t taken = b.q->send(frames.burst);
      CHECK_EQ(lane.burst.empty(), taken == 1);
      CHECK(std::memcmp(a.m.mapping->data(), b.m.mapping->data(), kBytes) == 0);
      CHECK(std::memcmp(a.bitmap.mapping->data(), b.bitmap.mapping->data(), 4096) == 0);
      if (taken == 0 || check::failing()) break;
    }
    placed += probe->placed;
    sent += probe->sent;
    CHECK_EQ(a.q->send_stats.packets.get(), b.q->send_stats.packets.get());
    CHECK_EQ(a.q->send_stats.bytes.get(), b.q->send_stats.bytes.get());
    for (const Drop cause : {Drop::kTooLong, Drop::kBadChain, Drop::kOffload})
      CHECK_EQ(drops(a.q->send_stats, cause), drops(b.q->send_stats, cause));
    for (Receiver<Ring>* peer : {&a, &b}) peer->q->detached();
    CHECK_EQ(a.q->next_avail(false), b.q->next_avail(false));
    CHECK(std::memcmp(a.m.mapping->data(), b.m.mapping->data(), kBytes) == 0);
  }
  CHECK(placed > 150 && sent > 150);
}

// A frame of the most bytes that there are, in a room of buffers as Linux has them.
template <class Ring>
void longest_frame(bool mergeable) {
  Receiver<Ring> p(kFeatures | (mergeable ? kNetMrgRxbuf : 0));
  // VIRTIO 1.3, 5.1.6.3.1: 65562 bytes without merging.
  const uint32_t buffer = mergeable ? 1526 : 65562, count = mergeable ? 43 : 1;
  const uint64_t data = kBase + kBytes / 2 - 700;  // one of them lies across the regions
  for (uint32_t i = 0; i < count; i++) p.rx.offer({{data + i * buffer, buffer, kDescWrite, 0}});
  iovec pieces[64];
  const std::vector<uint8_t> frame = frame_of(kDefaultMaxFrame, 1);
  const uint32_t n = p.q->room(pieces, 64, kDefaultMaxFrame);
  CHECK_EQ(n, count + 1);
  if (n == 0) return;
  write_to(pieces, frame);
  p.q->place(kTso, kDefaultMaxFrame);
  NetHeader header = kTso;
  header.num_buffers = static_cast<uint16_t>(count);
  CHECK(std::memcmp(p.m.at(data), &header, sizeof header) == 0);
  uint64_t left = kDefaultMaxFrame + sizeof header;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t length = 0;
    CHECK_EQ(p.rx.take(&length), i);
    CHECK_EQ(length, std::min<uint64_t>(left, buffer));
    left -= length;
  }
  CHECK_EQ(left, 0);
  for (uint32_t i = 0; i < frame.size(); i += 13) CHECK_EQ(*p.m.at(data + sizeof header + i), frame[i]);
}

// No room is given, nothing of the ring is taken, and send goes on as if nobody had asked.
template <class Ring>
void no_room(uint64_t features, uint32_t most, const std::vector<std::vector<VirtqDesc>>& chains, bool enabled = true) {
  Receiver<Ring> p(features);
  for (const auto& chain : chains) p.rx.offer(chain);
  p.q->set_enabled(true, enabled);
  iovec pieces[64];
  CHECK_EQ(p.q->room(pieces, most, 9000), 0);
  p.q->place(kTso, 9000);  // of no room
  uint32_t length = 0;
  CHECK_EQ(p.rx.take(&length), 65536);
  CHECK(p.q->broken(true) == nullptr);
  CHECK_EQ(p.q->next_avail(false), Ring::kStart);
  p.q->set_enabled(true, true);
  Frames frames;
  frames.add(60, 1);
  CHECK_EQ(p.q->send(frames.burst), !chains.empty());
}

template <class Ring>
void no_rooms() {
  const VirtqDesc big = {kData, 10000, kDescWrite, 0}, small = {kData, 3000, kDescWrite, 0};
  const VirtqDesc tiny = {kData, 11, kDescWrite, 0};
  no_room<Ring>(kFeatures, 64, {});
  no_room<Ring>(kFeatures, 64, {{small}, {big}});                    // the first chain alone counts
  no_room<Ring>(kFeatures | kNetMrgRxbuf, 64, {{small}, {small}});   // all that there is
  no_room<Ring>(kFeatures | kNetMrgRxbuf, 64, {{tiny}, {big}});      // shorter than a header
  no_room<Ring>(kFeatures | kNetMrgRxbuf, 3, {{small}, {small}, {small}, {small}});
  no_room<Ring>(kFeatures, 64, std::vector(1, std::vector(65, small)));
  no_room<Ring>(kFeatures & ~kNetGuestCsum, 64, {{big}});
  no_room<Ring>(kFeatures, 64, {{big}}, false);
}

// What is behind the pieces that a room can have is not looked at, however long it is, before there is a frame.
template <class Ring>
void longer_than_a_room() {
  Receiver<Ring> p(kFeatures);
  std::vector<VirtqDesc> chain(66, VirtqDesc{kData, 3000, kDescWrite, 0});
  chain.push_back({UINT64_MAX - 4096, 64, kDescWrite, 0});
  p.rx.offer(chain);
  iovec pieces[64];
  CHECK_EQ(p.q->room(pieces, 64, 300000), 0);
  CHECK(p.q->broken(true) == nullptr);
  Frames frames;
  frames.add(4000, 1);
  p.q->send(frames.burst);
  CHECK(p.q->broken(true) != nullptr);
}

template <class Ring>
void malformed_chains() {
  auto writable = [](std::vector<VirtqDesc> chain) {
    for (VirtqDesc& d : chain) d.flags |= kDescWrite;
    return chain;
  };
  for (const malformed::Chain& bad : malformed::kChains) {
    for (const bool second : {false, true}) {
      Receiver<Ring> p((kFeatures & ~(bad.indirect ? 0 : kFeatureIndirect)) | kNetMrgRxbuf, 8);
      if (second) p.rx.offer({{kData, 4000, kDescWrite, 0}});
      p.rx.table(malformed::kTable, writable(bad.table));
      p.rx.offer(writable(bad.descriptors));
      iovec pieces[64];
      CHECK_EQ(p.q->room(pieces, 64, 9000), 0);
      malformed::check_broken(*p.q, false, bad.name, bad.cause);
      CHECK_EQ(p.q->room(pieces, 64, 60), 0);
      p.q->detached();
      CHECK_EQ(p.q->next_avail(false), Ring::kStart);
    }
  }
  Receiver<Ring> p;
  p.rx.offer({{kData, 10000, 0, 0}});
  iovec pieces[64];
  CHECK_EQ(p.q->room(pieces, 64, 9000), 0);
  CHECK_TEXT(p.q->broken(true), "readable descriptor in a receiveq");
}

// The peer changes all that it can between the look and the frame.
template <class Ring>
void changed_after_the_look() {
  Receiver<Ring> p(kFeatures | kNetMrgRxbuf);
  for (uint32_t i = 0; i < 4; i++)
    p.rx.offer({{kData + 0x4000 * i, 8, kDescWrite, 0}, {kData + 0x4000 * i + 0x1000, 2992, kDescWrite, 0}});
  iovec pieces[64];
  CHECK_EQ(p.q->room(pieces, 64, 11900), 7);
  p.rx.scribble();
  const std::vector<uint8_t> frame = frame_of(9000, 1);
  write_to(pieces, frame);
  p.q->place({}, 9000);
  CHECK(p.q->broken(true) == nullptr);
  const uint16_t heads[] = {0, 2, 4, 6};
  for (uint32_t i = 0; i < 4; i++) {
    uint32_t length = 0;
    CHECK_EQ(p.rx.take(&length), heads[i]);
    CHECK_EQ(length, i < 3 ? 3000 : 12);
  }
  NetHeader header;
  header.num_buffers = 4;
  CHECK(std::memcmp(p.m.at(kData), &header, 8) == 0);
  CHECK(std::memcmp(p.m.at(kData + 0x1000), reinterpret_cast<const uint8_t*>(&header) + 8, 4) == 0);
  CHECK(std::memcmp(p.m.at(kData + 0x1004), frame.data(), 2988) == 0);
  CHECK(std::memcmp(p.m.at(kData + 0xd000), frame.data() + 8996, 4) == 0);
}

// What is written to a room and does not count takes nothing, but its pages are in the log.
template <class Ring>
void written_for_nothing(DirtyLog::Writers writers) {
  struct Row {
    NetHeader header;
    uint32_t length;
    Drop cause;
  };
  for (const Row& row : {Row{{}, 0, Drop::kCount}, Row{kUso, 9000, Drop::kOffload}, Row{{}, 70000, Drop::kTooLong}}) {
    Receiver<Ring> p(kFeatures);
    p.rx.offer({{kData, 0x20000, kDescWrite, 0}});
    p.log(writers);
    iovec pieces[64];
    const uint32_t bytes = std::max(9000u, row.length);
    CHECK_EQ(p.q->room(pieces, 64, bytes), 1);
    const uint32_t before = p.marks();  // the suppression of kicks
    CHECK_EQ(p.q->room(pieces, 64, bytes), 1);
    CHECK_EQ(p.marks(), before);  // nothing was written there
    write_to(pieces, frame_of(bytes, 1));
    p.q->place(row.header, row.length);
    for (uint64_t at = 0; at < 12 + bytes; at += 4096) CHECK(p.marked(kData + at));
    CHECK_EQ(p.marks(), before + (12 + bytes + 4095) / 4096);
    if (row.cause != Drop::kCount) CHECK_EQ(drops(p.q->send_stats, row.cause), 1);
    uint32_t length = 0;
    CHECK_EQ(p.rx.take(&length), 65536);
    CHECK_EQ(p.q->send_stats.packets.get(), 0);
    Frames frames;
    frames.add(60, 1);
    CHECK_EQ(p.q->send(frames.burst), 1);
    CHECK_EQ(p.rx.take(&length), 0);
    CHECK_EQ(length, 72);
    CHECK(std::memcmp(p.m.at(kData + 12), frames.bytes[0].data(), 60) == 0);
    CHECK(p.q->broken(true) == nullptr);
  }
}

// A file that was cut off behind the rings: a frame or two are lost, and send finds out.
template <class Ring>
void memory_vanishes() {
  Receiver<Ring> p(kFeatures | kNetMrgRxbuf);
  for (uint32_t i = 0; i < 40; i++) p.rx.offer({{kData + 4096ull * i, 4096, kDescWrite, 0}});
  FakeTap fake;
  auto tap = TapQueue::create(fake.fds[0], 20000);
  Lane lane(0, tap, p.q, LanePolicy::kHold);
  const std::vector<uint8_t> frame = frame_of(12000, 1);
  auto give = [&] {
    fake.give({}, frame);
    for (int rounds = 0; lane.round();) CHECK(++rounds < 10);
  };
  give();
  give();
  CHECK_EQ(p.q->send_stats.packets.get(), 2);
  CHECK_EQ(::ftruncate(p.m.fd, kBytes / 2 + (kData - kBase)), 0);
  give();
  CHECK_EQ(drops(tap->receive_stats, Drop::kDeviceError), 1);
  CHECK(p.q->broken(true) == nullptr);
  give();
  CHECK_TEXT(p.q->broken(true), "peer memory vanished");
  CHECK(tap->broken(false) == nullptr);
  p.q->flush();
  p.q->detached();
}

// Cut off between the look at the room and its frame: the header meets the hole.
template <class Ring>
void vanishes_under_a_frame() {
  Receiver<Ring> p(kFeatures | kNetMrgRxbuf);
  for (uint32_t i = 0; i < 4; i++) p.rx.offer({{kData + 4096ull * i, 4096, kDescWrite, 0}});
  iovec pieces[64];
  CHECK_EQ(p.q->room(pieces, 64, 9000), 3);
  CHECK_EQ(::ftruncate(p.m.fd, kBytes / 2 + (kData - kBase)), 0);
  p.q->place({}, 9000);
  CHECK_TEXT(p.q->broken(true), "peer memory vanished");
  CHECK_EQ(p.q->send_stats.packets.get(), 0);
}

}  // namespace

TEST("frames that go straight into a split ring leave it as send does, byte by byte, and the log too") {
  equal_to_send<Split>(1);
}

TEST("frames that go straight into a packed ring leave it as send does, byte by byte, and the log too") {
  equal_to_send<Packed>(2);
}

TEST("the longest frame goes straight into the buffers that Linux offers, merged or not") {
  for (const bool mergeable : {false, true}) {
    longest_frame<Split>(mergeable);
    longest_frame<Packed>(mergeable);
  }
}

TEST("where a frame cannot go straight no room is given, and the ring is as it was") {
  no_rooms<Split>();
  no_rooms<Packed>();
}

TEST("a chain that is longer than any room is not looked at beyond it") {
  longer_than_a_room<Split>();
  longer_than_a_room<Packed>();
}

TEST("a malformed chain breaks the queue that is asked for room, with its cause") {
  malformed_chains<Split>();
  malformed_chains<Packed>();
}

TEST("what the peer said of a room is not read again when the frame is there") {
  changed_after_the_look<Split>();
  changed_after_the_look<Packed>();
}

TEST("a frame that is dropped in the ring takes no chain of it, and the pages of the room are logged") {
  for (const auto writers : {DirtyLog::Writers::kOne, DirtyLog::Writers::kSeveral}) {
    written_for_nothing<Split>(writers);
    written_for_nothing<Packed>(writers);
  }
}

TEST("a room whose file was cut off costs its frame; the queue is broken by what comes next") {
  memory_vanishes<Split>();
  memory_vanishes<Packed>();
}

TEST("a file that was cut off under a frame breaks the queue, and the frame does not count") {
  vanishes_under_a_frame<Split>();
  vanishes_under_a_frame<Packed>();
}
