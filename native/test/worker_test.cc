// The worker, against queues whose every answer is scripted, and against real ones while commands come in.
#include <chrono>
#include <deque>
#include <future>
#include <thread>

#include "../core/sink_queue.h"
#include "../core/source_queue.h"
#include "../core/test_frame.h"
#include "../core/worker.h"
#include "check.h"

namespace vpci::test {
namespace {

// Gives packets numbered from 0, takes as many as it is told to, and remembers. Its counters are atomic
// because the test looks on.
class ScriptedQueue : public PortQueue {
 public:
  std::atomic<uint32_t> offered{0};   // packets that receive may give
  std::atomic<uint32_t> room{0};      // packets that send may take
  std::atomic<uint32_t> received{0};  // given and not taken back
  std::atomic<uint32_t> released{0};
  std::atomic<uint32_t> sent{0};
  std::atomic<uint32_t> flushes{0};
  std::atomic<uint32_t> arms[2] = {0, 0};
  std::atomic<uint32_t> disarms[2] = {0, 0};
  std::atomic<int> detaches{0};
  std::atomic<bool> in_order{true};
  bool polled = false;  // nobody signals
  WakeFd wakes[2];

  uint32_t receive(Burst& burst) override {
    CHECK(burst.empty());
    burst.clear();
    for (; burst.end < Burst::kMax && received < offered; burst.end++) {
      memcpy(bytes_[burst.end], &number_, sizeof number_);
      number_++;
      burst.packets[burst.end] = Packet{{bytes_[burst.end], 64}, 64, 1, 0, NetHeader{}};
      received++;
    }
    return burst.end;
  }
  void release(Burst& burst, uint32_t n) override {
    CHECK(n > 0 && n <= burst.count());
    burst.begin += n;
    released += n;
  }
  uint32_t send(const Burst& burst) override {
    CHECK(!burst.empty());
    uint32_t n = 0;
    for (; n < burst.count() && room > 0; n++, room--) {
      uint32_t number;
      memcpy(&number, burst.packets[burst.begin + n].first.data, sizeof number);
      if (number != sent) in_order = false;
      sent++;
    }
    return n;
  }
  int wait_fd(bool for_send) override { return polled ? kPolled : wakes[for_send].fd(); }
  bool arm(bool for_send) override {
    arms[for_send]++;
    return for_send ? room == 0 : received == offered;
  }
  void disarm(bool for_send) override {
    disarms[for_send]++;
    wakes[for_send].drain();
  }
  void flush() override { flushes++; }
  void detached() override {
    detaches++;
    number_ -= received - released;
    received = released.load();
  }
  void give_up(bool send_side, const char* cause) { set_broken(send_side, cause); }

 private:
  uint32_t number_ = 0;
  uint8_t bytes_[Burst::kMax][64] = {};
};

template <typename Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 5000; i++) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

// Commands that wait for their answer.
const char* connect(Worker& worker, std::shared_ptr<PortQueue> from, std::shared_ptr<PortQueue> to,
                    LanePolicy policy = LanePolicy::kHold) {
  std::promise<const char*> answer;
  CHECK(worker.connect(std::move(from), std::move(to), policy,
                       [&](const char* error, uint32_t) { answer.set_value(error); }));
  return answer.get_future().get();
}
void detach(Worker& worker, std::shared_ptr<PortQueue> queue) {
  std::promise<void> answer;
  CHECK(worker.detach(std::move(queue), [&](const char*, uint32_t) { answer.set_value(); }));
  answer.get_future().get();
}

struct Events {
  std::mutex mutex;
  std::vector<Worker::Event> seen;
  void add(const Worker::Event& event) {
    const std::lock_guard<std::mutex> lock(mutex);
    seen.push_back(event);
  }
  size_t count() {
    const std::lock_guard<std::mutex> lock(mutex);
    return seen.size();
  }
};

constexpr Worker::Mode kModes[] = {Worker::Mode::kPoll, Worker::Mode::kInterrupt, Worker::Mode::kAdaptive};

struct Running {
  Worker worker;
  Events events;
  explicit Running(Worker::Mode mode, uint32_t spin_microseconds = 50) {
    Worker::Options options;
    options.mode = mode;
    options.spin_microseconds = spin_microseconds;
    CHECK_EQ(worker.start(options, [this](const Worker::Event& event) { events.add(event); }), 0);
  }
  bool sleeps() {
    return eventually([this] { return worker.stats.state.load() == Worker::State::kSleeping; });
  }
};

}  // namespace

TEST("worker: a lane that holds keeps packets until there is room, in order") {
  for (const Worker::Mode mode : kModes) {
    Running run(mode);
    auto from = std::make_shared<ScriptedQueue>(), to = std::make_shared<ScriptedQueue>();
    CHECK(!connect(run.worker, from, to));
    from->offered = 200;
    from->wakes[0].signal();
    CHECK(eventually([&] { return from->received == 64; }));
    if (mode != Worker::Mode::kPoll) CHECK(eventually([&] { return to->arms[1] > 0; }));
    for (uint32_t room : {1u, 62u, 3u, 200u}) {
      const uint32_t before = to->sent;
      to->room = room;
      to->wakes[1].signal();
      CHECK(eventually([&] { return to->sent == std::min(before + room, 200u); }));
      if (room < 200) CHECK(eventually([&] { return to->room == 0; }));
    }
    CHECK(eventually([&] { return from->released == 200; }));
    CHECK(to->in_order);
    CHECK_EQ(to->send_stats.drops[0].get(), 0);
    if (mode != Worker::Mode::kPoll) {
      CHECK(run.sleeps());
      CHECK(from->arms[0] > 0);
      CHECK_EQ(from->arms[1].load() + to->arms[0].load(), 0);
    }
    run.worker.stop({});
    run.worker.join();
    CHECK_EQ(from->arms[0].load(), from->disarms[0].load());
    CHECK_EQ(to->arms[1].load(), to->disarms[1].load());
    CHECK_EQ(from->detaches.load() + to->detaches.load(), 2);
    CHECK(from->flushes > 0 && to->flushes > 0);
  }
}

TEST("worker: an adaptive one spins after the packets that woke it, as after others") {
  Running run(Worker::Mode::kAdaptive, 50'000);
  auto from = std::make_shared<ScriptedQueue>(), to = std::make_shared<ScriptedQueue>();
  to->room = 1000;
  CHECK(!connect(run.worker, from, to));
  CHECK(run.sleeps());
  const uint64_t idle = run.worker.stats.idle_rounds.get();
  const uint32_t armed = from->arms[0];
  from->offered = 1;
  from->wakes[0].signal();
  CHECK(eventually([&] { return to->sent == 1; }));
  CHECK(eventually([&] { return from->arms[0] > armed; }));
  CHECK(run.worker.stats.idle_rounds.get() >= idle + 5);
}

TEST("worker: sides that nobody signals are looked at now and then, also by a worker that sleeps") {
  Running run(Worker::Mode::kInterrupt);
  auto from = std::make_shared<ScriptedQueue>(), to = std::make_shared<ScriptedQueue>();
  from->polled = to->polled = true;
  CHECK(!connect(run.worker, from, to));
  CHECK(run.sleeps());
  from->offered = 3;
  CHECK(eventually([&] { return from->received == 3; }));
  CHECK_EQ(to->sent.load(), 0);
  to->room = 3;
  CHECK(eventually([&] { return from->released == 3; }));
  CHECK(to->in_order);
}

TEST("worker: a lane that drops counts at the destination and goes on") {
  Running run(Worker::Mode::kInterrupt);
  auto from = std::make_shared<ScriptedQueue>(), to = std::make_shared<ScriptedQueue>();
  to->room = 10;
  from->offered = 100;
  CHECK(!connect(run.worker, from, to, LanePolicy::kDrop));
  CHECK(eventually([&] { return from->released == 100; }));
  CHECK_EQ(to->sent.load(), 10);
  CHECK_EQ(to->send_stats.drops[static_cast<int>(Drop::kNoBuffers)].get(), 90);
}

TEST("worker: detaching a source gives back what was not delivered; a destination drops it") {
  for (const bool source : {true, false}) {
    Running run(Worker::Mode::kPoll);
    auto from = std::make_shared<ScriptedQueue>(), to = std::make_shared<ScriptedQueue>();
    from->offered = 64;
    to->room = 5;
    CHECK(!connect(run.worker, from, to));
    CHECK(eventually([&] { return to->sent == 5 && from->released == 5; }));
    detach(run.worker, source ? from : to);
    CHECK_EQ(from->released.load(), source ? 5 : 64);
    CHECK_EQ(from->received.load(), source ? 5 : 64);
    CHECK_EQ(to->send_stats.drops[0].get(), source ? 0 : 59);
    const uint32_t before = to->sent;
    to->room = 100;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK_EQ(to->sent.load(), before);
    if (source) {  // the packets go on where they stopped
      CHECK(!from->claimed() && to->claimed());
      CHECK(!connect(run.worker, from, to));
      CHECK(eventually([&] { return to->sent == 64; }));
      CHECK(to->in_order);
    }
  }
}

TEST("worker: a queue that was given up is told once a side, and holds nobody up") {
  Running run(Worker::Mode::kInterrupt);
  auto from = std::make_shared<ScriptedQueue>(), to = std::make_shared<ScriptedQueue>();
  from->offered = 64;
  CHECK(!connect(run.worker, from, to));
  CHECK(run.sleeps());
  to->give_up(true, "test cause");
  to->wakes[1].signal();
  CHECK(eventually([&] { return from->released == 64; }));
  from->offered = 1000;
  from->wakes[0].signal();
  CHECK(eventually([&] { return from->released == 1000; }));
  CHECK_EQ(to->sent.load(), 0);
  CHECK(run.sleeps());
  from->give_up(false, "the other");
  from->wakes[0].signal();
  CHECK(eventually([&] { return run.events.count() == 2; }));
  from->offered = 2000;
  CHECK(run.sleeps());
  CHECK_EQ(from->received.load(), 1000);
  CHECK_EQ(run.events.count(), 2);
  CHECK_TEXT(run.events.seen[0].broken, "test cause");
  CHECK(run.events.seen[0].queue == to.get() && run.events.seen[0].send_side);
}

TEST("worker: a queue belongs to one worker, and its receive side to one lane") {
  Running first(Worker::Mode::kInterrupt), second(Worker::Mode::kInterrupt);
  auto a = std::make_shared<ScriptedQueue>(), b = std::make_shared<ScriptedQueue>(),
       c = std::make_shared<ScriptedQueue>();
  CHECK(!connect(first.worker, a, b));
  CHECK_TEXT(connect(first.worker, a, c), "already receives");
  CHECK_TEXT(connect(second.worker, a, c), "another worker");
  CHECK_TEXT(connect(second.worker, c, b), "another worker");
  CHECK(!c->claimed());
  CHECK(!connect(first.worker, b, a));
  detach(first.worker, a);
  detach(first.worker, b);
  CHECK(!connect(second.worker, a, b));
}

TEST("worker: commands after stop are refused, and stop ends what runs") {
  Running run(Worker::Mode::kPoll);
  auto from = SourceQueue::create({}), other = SourceQueue::create({});
  auto to = std::make_shared<SinkQueue>(SinkQueue::Options{});
  CHECK(!connect(run.worker, from, to));
  std::promise<void> stopped;
  CHECK(run.worker.stop([&](const char*, uint32_t) { stopped.set_value(); }));
  stopped.get_future().get();
  run.worker.join();
  CHECK(!from->claimed() && !to->claimed());
  CHECK(!run.worker.connect(other, to, LanePolicy::kHold, {}));
  CHECK(!run.worker.detach(from, {}));
  CHECK(!run.worker.stop({}));
}

TEST("worker: queues come and go under traffic, and the owner has the last reference") {
  for (const Worker::Mode mode : kModes) {
    Running run(mode);
    for (int turn = 0; turn < 100; turn++) {
      SourceQueue::Options options;
      options.has_stream = true;
      options.stream = 1;
      auto from = SourceQueue::create(options);
      auto to = std::make_shared<SinkQueue>(SinkQueue::Options{true, 1});
      CHECK(!connect(run.worker, from, to));
      while (to->send_stats.packets.get() == 0) std::this_thread::yield();
      detach(run.worker, turn % 2 ? std::shared_ptr<PortQueue>(from) : to);
      detach(run.worker, turn % 2 ? std::shared_ptr<PortQueue>(to) : from);
      CHECK_EQ(from.use_count(), 1);
      CHECK_EQ(to.use_count(), 1);
      CHECK_EQ(to->verified.altered.get() + to->verified.lost.get() + to->verified.foreign.get(), 0);
    }
  }
}

}  // namespace vpci::test
