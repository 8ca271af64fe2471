// A peer queue over packed rings: its life, notification suppression, the dirty log, memory that vanishes.
#include <sys/eventfd.h>

#include "../core/net_header.h"
#include "packed_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::packed;

TEST("packed: what was taken and not released goes back unread, and whoever comes next goes on from there") {
  check::Random r(6);
  for (int round = 0; round < 200; round++) {
    Memory m(kBytes);
    RawPacked ring(m, kBase, 100);
    ring.start(static_cast<Position>(r.below(100) | (r.below(2) ? kPositionWrap : 0)));
    auto q = queue_for(m, ring, true);
    std::vector<uint32_t> lengths;
    for (uint32_t left = 100; left > 0 && lengths.size() < 64;) {
      const uint32_t pieces = 1 + static_cast<uint32_t>(r.below(std::min(left, 3u)));
      std::vector<VirtqDesc> chain(pieces, VirtqDesc{kData, 30, 0, 0});
      ring.offer(static_cast<uint16_t>(lengths.size()), chain);
      lengths.push_back(pieces);
      left -= pieces;
    }
    Burst burst(256);
    CHECK_EQ(q->receive(burst), lengths.size());
    const uint32_t released = static_cast<uint32_t>(r.below(lengths.size() + 1));
    q->release(burst, released);
    q->detached();
    for (uint32_t i = 0; i < released; i++) CHECK_EQ(ring.take(), i);
    CHECK_EQ(ring.take(), 65536);
    CHECK_EQ(q->next_avail(true), ring.used);
    std::string error;
    PeerQueueOptions o = options_for(m, ring, true, kPlain);
    o.transmit->next_avail = q->next_avail(true);
    auto next = r.below(2) ? PeerQueue::create(o, &error) : q;
    Burst rest(256);
    CHECK_EQ(next->receive(rest), lengths.size() - released);
    next->release(rest, rest.count());
    for (uint32_t i = released; i < lengths.size(); i++) CHECK_EQ(ring.take(), i);
    CHECK_EQ(next->next_avail(true), ring.avail);
  }
}

TEST("packed: used notifications follow the driver's event structure, whatever its values") {
  check::Random r(9);
  for (uint32_t size : {4u, 5u, 16u}) {
    for (bool event_idx : {true, false}) {
      Memory m(kBytes);
      RawPacked ring(m, kBase, size);
      PackedDevice device;
      DeviceRing::Options o;
      o.ring = ring.at;
      o.next_avail = kPackedStart;
      o.features = event_idx ? kFeatureEventIdx : 0;
      std::string error;
      CHECK(device.init(m.table, o, &error));
      CHECK(!device.needs_signal());
      bool first = true;
      for (int i = 0; i < 4000; i++) {
        const uint32_t before_n = static_cast<uint32_t>(r.below(3 * size)) + 1;
        const Position before = device.used_idx();
        std::vector<Position> passed;
        for (uint32_t n = 0; n < before_n; n++) {
          passed.push_back(device.used_idx());
          ring.offer(1, {{kData, 16, 0, 0}});
          CHECK_EQ(device.available(1), 1);
          device.advance(1);
          device.put_used(0, 0, 0);
          device.publish(1);
          CHECK_EQ(ring.take(), 1);
        }
        const uint16_t flags = static_cast<uint16_t>(r.below(4));
        const Position event = r.below(8) ? static_cast<Position>(r.below(size) | (r.below(2) ? kPositionWrap : 0))
                                          : static_cast<Position>(r.next());
        // Reserved bits are no reason for anything.
        ring.driver_event() = event_word(event, static_cast<uint16_t>(flags | (r.below(2) ? 0xfff0 : 0)));
        bool expected = true;
        if (flags == kEventDisable)
          expected = false;
        else if (flags == kEventDesc && event_idx && !first && offset_of(event) < size)
          expected = std::find(passed.begin(), passed.end(), event) != passed.end();
        (void)before;
        CHECK_EQ(device.needs_signal(), expected);
        CHECK(!device.needs_signal());  // nothing new since
        first = false;
        if (check::failing()) return;
      }
    }
  }
}

TEST("packed: kicks stay suppressed while polling, and arming asks for them") {
  for (bool event_idx : {true, false}) {
    Memory m(kBytes);
    RawPacked ring(m, kBase, 200);
    auto q = queue_for(m, ring, true, kPlain | (event_idx ? kFeatureEventIdx : 0));
    Burst burst(64);
    q->receive(burst);
    uint32_t kicks = 0, offered = 0;
    auto offer = [&] { ring.offer(static_cast<uint16_t>(offered++ % 200), {{kData, 76, 0, 0}}); };
    for (int round = 0; round < 2000; round++) {
      const Position before = ring.avail;
      for (int i = 0; i < 50; i++) offer();
      kicks += ring.wants_kick(before);
      CHECK_EQ(q->receive(burst), 50);
      q->release(burst, 50);
      for (int i = 0; i < 50; i++) CHECK(ring.take() < 200);
    }
    CHECK_EQ(kicks, 0);
    CHECK(q->arm(false));
    Position before = ring.avail;
    offer();
    CHECK(ring.wants_kick(before));
    CHECK(!q->arm(false));  // work is there already
    q->disarm(false);
    before = ring.avail;
    offer();
    CHECK(!ring.wants_kick(before));
    // Who comes next is kicked for what was not looked at.
    q->detached();
    CHECK_EQ(ring.device_event() >> 16, event_idx ? kEventDesc : kEventEnable);
    if (event_idx) CHECK_EQ(static_cast<Position>(ring.device_event()), q->next_avail(true));
  }
}

TEST("packed: arming the send side asks for buffers beyond those that were not enough") {
  Memory m(kBytes);
  RawPacked ring(m, kBase, 8);
  for (uint16_t i = 0; i < 1; i++) ring.offer(i, {{kData, 256, kDescWrite, 0}});
  auto q = queue_for(m, ring, false, kPlain | kNetMrgRxbuf | kFeatureEventIdx);
  Frames frames;
  frames.add(600, 4);
  CHECK_EQ(q->send(frames.burst), 0);
  CHECK(q->arm(true));
  Position before = ring.avail;
  ring.offer(1, {{kData + 256, 256, kDescWrite, 0}});
  CHECK(ring.wants_kick(before));
  q->disarm(true);
  CHECK_EQ(q->send(frames.burst), 0);
  ring.offer(2, {{kData + 512, 256, kDescWrite, 0}});
  CHECK(!q->arm(true));
  CHECK_EQ(q->send(frames.burst), 1);
  for (uint16_t i = 0; i < 3; i++) CHECK_EQ(ring.take(), i);
}

TEST("packed: a disabled ring is drained or left alone, a frame too long for all buffers is dropped") {
  Memory m(kBytes);
  RawPacked tx(m, kBase, 16), rx(m, kBase + 0x8000, 4);
  PeerQueueOptions o = options_for(m, tx, true, kPlain | kNetMrgRxbuf);
  o.receive.emplace();
  o.receive->ring = rx.at;
  o.receive->next_avail = kPackedStart;
  std::string error;
  auto q = PeerQueue::create(o, &error);
  q->set_enabled(false, false);
  for (uint16_t i = 0; i < 5; i++) tx.offer(i, {{kData, 40, 0, 0}, {kData + 40, 40, 0, 0}});
  for (uint16_t i = 0; i < 4; i++) rx.offer(i, {{kData + 0x1000 + 4096ull * i, 100, kDescWrite, 0}});
  Burst burst(64);
  CHECK_EQ(q->receive(burst), 0);
  CHECK_EQ(q->receive_stats.drops[static_cast<int>(Drop::kDisabled)].get(), 5);
  for (uint16_t i = 0; i < 5; i++) CHECK_EQ(tx.take(), i);
  Frames frames;
  frames.add(389, 1);
  frames.add(388, 2);
  CHECK_EQ(q->send(frames.burst), 2);
  CHECK_EQ(rx.take(), 65536);
  q->set_enabled(true, true);
  CHECK_EQ(q->send(frames.burst), 2);
  CHECK_EQ(q->send_stats.drops[static_cast<int>(Drop::kTooLong)].get(), 1);
  for (uint16_t i = 0; i < 4; i++) CHECK_EQ(rx.take(), i);
  CHECK_EQ(m.ref<NetHeader>(kData + 0x1000).num_buffers, 4);
}

TEST("packed: the dirty log has exactly the pages that were written") {
  check::Random r(43);
  for (int round = 0; round < 200; round++) {
    constexpr uint32_t kSize = 600;  // descriptors of three pages
    Memory m(4 << 20, kBase);
    RawPacked tx(m, kBase, kSize), rx(m, kBase + 0x10000, kSize);
    tx.start(static_cast<Position>(r.below(kSize)));
    rx.start(static_cast<Position>(r.below(kSize) | kPositionWrap));
    PeerQueueOptions o = options_for(m, tx, true, kPlain | kNetMrgRxbuf | (r.below(2) ? kFeatureEventIdx : 0));
    o.receive.emplace();
    o.receive->ring = rx.at;
    o.receive->next_avail = rx.used;
    std::string error;
    auto q = PeerQueue::create(o, &error);
    Memory log_memory(4096);
    q->set_dirty_log(DirtyLog::create(log_memory.mapping, 0, (4 << 20) / 4096 / 8, &error,
                                      r.below(2) ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral));
    const uint64_t data = kBase + 0x80000;
    std::memset(m.at(data), 0xa5, 0x300000);  // so that a written zero is a change
    uint64_t at = data;
    for (uint16_t i = 0; i < 100; i++) {
      std::vector<VirtqDesc> chain;
      for (uint64_t k = 1 + r.below(3); k > 0; k--) {
        const uint32_t length = 64 + static_cast<uint32_t>(r.below(0x1000));
        chain.push_back({at, length, kDescWrite, 0});
        at += length + r.below(0x1000);
      }
      rx.offer(i, chain);
      tx.offer(i, {{data + 0x2f0000, 40, 0, 0}, {data + 0x2f0028, 40, 0, 0}});
    }
    const std::vector<uint8_t> before(m.mapping->data(), m.mapping->data() + m.mapping->size());
    if (r.below(2)) q->arm(r.below(2));
    Frames frames;
    for (int i = 0; i < 20; i++) frames.add(14 + static_cast<uint32_t>(r.below(6000)), r.next());
    q->send(frames.burst);
    Burst burst(256);
    q->receive(burst);
    q->release(burst, static_cast<uint32_t>(r.below(65)));
    q->flush();
    q->detached();
    for (uint64_t page = 0; page < m.mapping->size() / 4096; page++) {
      const bool changed = std::memcmp(m.mapping->data() + page * 4096, before.data() + page * 4096, 4096) != 0;
      const bool marked = log_memory.mapping->data()[page / 8] >> page % 8 & 1;
      // A write of what was there already marks too: of the event structure only.
      const bool event_page = page * 4096 == tx.at.device - kBase || page * 4096 == rx.at.device - kBase;
      if (changed && !marked) check::fail_equal(__FILE__, __LINE__, "page written and not logged", page, 0);
      if (marked && !changed && !event_page)
        check::fail_equal(__FILE__, __LINE__, "page logged and not written", page, 0);
    }
    if (check::failing()) return;
  }
}

TEST("packed: peer memory that vanishes breaks both sides and nothing else") {
  for (int when = 0; when < 3; when++) {
    Memory m(kBytes);
    RawPacked tx(m, kBase, 16), rx(m, kBase + 0x8000, 16);
    PeerQueueOptions o = options_for(m, tx, true, kPlain);
    o.receive.emplace();
    o.receive->ring = rx.at;
    o.receive->next_avail = kPackedStart;
    std::string error;
    auto q = PeerQueue::create(o, &error);
    for (uint16_t i = 0; i < 8; i++) {
      tx.offer(i, {{kData, 72, 0, 0}});
      rx.offer(i, {{kData + 0x1000 + 4096ull * i, 2048, kDescWrite, 0}});
    }
    Burst burst(64);
    Frames frames;
    frames.add(60, 1);
    if (when >= 1) CHECK_EQ(q->receive(burst), 8);
    if (when == 2) CHECK_EQ(q->send(frames.burst), 1);
    CHECK_EQ(::ftruncate(m.fd, 0), 0);
    q->release(burst, burst.count());
    q->send(frames.burst);
    q->flush();
    q->receive(burst);
    CHECK_TEXT(q->broken(false), "peer memory vanished");
    CHECK_TEXT(q->broken(true), "peer memory vanished");
    CHECK(q->arm(false) && q->arm(true));
    q->detached();
  }
}

TEST("packed: completions are signalled in flush by the driver's wish, and counted") {
  Memory m(kBytes);
  RawPacked tx(m, kBase, 64);
  int call = ::eventfd(0, EFD_NONBLOCK);
  PeerQueueOptions o = options_for(m, tx, true, kPlain | kFeatureEventIdx);
  o.transmit->notify.fd = call;
  std::string error;
  auto q = PeerQueue::create(o, &error);
  Burst burst(16);
  auto one = [&] {
    tx.offer(1, {{kData, 76, 0, 0}});
    CHECK_EQ(q->receive(burst), 1);
    q->release(burst, 1);
    q->flush();
    CHECK_EQ(tx.take(), 1);
    uint64_t count = 0;
    return ::read(call, &count, 8) == 8;
  };
  CHECK(one());
  tx.driver_event() = event_word(kPositionWrap | 5, kEventDesc);
  for (int i = 1; i < 9; i++) CHECK_EQ(one(), i == 5);
  tx.driver_event() = event_word(0, kEventDisable);
  CHECK(!one());
  tx.driver_event() = event_word(0, kEventEnable);
  CHECK(one());
  CHECK_EQ(q->receive_stats.notifications_sent.get(), 3);
  ::close(call);
}
