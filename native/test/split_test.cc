// Device side of the split ring against hand-written rings: notification suppression, indices around 65536, every ring
// size.
#include "../core/split_device.h"
#include "fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::region;

TEST("every ring size works, across the wrap of the index at 65536") {
  for (uint32_t size = 1; size <= kMaxRingSize; size *= 2) {
    uint64_t ring_bytes = RawRing::bytes(size);
    Memory m(ring_bytes + 4096);
    RawRing ring(m, kBase, size);
    ring.start(static_cast<uint16_t>(65536 - 3));
    PeerQueueOptions o = options_for(m, ring.at, true, kFeatureVersion1);
    o.transmit->next_avail = 65536 - 3;
    std::string error;
    auto q = PeerQueue::create(o, &error);
    CHECK(q != nullptr);
    Burst burst(64);
    uint32_t sent = 0, got = 0;
    while (sent < 10) {
      uint32_t batch = std::min<uint32_t>(std::min(size, 4u), 10 - sent);
      for (uint32_t i = 0; i < batch; i++) {
        uint16_t d = static_cast<uint16_t>((sent + i) % size);
        ring.desc(d) = {kBase + ring_bytes, 12 + 64 + sent + i, 0, 0};
        ring.offer(d);
      }
      uint32_t n = q->receive(burst);
      CHECK_EQ(n, batch);
      for (uint32_t i = 0; i < n; i++) CHECK_EQ(burst.packets[i].length, 64 + got + i);
      q->release(burst, n);
      sent += batch;
      got += n;
      CHECK_EQ(ring.used().idx, static_cast<uint16_t>(65536 - 3 + sent));
    }
    CHECK_EQ(got, 10);
    CHECK(q->broken(false) == nullptr);
  }
}

TEST("need_event holds exactly when the index passed the event") {
  check::Random r(3);
  for (int i = 0; i < 100000; i++) {
    uint16_t before = static_cast<uint16_t>(r.next()), n = static_cast<uint16_t>(r.below(300));
    uint16_t event = static_cast<uint16_t>(before - 150 + r.below(600));
    bool passed = false;
    for (uint16_t k = 0; k < n; k++) passed |= static_cast<uint16_t>(before + k) == event;
    CHECK_EQ(need_event(event, static_cast<uint16_t>(before + n), before), passed);
  }
}

TEST("used notifications follow used_event at every index, and the flag without it") {
  for (bool event_idx : {true, false}) {
    Memory m(kBytes);
    RawRing ring(m, kBase, 16);
    ring.start(65530);
    SplitDevice device;
    SplitDevice::Options o;
    o.ring = ring.at;
    o.next_avail = 65530;
    o.features = event_idx ? kFeatureEventIdx : 0;
    std::string error;
    CHECK(device.init(m.table, o, &error));
    check::Random r(9);
    CHECK(!device.needs_signal());
    for (int i = 0; i < 3000; i++) {
      uint32_t n = 1 + static_cast<uint32_t>(r.below(5));
      uint16_t before = device.used_idx();
      uint16_t event = static_cast<uint16_t>(before - 3 + r.below(10));
      bool flag = r.below(2);
      ring.used_event() = event;
      ring.avail().flags = flag;
      device.publish(n);
      bool passed = static_cast<uint16_t>(event - before) < n;
      bool expected = event_idx ? passed || i == 0 : !flag;
      CHECK_EQ(device.needs_signal(), expected);
      CHECK(!device.needs_signal());  // nothing new since
    }
  }
}

TEST("kicks stay suppressed while polling, for more than 65536 packets, and arming asks for them") {
  for (bool event_idx : {true, false}) {
    Memory m(kBytes);
    RawRing ring(m, kBase, 256);
    for (uint16_t i = 0; i < 256; i++) ring.desc(i) = {kData, 76, 0, 0};
    PeerQueueOptions o = options_for(m, ring.at, true, kFeatureVersion1 | (event_idx ? kFeatureEventIdx : 0));
    std::string error;
    auto q = PeerQueue::create(o, &error);
    Burst burst(64);
    q->receive(burst);
    uint32_t kicks = 0;
    auto driver_kicks = [&](uint16_t before) {
      if (!event_idx) return !(ring.used().flags & kUsedNoNotify);
      CHECK_EQ(ring.used().flags, 0);
      return need_event(ring.avail_event(), ring.avail_idx, before);
    };
    for (int round = 0; round < 3000; round++) {
      uint16_t before = ring.avail_idx;
      for (int i = 0; i < 50; i++) ring.offer(static_cast<uint16_t>(ring.avail_idx % 256));
      kicks += driver_kicks(before);
      uint32_t n = q->receive(burst);
      CHECK_EQ(n, 50);
      q->release(burst, n);
    }
    CHECK_EQ(kicks, 0);
    CHECK(q->arm(false));
    uint16_t before = ring.avail_idx;
    ring.offer(static_cast<uint16_t>(before % 256));
    CHECK(driver_kicks(before));
    CHECK(!q->arm(false));  // work is there already
    q->disarm(false);
    before = ring.avail_idx;
    ring.offer(static_cast<uint16_t>(before % 256));
    CHECK(!driver_kicks(before));
  }
}

TEST("arming the send side asks for buffers beyond those that were not enough") {
  Memory m(kBytes);
  RawRing ring(m, kBase, 8);
  for (uint16_t i = 0; i < 8; i++) ring.desc(i) = {kData + i * 256u, 256, kDescWrite, 0};
  ring.offer(0);
  auto q = [&] {
    std::string error;
    return PeerQueue::create(options_for(m, ring.at, false, kFeatureVersion1 | kNetMrgRxbuf | kFeatureEventIdx),
                             &error);
  }();
  Frames frames;
  frames.add(600, 4);
  CHECK_EQ(q->send(frames.burst), 0);
  CHECK(q->arm(true));
  uint16_t before = ring.avail_idx;
  ring.offer(1);
  CHECK(need_event(ring.avail_event(), ring.avail_idx, before));
  q->disarm(true);
  CHECK_EQ(q->send(frames.burst), 0);
  ring.offer(2);
  CHECK(!q->arm(true));
  CHECK_EQ(q->send(frames.burst), 1);
}
