// The driver queue against the peer queue: against a model on one thread, for order and content on two, and
// the driver queue against a hostile device.
#include <atomic>
#include <deque>
#include <thread>

#include "../core/frame_copy.h"
#include "fixture.h"

using namespace vpci;
using namespace vpci::test;

namespace {

constexpr uint64_t kOffloads = kNetCsum | kNetGuestCsum | kNetHostTso4 | kNetGuestTso4;
const uint64_t kFeatureSets[] = {
    kFeatureVersion1,
    kFeatureVersion1 | kFeatureEventIdx | kFeatureIndirect,
    kFeatureVersion1 | kNetMrgRxbuf | kOffloads,
    kFeatureVersion1 | kNetMrgRxbuf | kFeatureEventIdx | kOffloads,
    kNetMrgRxbuf,
    0,
};

struct Expected {
  std::vector<uint8_t> bytes;
  NetHeader header;
};

// Random bursts one way, random receives and releases at the other end, checked in order against a queue.
void run_model(PortQueue& from, PortQueue& to, uint64_t seed, uint32_t max_frame, bool offloads, int steps) {
  check::Random r(seed);
  std::deque<Expected> sent;
  Burst in(512);
  uint64_t delivered = 0;
  for (int step = 0; step < steps; step++) {
    Frames frames;
    uint32_t n = static_cast<uint32_t>(r.below(8) ? r.below(6) : r.below(65));
    for (uint32_t i = 0; i < n; i++) {
      uint32_t length =
          14 + static_cast<uint32_t>(r.below(r.below(4) ? std::min(200u, max_frame - 13) : max_frame - 13));
      NetHeader h;
      if (offloads && length > 60 && r.below(4) == 0) h = {1, 0, 0, 0, 34, 16, 0};
      if (offloads && length > 600 && r.below(2)) h = {1, kGsoTcp4, 54, 500, 34, 16, 0};
      Packet& p = frames.add(length, r.next(), h);
      if (r.below(3) == 0) {
        uint32_t cut = 1 + static_cast<uint32_t>(r.below(length - 1));
        p.first.length = cut;
        p.segments = 2;
        p.more = static_cast<uint16_t>(frames.burst.extra_used);
        frames.burst.extra[frames.burst.extra_used++] = {frames.bytes.back().data() + cut, length - cut};
      }
    }
    uint32_t taken = from.send(frames.burst);
    for (uint32_t i = 0; i < taken; i++) sent.push_back({frames.bytes[i], frames.burst.packets[i].header});
    from.flush();
    if (in.empty() && r.below(2)) {
      uint32_t got = to.receive(in);
      if (got > sent.size())
        return check::fail_equal(__FILE__, __LINE__, "more packets than were sent", got, sent.size());
      for (uint32_t i = 0; i < got; i++) {
        const Packet& p = in.packets[i];
        if (bytes_of(in, p) != sent[i].bytes)
          return check::fail_equal(__FILE__, __LINE__, "packet differs", delivered + i, seed);
        CHECK_EQ(p.header.gso_type, sent[i].header.gso_type);
        CHECK_EQ(p.header.flags, sent[i].header.flags);
        CHECK_EQ(p.header.csum_start, sent[i].header.csum_start);
        CHECK_EQ(p.header.num_buffers, 0);
      }
    }
    if (!in.empty()) {
      uint32_t k = static_cast<uint32_t>(r.below(in.count() + 1));
      to.release(in, k);
      for (uint32_t i = 0; i < k; i++) sent.pop_front();
      delivered += k;
      to.flush();
    }
    if (r.below(100) == 0) {  // unreleased packets of the peer come again
      to.detached();
      if (dynamic_cast<DriverQueue*>(&to))
        for (uint32_t i = in.count(); i > 0; i--) sent.pop_front();
      in.clear();
      from.detached();
    }
  }
  CHECK(from.broken(true) == nullptr);
  CHECK(to.broken(false) == nullptr);
  CHECK(delivered > 0);
}

}  // namespace

TEST(
    "driver and peer queue carry every packet in order and unchanged, in both directions, for every feature "
    "set") {
  uint64_t seed = 1;
  for (uint64_t features : kFeatureSets) {
    for (uint32_t size : {1u, 2u, 16u, 256u}) {
      for (uint32_t buffer : {64u, 300u, 2048u}) {
        // What surely fits: one buffer without merging; with it, or towards the device, half the ring.
        uint32_t one = buffer - 12, half = std::min(size > 1 ? size / 2 * buffer - 12 : one, 9000u);
        uint32_t to_driver = features & kNetMrgRxbuf ? half : one;
        bool offloads = (features & kOffloads) == kOffloads;
        Pair up(size, buffer, features), down(size, buffer, features);
        run_model(*up.driver, *up.peer, seed++, half, offloads, 400);
        run_model(*down.peer, *down.driver, seed++, to_driver, offloads, 400);
        if (check::failing()) {
          std::fprintf(stderr, "  features %llx, ring %u, buffers %u\n",
                       static_cast<unsigned long long>(features), size, buffer);
          return;
        }
      }
    }
  }
}

TEST("on two threads every packet arrives once, in order, unaltered") {
  for (uint64_t features : {kFeatureVersion1, kFeatureVersion1 | kNetMrgRxbuf | kFeatureEventIdx}) {
    for (bool up : {true, false}) {
      Pair pair(64, 256, features);
      PortQueue& from = up ? static_cast<PortQueue&>(*pair.driver) : *pair.peer;
      PortQueue& to = up ? static_cast<PortQueue&>(*pair.peer) : *pair.driver;
      const uint64_t kTotal = 60000;
      std::atomic<bool> failed{false};
      std::thread sender([&] {
        check::Random r(17);
        Burst burst(1);
        std::vector<uint8_t> bytes(64 * 256);
        uint64_t next = 0;
        while (next < kTotal && !failed) {
          burst.clear();
          uint32_t n = static_cast<uint32_t>(std::min<uint64_t>(1 + r.below(64), kTotal - next));
          for (uint32_t i = 0; i < n; i++) {
            uint32_t length = 20 + static_cast<uint32_t>((next + i) * 7 % 220);
            uint8_t* data = bytes.data() + 256 * i;
            std::memset(data, static_cast<int>(next + i), length);
            uint64_t sequence = next + i;
            std::memcpy(data, &sequence, 8);
            burst.packets[burst.end++] = {{data, length}, length, 1, 0, {}};
          }
          while (!burst.empty() && !failed) {
            uint32_t taken = from.send(burst);
            from.flush();
            burst.begin += taken;
            if (taken == 0) std::this_thread::yield();
          }
          next += n;
        }
      });
      Burst burst(256);
      uint64_t expected = 0;
      while (expected < kTotal && !failed) {
        uint32_t n = to.receive(burst);
        if (n == 0) std::this_thread::yield();
        if (to.broken(false)) failed = true;
        for (uint32_t i = 0; i < n; i++, expected++) {
          uint8_t copy[512];
          copy_packet(copy, burst, burst.packets[i]);
          uint64_t sequence;
          std::memcpy(&sequence, copy, 8);
          uint32_t length = 20 + static_cast<uint32_t>(expected * 7 % 220);
          bool good = sequence == expected && burst.packets[i].length == length;
          for (uint32_t k = 8; good && k < length; k++) good = copy[k] == static_cast<uint8_t>(expected);
          if (!good) failed = true;
        }
        to.release(burst, n);
        to.flush();
      }
      sender.join();
      CHECK(!failed);
      CHECK_EQ(expected, kTotal);
    }
  }
}

TEST("two threads that sleep whenever they may are always woken") {
  for (uint64_t features : {kFeatureVersion1, kFeatureVersion1 | kFeatureEventIdx}) {
    const uint64_t kTotal = 20000;
    std::atomic<uint64_t> lost_wakeups{0};
    // Sleeping is modelled: after a successful arm the thread may go on only when the other side decided to
    // notify, or after a long time, which counts as a lost wake-up.
    std::atomic<uint64_t> kicks{0}, calls{0};
    auto wait_for = [&](std::atomic<uint64_t>& counter, uint64_t seen, std::atomic<bool>& done) {
      for (int i = 0; counter.load() == seen && !done.load(); i++) {
        std::this_thread::yield();
        if (i > 20000000) {
          lost_wakeups++;
          return;
        }
      }
    };
    std::atomic<bool> sender_done{false}, receiver_done{false};
    SplitDriver ring;
    Memory m(1 << 16);
    ring.init(m.mapping->data(), m.base, 16, features);
    std::string error;
    std::thread sender([&] {
      uint64_t sent = 0, free = 16, next = 0;
      while (sent < kTotal) {
        uint64_t seen = calls.load();
        for (uint32_t n = ring.used(1); n > 0; n--) {
          ring.take(ring.peek(0).id);
          free++;
        }
        if (free == 0) {
          if (ring.request_interrupts()) wait_for(calls, seen, receiver_done);
          continue;
        }
        uint16_t d = static_cast<uint16_t>(next++ % 16);
        ring.set_desc(d, m.base + 0x8000, 12 + 60, 0, 0);
        ring.offer(d);
        ring.publish();
        free--;
        sent++;
        if (ring.needs_notify()) kicks++;
      }
      sender_done = true;
    });
    uint64_t got = 0;
    SplitDevice device;
    SplitDevice::Options d;
    d.ring = ring.addresses();
    d.features = features;
    CHECK(device.init(m.table, d, &error));
    while (got < kTotal) {
      uint64_t seen = kicks.load();
      uint32_t n = device.available(64);
      if (n == 0) {
        if (device.request_kicks(device.next_avail()) && !sender_done)
          wait_for(kicks, seen, sender_done);
        continue;
      }
      device.suppress_kicks();
      for (uint32_t i = 0; i < n; i++) device.put_used(i, device.head(i), 0);
      device.advance(n);
      device.publish(n);
      got += n;
      if (device.needs_signal()) calls++;
    }
    receiver_done = true;
    sender.join();
    CHECK_EQ(lost_wakeups.load(), 0);
    CHECK_EQ(got, kTotal);
  }
}

TEST("two sides that poll never signal each other, however far ahead they are and however late they ask") {
  for (uint64_t features : {uint64_t{kFeatureVersion1}, kFeatureVersion1 | kFeatureEventIdx}) {
    for (uint32_t size : {8u, 256u, 16384u, 32768u}) {
      const uint32_t most = std::min(size / 4, 200u), far = size - most;
      // Chains that the driver is ahead of the device, and the device of the driver.
      for (auto [offered, used] : {std::pair{0u, 0u}, {far, 0u}, {0u, far}, {far / 2, far / 2}}) {
        Memory m(2 << 20);
        SplitDriver driver;
        driver.init(m.mapping->data(), m.base, size, features);
        SplitDevice device;
        SplitDevice::Options o;
        o.ring = driver.addresses();
        o.features = features;
        std::string error;
        CHECK(device.init(m.table, o, &error));
        check::Random r(size);
        for (uint32_t i = 0; i < size; i++) driver.set_desc(static_cast<uint16_t>(i), m.base, 64, 0, 0);
        auto offer = [&](uint32_t n) {
          driver.suppress_interrupts();
          for (uint32_t i = 0; i < n; i++) driver.offer(static_cast<uint16_t>(driver.offered_idx() & (size - 1)));
          driver.publish();
        };
        auto use = [&](uint32_t n) {
          device.suppress_kicks();
          CHECK(device.available(n) >= n);
          for (uint32_t i = 0; i < n; i++) device.put_used(i, device.head(i), 0);
          device.advance(n);
          device.publish(n);
        };
        // The device tells once, since it does not know what the one before it has signalled.
        offer(offered + used + 1);
        use(used + 1);
        CHECK(driver.used(1) >= 1 && driver.take(driver.peek(0).id));
        driver.needs_notify();
        device.needs_signal();
        uint32_t kicks = 0, calls = 0;
        for (uint32_t done = 0; done < 300000;) {
          uint32_t late = 0;
          for (const uint32_t until = std::min(size, 0x3f00u); late < until;) {
            const uint32_t n = 1 + r.below(most);
            offer(n);
            use(n);
            CHECK(driver.used(n) >= n);
            for (uint32_t i = 0; i < n; i++) CHECK(driver.take(driver.peek(0).id));
            late += n;
          }
          kicks += driver.needs_notify();
          calls += device.needs_signal();
          done += late;
        }
        CHECK_EQ(kicks, 0);
        CHECK_EQ(calls, 0);
      }
    }
  }
}

TEST("a hostile device breaks or loses packets of a driver queue, and never more") {
  check::Random r(77);
  for (int round = 0; round < 3000; round++) {
    uint64_t features = kFeatureSets[r.below(std::size(kFeatureSets))];
    Pair pair(8, 128, features);
    DriverQueue& q = *pair.driver;
    Burst burst(static_cast<uint32_t>(1 + r.below(20)));
    const RingAddresses& rx = q.receiveq();
    const RingAddresses& tx = q.transmitq();
    Frames frames;
    for (int i = 0; i < 4; i++) frames.add(14 + static_cast<uint32_t>(r.below(400)), 1);
    for (int step = 0; step < 6; step++) {
      for (const RingAddresses* ring : {&rx, &tx}) {
        VirtqUsed& used = pair.memory.ref<VirtqUsed>(ring->device);
        for (int i = 0; i < 8; i++) {
          used.ring[i].id = static_cast<uint32_t>(r.below(20) ? r.below(8) : r.next());
          used.ring[i].len = static_cast<uint32_t>(r.below(20) ? r.below(140) : r.next());
        }
        used.idx = static_cast<uint16_t>(used.idx + (r.below(10) ? r.below(4) : r.next()));
        used.flags = static_cast<uint16_t>(r.next());
        used.ring[8].id = static_cast<uint32_t>(r.next());
      }
      for (uint32_t i = 0; i < 8; i++) {  // headers of receive buffers
        VirtqDesc& d = (&pair.memory.ref<VirtqDesc>(rx.desc))[i];
        uint64_t address = pair.memory.base + 2 * SplitDriver::bytes(8) + 192u * i;  // 128 and a line
        fill(pair.memory.at(address), 12, r.below(2) ? r.next() : 5);
        if (r.below(3)) std::memset(pair.memory.at(address), 0, 10);
        pair.memory.ref<uint16_t>(address + 10) = static_cast<uint16_t>(r.below(4));
        d.addr = r.next();  // our own descriptors, changed under us
        d.next = static_cast<uint16_t>(r.next());
      }
      uint32_t n = q.receive(burst);
      for (uint32_t i = 0; i < n; i++) {
        std::vector<uint8_t> all = bytes_of(burst, burst.packets[i]);
        CHECK_EQ(all.size(), burst.packets[i].length);
      }
      q.release(burst, n);
      q.send(frames.burst);
      q.flush();
      q.arm(r.below(2));
      q.disarm(r.below(2));
    }
    q.detached();
  }
}

TEST("a driver queue refuses options that it cannot have, and says why") {
  Memory m(1 << 20);
  DriverQueueOptions o;
  o.mapping = m.mapping;
  o.size = 16;
  std::string error;
  CHECK(DriverQueue::create(o, &error) != nullptr);
  auto bad = [&](const char* why, auto change) {
    DriverQueueOptions copy = o;
    change(copy);
    CHECK(!DriverQueue::create(copy, &error));
    CHECK_TEXT(error.c_str(), why);
  };
  bad("ring size", [](auto& c) { c.size = 17; });
  bad("buffer bytes", [](auto& c) { c.buffer_bytes = 63; });
  bad("writable mapping", [](auto& c) { c.mapping = nullptr; });
  bad("multiples of 64", [](auto& c) { c.offset = 32; });
  bad("leaves its mapping", [](auto& c) { c.offset = 1 << 20; });
  bad("wraps", [](auto& c) { c.address = UINT64_MAX - 63; });
  bad("duplicate", [](auto& c) { c.transmit_kick_fd = 99999; });
  CHECK_EQ(DriverQueue::bytes(0, 2048), 0);
}
