// Lanes from a TAP whose long frames go straight: their order, what does not fit, what is dropped, and a worker that
// sleeps in between.
#include <chrono>
#include <thread>

#include "../core/sink_queue.h"
#include "../core/worker.h"
#include "straight_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::straight;

namespace {

constexpr uint64_t kPairFeatures = kFeatures | kNetMrgRxbuf | kNetCsum | kNetHostTso4;

// A frame that can be told from every other one of its length.
std::vector<uint8_t> numbered(uint32_t length, uint32_t number) {
  std::vector<uint8_t> frame = frame_of(length, number % 16);
  std::memcpy(frame.data() + 14, &number, sizeof number);
  return frame;
}

// Frames of all lengths through rings that are often too small for them, in order, none lost.
void in_order(bool to_driver, uint64_t seed) {
  check::Random r(seed);
  Pair pair(128, 1526, kPairFeatures);
  const std::shared_ptr<PortQueue> to = to_driver ? std::shared_ptr<PortQueue>(pair.driver) : pair.peer;
  const std::shared_ptr<PortQueue> back = to_driver ? std::shared_ptr<PortQueue>(pair.peer) : pair.driver;
  FakeTap fake;
  auto tap = TapQueue::create(fake.fds[0], kDefaultMaxFrame);
  auto probe = std::make_shared<Probe>(to);
  Lane lane(0, tap, probe, LanePolicy::kHold);
  std::vector<uint32_t> lengths;
  uint32_t given = 0, got = 0;
  Burst burst{4096};
  auto take = [&] {
    back->receive(burst);
    for (uint32_t i = burst.begin; i < burst.end; i++, got++) {
      CHECK(got < given);
      CHECK(bytes_of(burst, burst.packets[i]) == numbered(lengths[got], got));
      CHECK_EQ(burst.packets[i].header.gso_type, lengths[got] >= 8192 ? kGsoTcp4 : kGsoNone);
    }
    back->release(burst, burst.count());
  };
  for (int step = 0; step < 4000 && !check::failing(); step++) {
    if (r.below(2)) {
      const bool is_long = r.below(3) != 0;
      lengths.push_back(is_long ? 8192 + static_cast<uint32_t>(r.below(kDefaultMaxFrame - 8191))
                                : 60 + static_cast<uint32_t>(r.below(1500)));
      const std::vector<uint8_t> frame = numbered(lengths.back(), given);
      NetHeader header = is_long ? kTso : NetHeader{};
      const iovec parts[] = {{&header, sizeof header}, {const_cast<uint8_t*>(frame.data()), frame.size()}};
      // A socket that is full keeps its frames, as a TAP does.
      if (writev(fake.fds[1], parts, 2) > 0)
        given++;
      else
        lengths.pop_back();
    }
    lane.round();
    if (r.below(3) == 0) take();
  }
  for (int i = 0; i < 1000 && got < given; i++) {
    lane.round();
    take();
  }
  CHECK_EQ(got, given);
  CHECK(lane.burst.empty());
  CHECK_EQ(to->send_stats.packets.get(), given);
  CHECK_EQ(tap->receive_stats.packets.get(), given);
  CHECK_EQ(to->send_stats.bytes.get(), tap->receive_stats.bytes.get());
  CHECK(probe->placed > 200 && probe->sent > 200);
}

struct Line {
  FakeTap fake;
  std::shared_ptr<TapQueue> tap;
  std::shared_ptr<Probe> probe;
  Lane lane;
  explicit Line(std::shared_ptr<PortQueue> to, LanePolicy policy = LanePolicy::kHold, uint32_t max_frame = 20000)
      : tap(TapQueue::create(fake.fds[0], max_frame)), probe(std::make_shared<Probe>(std::move(to))),
        lane(0, tap, probe, policy) {}
  void give(uint32_t length, const NetHeader& header = {}) { fake.give(header, frame_of(length, length)); }
};

}  // namespace

TEST("TAP: long and short frames keep their order on the way to a peer and to a device") {
  in_order(false, 1);
  in_order(true, 2);
}

TEST("TAP: short frames take the way over a burst, and none is asked for room before a long one came") {
  Pair pair(256, 2048, kPairFeatures);
  Line line(pair.peer);
  for (int i = 0; i < 3; i++) {
    line.give(1500);
    line.give(8191);
    CHECK(line.lane.round());
    CHECK(!line.lane.round());
  }
  CHECK_EQ(line.probe->given, 0);
  CHECK_EQ(line.probe->sent, 6);
  line.give(8192);
  CHECK(line.lane.round());
  CHECK(!line.lane.round());  // looked for room, and there was nothing to receive
  CHECK_EQ(line.probe->given, 1);
  line.give(8192);
  line.give(9000);
  line.give(60);
  line.give(60);
  CHECK(line.lane.round());
  CHECK_EQ(line.probe->placed, 3);  // how long the first short one is was not known
  CHECK(line.lane.round());
  CHECK_EQ(line.probe->sent, 8);
  CHECK(!line.lane.round());
}

TEST("TAP: one round takes so many long frames only, and a frame that waits is not overtaken") {
  Pair pair(256, 2048, kPairFeatures);
  Line line(pair.peer);
  line.give(9000);
  CHECK(line.lane.round());
  for (int i = 0; i < 9; i++) line.give(17000);
  CHECK(line.lane.round());
  CHECK_EQ(line.probe->placed, 8);  // 128 KiB
  std::vector<uint8_t> waits = frame_of(60, 1);
  line.lane.burst.clear();
  line.lane.burst.packets[0] = {{waits.data(), 60}, 60, 1, 0, {}};
  line.lane.burst.end = 1;
  CHECK(line.lane.round());
  CHECK_EQ(line.probe->placed, 8);
  CHECK(line.lane.burst.empty());
  CHECK(line.lane.round());
  CHECK_EQ(line.probe->placed, 9);
}

TEST("TAP: what cannot go straight for want of room waits, or is dropped, as the lane has it") {
  for (const LanePolicy policy : {LanePolicy::kHold, LanePolicy::kDrop}) {
    Pair pair(16, 2048, kPairFeatures);
    Line line(pair.peer, policy);
    for (int i = 0; i < 10; i++) line.give(9000);
    for (int i = 0; i < 20; i++) line.lane.round();
    // Of 5 buffers each.
    CHECK_EQ(pair.peer->send_stats.packets.get(), 3);
    CHECK_EQ(line.lane.burst.count(), policy == LanePolicy::kHold ? 7 : 0);
    CHECK_EQ(drops(line.probe->send_stats, Drop::kNoBuffers), policy == LanePolicy::kDrop ? 7 : 0);
  }
}

TEST("TAP: impossible frames are dropped by cause on the straight way too") {
  Pair pair(256, 2048, kPairFeatures);
  Line line(pair.peer, LanePolicy::kHold, 10000);
  auto straight_on = [&] {
    line.give(9000);
    while (line.lane.round()) {
    }
  };
  const NetHeader outside = {kHdrNeedsCsum, 0, 0, 0, 0xff00, 0, 0};
  const struct {
    uint32_t length;
    NetHeader header;
    Drop cause;
  } rows[] = {{13, {}, Drop::kTooShort}, {10001, {}, Drop::kTooLong}, {9999, outside, Drop::kBadHeader}};
  for (const auto& row : rows) {
    straight_on();
    const uint64_t before = pair.peer->send_stats.packets.get();
    line.give(row.length, row.header);
    CHECK(line.lane.round());
    CHECK_EQ(drops(line.tap->receive_stats, row.cause), 1);
    CHECK_EQ(pair.peer->send_stats.packets.get(), before);
  }
  straight_on();
  CHECK_EQ(line.tap->receive_stats.packets.get(), pair.peer->send_stats.packets.get());
  CHECK(!line.tap->broken(false) && !pair.peer->broken(true));
}

TEST("driver queue: a room is as long as was asked for, and needs CSUM, buffers and pieces enough") {
  iovec pieces[64];
  const uint64_t none = kPairFeatures & ~kNetCsum;
  CHECK_EQ(Pair(64, 2048, none).driver->room(pieces, 64, 9000), 0);
  Pair pair(8, 2048, kPairFeatures);
  CHECK_EQ(pair.driver->room(pieces, 4, 9000), 0);
  CHECK_EQ(pair.driver->room(pieces, 64, 8 * 2048 - 11), 0);
  CHECK_EQ(pair.driver->room(pieces, 64, 8 * 2048 - 12), 8);
  const uint32_t n = pair.driver->room(pieces, 64, 9000);
  CHECK_EQ(n, 5);
  CHECK_EQ(pieces[0].iov_len, 2036);
  CHECK_EQ(pieces[4].iov_len, 9012 - 4 * 2048);
  // Nothing was taken: what is dropped in a room, or is not there, leaves all buffers free.
  pair.driver->place({}, 0);
  pair.driver->place(kUso, 9000);
  CHECK_EQ(drops(pair.driver->send_stats, Drop::kOffload), 1);
  CHECK_EQ(pair.driver->room(pieces, 64, 8 * 2048 - 12), 8);
  const std::vector<uint8_t> frame = frame_of(2036, 1);
  write_to(pieces, frame);
  pair.driver->place(kTso, 2036);
  CHECK_EQ(pair.driver->room(pieces, 64, 8 * 2048 - 12), 0);  // one of them is on its way
  Burst burst{64};
  CHECK_EQ(pair.peer->receive(burst), 1);
  CHECK_EQ(burst.packets[0].segments, 1);
  CHECK(bytes_of(burst, burst.packets[0]) == frame);
  pair.peer->release(burst, 1);
  CHECK_EQ(pair.driver->room(pieces, 64, 8 * 2048 - 12), 8);
}

TEST("driver queue: memory that vanishes costs a frame, and what comes next breaks the queue") {
  Pair pair(64, 2048, kPairFeatures);
  Line line(pair.driver);
  auto give = [&] {
    line.give(9000);
    for (int rounds = 0; line.lane.round();) CHECK(++rounds < 10);
  };
  give();
  give();
  CHECK_EQ(pair.driver->send_stats.packets.get(), 2);
  // Rings come first, then the receive buffers, then these.
  CHECK_EQ(::ftruncate(pair.memory.fd, static_cast<off_t>(pair.memory.mapping->size() - 64 * 2112)), 0);
  for (int i = 0; i < 3; i++) give();
  CHECK_TEXT(pair.driver->broken(true), "queue memory vanished");
  CHECK(line.tap->broken(false) == nullptr);
}

TEST("a worker that sleeps between long frames misses none") {
  for (const bool to_driver : {false, true}) {
    Pair pair(256, 1526, kPairFeatures);
    const std::shared_ptr<PortQueue> to = to_driver ? std::shared_ptr<PortQueue>(pair.driver) : pair.peer;
    const std::shared_ptr<PortQueue> back = to_driver ? std::shared_ptr<PortQueue>(pair.peer) : pair.driver;
    auto sink = std::make_shared<SinkQueue>(SinkQueue::Options{});
    FakeTap fake;
    auto tap = TapQueue::create(fake.fds[0], kDefaultMaxFrame);
    Worker worker;
    CHECK_EQ(worker.start({Worker::Mode::kInterrupt, -1, 0, "straight"}, [](const Worker::Event&) {}), 0);
    worker.connect(tap, to, LanePolicy::kHold, [](const char* error, uint32_t) { CHECK(error == nullptr); });
    worker.connect(back, sink, LanePolicy::kHold, [](const char* error, uint32_t) { CHECK(error == nullptr); });
    check::Random r(3);
    uint64_t bytes = 0;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    for (uint32_t i = 1; i <= 60 && std::chrono::steady_clock::now() < deadline; i++) {
      const uint32_t length = r.below(4) ? 20000 + static_cast<uint32_t>(r.below(40000)) : 60;
      fake.give(length > 60 ? kTso : NetHeader{}, frame_of(length, i));
      bytes += length;
      while (i % 3 == 0 && sink->send_stats.packets.get() < i && std::chrono::steady_clock::now() < deadline)
        std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    CHECK_EQ(sink->send_stats.packets.get(), 60);
    CHECK_EQ(sink->send_stats.bytes.get(), bytes);
    worker.stop([](const char*, uint32_t) {});
    worker.join();
    CHECK(worker.stats.wakeups.get() > 0);
  }
}
