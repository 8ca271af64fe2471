// The life of a peer queue: disabled rings, memory that vanishes, notifications, options.
#include <sys/eventfd.h>

#include "../core/frame_copy.h"
#include "peer_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::peer;

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
