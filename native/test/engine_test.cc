// The queues without rings: source, sink, TAP and app.
#include <unistd.h>

#include <atomic>
#include <thread>

#include "../core/app_queue.h"
#include "../core/sink_queue.h"
#include "../core/source_queue.h"
#include "../core/test_frame.h"
#include "../core/worker.h"
#include "check.h"
#include "readable.h"
#include "tap_fixture.h"

namespace vpci::test {
namespace {

std::shared_ptr<SourceQueue> stream(uint32_t bytes, uint32_t id, uint64_t count = 0) {
  SourceQueue::Options options;
  options.bytes = bytes;
  options.has_stream = true;
  options.stream = id;
  options.count = count;
  return SourceQueue::create(options);
}

}  // namespace

TEST("source and sink: every byte of a stream is checked") {
  for (const uint32_t bytes : {38u, 39u, 64u, 1518u, 65535u}) {
    auto source = stream(bytes, 5);
    SinkQueue sink({true, 5});
    Burst burst(16);
    check::Random random(bytes);
    uint64_t altered = 0, foreign = 0;
    for (int turn = 0; turn < 40; turn++) {
      CHECK_EQ(source->receive(burst), Burst::kMax);
      // One bit of one packet, anywhere. Magic, stream and ethertype make it foreign, everything else
      // altered.
      const uint64_t bit = random.below(bytes * 8);
      uint8_t* const frame = burst.packets[random.below(Burst::kMax)].first.data;
      frame[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
      const uint64_t at = bit / 8;
      ((at >= 12 && at < 22) ? foreign : altered)++;
      CHECK_EQ(sink.send(burst), Burst::kMax);
      frame[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
      source->release(burst, Burst::kMax);
      CHECK_EQ(sink.verified.altered.get(), altered);
      CHECK_EQ(sink.verified.foreign.get(), foreign);
    }
  }
}

TEST("sink: lost, late and shortened packets are told apart") {
  auto source = stream(64, 1);
  SinkQueue sink({true, 1});
  Burst burst(16);
  source->receive(burst);
  Burst part(16);
  const auto send = [&](std::initializer_list<int> numbers) {
    part.clear();
    for (const int n : numbers) part.packets[part.end++] = burst.packets[n];
    sink.send(part);
  };
  send({0, 1, 2});
  CHECK_EQ(sink.verified.lost.get(), 0);
  send({5});
  CHECK_EQ(sink.verified.lost.get(), 2);
  send({3});
  CHECK_EQ(sink.verified.lost.get(), 1);
  CHECK_EQ(sink.verified.reordered.get(), 1);
  part.clear();
  part.packets[part.end++] = burst.packets[6];
  part.packets[0].first.length = part.packets[0].length = 63;
  sink.send(part);
  CHECK_EQ(sink.verified.altered.get(), 1);
  CHECK_EQ(sink.verified.packets.get(), 6);
}

TEST("sink: a frame in pieces is one frame") {
  auto source = stream(1000, 1, 64);
  SinkQueue sink({true, 1});
  Burst burst(1024);
  source->receive(burst);
  check::Random random(3);
  for (uint32_t i = 0; i < burst.end; i++) {
    Packet& packet = burst.packets[i];
    packet.more = static_cast<uint16_t>(burst.extra_used);
    uint32_t at = packet.first.length = static_cast<uint32_t>(random.below(1000));
    while (at < 1000) {
      const uint32_t n = std::min<uint32_t>(1000 - at, 1 + static_cast<uint32_t>(random.below(300)));
      burst.extra[burst.extra_used++] = {packet.first.data + at, n};
      packet.segments++;
      at += n;
    }
  }
  sink.send(burst);
  CHECK_EQ(sink.verified.packets.get(), 64);
  CHECK_EQ(sink.verified.altered.get() + sink.verified.lost.get() + sink.verified.foreign.get(), 0);
  CHECK(source->ended());
  source->release(burst, burst.count());
  CHECK_EQ(source->receive(burst), 0);
}

TEST("TAP: frames go both ways with their headers, in pieces or not") {
  FakeTap fake;
  auto tap = TapQueue::create(fake.fds[0], kDefaultMaxFrame);
  CHECK(tap != nullptr);
  for (const uint32_t pieces : {1u, 2u, 60u, 300u}) {
    auto source = stream(1400, 1, 1);
    Burst burst(1024);
    source->receive(burst);
    Packet& packet = burst.packets[0];
    packet.header = NetHeader{1, 0, 54, 0, 34, 16, 7};
    std::vector<uint8_t> expected(packet.first.data, packet.first.data + 1400);
    const uint32_t step = 1400 / pieces;
    packet.first.length = 1400 - step * (pieces - 1);
    packet.segments = static_cast<uint16_t>(pieces);
    for (uint32_t i = 0; i + 1 < pieces; i++) {
      burst.extra[i] = {packet.first.data + packet.first.length + i * step, step};
    }
    CHECK_EQ(tap->send(burst), 1);
    uint8_t got[2000];
    CHECK_EQ(read(fake.fds[1], got, sizeof got), 1412);
    CHECK(memcmp(got + 12, expected.data(), 1400) == 0);
    CHECK(got[0] == 1 && got[6] == 34 && got[10] == 0);  // num_buffers is zero for the kernel
    CHECK_EQ(write(fake.fds[1], got, 1412), 1412);
    Burst back(16);
    CHECK_EQ(tap->receive(back), 1);
    CHECK_EQ(back.packets[0].length, 1400);
    CHECK_EQ(back.packets[0].header.csum_start, 34);
    CHECK(memcmp(back.packets[0].first.data, expected.data(), 1400) == 0);
    tap->release(back, 1);
    CHECK_EQ(tap->receive(back), 0);
  }
}

TEST("TAP: no room is told by send, and wait_fd tells when there is some") {
  FakeTap fake;
  auto tap = TapQueue::create(fake.fds[0], kDefaultMaxFrame);
  auto source = stream(60000, 1);
  Burst burst(16);
  uint32_t sent = 0;
  source->receive(burst);
  while (uint32_t n = tap->send(burst)) {
    sent += n;
    source->release(burst, n);
    if (burst.empty()) source->receive(burst);
  }
  CHECK(sent > 0);
  CHECK(!readable(tap->wait_fd(true)));
  CHECK(!readable(tap->wait_fd(false)));
  std::vector<uint8_t> buffer(70000);
  while (read(fake.fds[1], buffer.data(), buffer.size()) > 0) sent--;
  CHECK_EQ(sent, 0);
  CHECK(readable(tap->wait_fd(true), 1000));
  CHECK(tap->send(burst) > 0);
  CHECK_EQ(tap->send_stats.drops[static_cast<int>(Drop::kDeviceError)].get(), 0);
}

TEST("TAP: impossible frames are dropped by cause; a flood of them does not hold the worker") {
  FakeTap fake;
  auto tap = TapQueue::create(fake.fds[0], 1500);
  uint8_t frame[12 + 1501] = {};
  const auto give = [&](size_t bytes) { CHECK_EQ(write(fake.fds[1], frame, bytes), bytes); };
  give(12 + 13);
  give(5);
  give(12 + 1501);
  frame[0] = 1;     // NEEDS_CSUM …
  frame[7] = 0xff;  // … far outside
  give(12 + 100);
  frame[0] = 0;
  give(12 + 100);
  Burst burst(16);
  CHECK_EQ(tap->receive(burst), 1);
  const auto drops = [&](Drop cause) { return tap->receive_stats.drops[static_cast<int>(cause)].get(); };
  CHECK_EQ(drops(Drop::kTooShort), 2);
  CHECK_EQ(drops(Drop::kTooLong), 1);
  CHECK_EQ(drops(Drop::kBadHeader), 1);
  auto source = stream(1501, 1, 1);
  Burst out(16);
  source->receive(out);
  CHECK_EQ(tap->send(out), 1);
  CHECK_EQ(tap->send_stats.drops[static_cast<int>(Drop::kTooLong)].get(), 1);
  close(fake.fds[1]);
  fake.fds[1] = -1;
  out.packets[0].length = out.packets[0].first.length = 100;
  CHECK_EQ(tap->send(out), 1);  // whatever the error is, the packet is gone
  CHECK_EQ(tap->send_stats.drops[static_cast<int>(Drop::kDeviceError)].get(), 1);
}

TEST("app queue: packets pass both ways between threads, and nobody sleeps through one") {
  for (const Worker::Mode mode : {Worker::Mode::kPoll, Worker::Mode::kInterrupt}) {
    constexpr uint64_t kCount = 20000;
    WakeFd program;
    auto queue = AppQueue::create({64, 256, 8}, [&] { program.signal(); });
    auto source = stream(100, 1, kCount);
    auto sink = std::make_shared<SinkQueue>(SinkQueue::Options{true, 1});
    Worker worker;
    Worker::Options options;
    options.mode = mode;
    CHECK_EQ(worker.start(options, [](const Worker::Event&) {}), 0);
    worker.connect(source, queue, LanePolicy::kHold, [](const char*, uint32_t) {});
    worker.connect(queue, sink, LanePolicy::kHold, [](const char*, uint32_t) {});
    // The program sends back what it receives, and sleeps whenever it can.
    uint64_t passed = 0;
    uint64_t sleeps = 0;
    while (passed < kCount) {
      const uint32_t n = queue->take();
      uint32_t done = 0;
      while (done < n) {
        const uint32_t slots = queue->reserve(n - done);
        for (uint32_t i = 0; i < slots; i++) {
          const uint32_t* from = &queue->pool()->received[2 * (done + i)];
          memcpy(queue->pool()->memory + queue->pool()->to_send[2 * i], queue->pool()->memory + from[0],
                 from[1]);
          queue->pool()->to_send[2 * i + 1] = from[1];
        }
        CHECK(queue->give(slots));
        done += slots;
        if (done < n && !queue->want()) {
          sleeps++;
          CHECK(readable(program.fd(), 5000));
          program.drain();
        }
      }
      passed += n;
      if (n > 0 || passed == kCount || queue->want()) continue;
      sleeps++;
      CHECK(readable(program.fd(), 5000));
      program.drain();
    }
    for (int i = 0; i < 5000 && sink->verified.packets.get() < kCount; i++) usleep(1000);
    CHECK_EQ(sink->verified.packets.get(), kCount);
    CHECK_EQ(sink->verified.lost.get() + sink->verified.altered.get() + sink->verified.foreign.get(), 0);
    CHECK(sleeps > 0);
    worker.stop({});
    worker.join();
  }
}

TEST("app queue: the program is woken by a pause, in a stream without one, and when its slots fill") {
  constexpr uint32_t kSlots = 1 << 16;  // of the program's direction; a wake-up is due at three quarters
  uint32_t wakes = 0;
  auto queue = AppQueue::create({2 * kSlots, 256, kSlots}, [&] { wakes++; });
  auto source = stream(100, 1);
  Burst burst(16);
  // Packets that were sent until the program was woken; `each` a round, of which `most` have some.
  auto until_woken = [&](uint32_t each, uint32_t most) {
    while (queue->take() > 0) {
    }
    CHECK(!queue->want());
    const uint32_t before = wakes;
    uint32_t sent = 0;
    for (uint32_t round = 0; wakes == before; round++) {
      if (round < most) {
        source->receive(burst);
        burst.end = burst.begin + each;
        CHECK_EQ(queue->send(burst), each);
        sent += each;
      }
      queue->flush();
    }
    return sent;
  };
  CHECK_EQ(until_woken(1, 1), 1);
  // The rounds of a burst take far less time than there may be between the first packet and the wake-up.
  const uint32_t sent = until_woken(1, ~0u);
  CHECK(sent > 1 && sent < kSlots * 3 / 4);

  while (queue->take() > 0) {
  }
  CHECK(!queue->want());
  const uint32_t before = wakes;
  uint32_t filled = 0;
  while (filled < kSlots * 3 / 4) {
    CHECK_EQ(wakes, before);
    source->receive(burst);
    filled += queue->send(burst);
  }
  queue->flush();
  CHECK_EQ(wakes, before + 1);

  // The same for what it sends: three quarters of the slots are free again.
  for (uint32_t n = queue->reserve(kSlots); n > 0; n = queue->reserve(kSlots)) {
    for (uint32_t i = 0; i < n; i++) queue->pool()->to_send[2 * i + 1] = 60;
    CHECK(queue->give(n));
  }
  while (queue->take() > 0) {
  }
  CHECK(!queue->want());
  for (uint32_t freed = 0; freed < kSlots * 3 / 4;) {
    CHECK_EQ(wakes, before + 1);
    const uint32_t n = queue->receive(burst);
    queue->release(burst, n);
    freed += n;
  }
  queue->flush();
  CHECK_EQ(wakes, before + 2);
}

}  // namespace vpci::test
