// The mover of dirty bits: nothing is lost between writers of the log, the mover's thread and whoever asks it to move.
#include <atomic>
#include <chrono>
#include <thread>

#include "../core/dirty_log.h"
#include "../core/log_mover.h"
#include "fixture.h"

using namespace vpci;
using namespace vpci::test;

namespace {

constexpr uint64_t kBytes = 512, kPages = kBytes * 8;

// Two bitmaps in one memory, and a range each of low and high pages, as a guest of more than 3 GiB has them.
struct Bitmaps {
  Memory m{3 * kBytes};
  LogMover::Bitmap from{m.mapping, 0, kBytes}, to{m.mapping, kBytes, 2 * kBytes};
  std::vector<LogMover::Range> ranges{{0, 1000, 0}, {1000, kPages - 1000, 4001}};

  bool arrived(uint64_t page) const {
    const uint64_t at = page < 1000 ? page : page + 4001;
    return __atomic_load_n(m.mapping->data() + kBytes + at / 8, __ATOMIC_ACQUIRE) >> at % 8 & 1;
  }
  // Takes what has arrived, as whoever reads the log does.
  bool take(uint64_t page) const {
    const uint64_t at = page < 1000 ? page : page + 4001;
    const uint8_t bit = static_cast<uint8_t>(1 << at % 8);
    return __atomic_fetch_and(m.mapping->data() + kBytes + at / 8, static_cast<uint8_t>(~bit), __ATOMIC_ACQ_REL) & bit;
  }
};

void mark(const DirtyLog& log, uint64_t page) {
  DirtyLog::Waiting waiting(log);
  DirtyLog::Batch(log, waiting).add(page << DirtyLog::kPageShift, 1);
}

}  // namespace

TEST("log mover: a bit that was set before a move has arrived when it returns, whatever its thread does") {
  for (const auto writers : {DirtyLog::Writers::kOne, DirtyLog::Writers::kSeveral}) {
    Bitmaps b;
    auto log = DirtyLog::create(b.m.mapping, 0, kBytes, nullptr, writers);
    LogMover mover(b.from, b.to, b.ranges);
    CHECK_EQ(mover.start(1, [] {}), 0);
    check::Random random(5);
    std::atomic<bool> stop{false};
    // Another writer, of other bytes, keeps the thread busy with bits.
    std::thread other([&] {
      for (uint64_t i = 0; !stop.load(std::memory_order_relaxed); i++) mark(*log, 2048 + i % 2048);
    });
    uint64_t missing = 0;
    for (int i = 0; i < 20000; i++) {
      const uint64_t page = random.below(2048);
      mark(*log, page);
      CHECK(mover.move());
      missing += !b.take(page);
    }
    stop = true;
    other.join();
    mover.stop();
    CHECK(mover.move());
    CHECK_EQ(missing, 0);
    for (uint64_t byte = 0; byte < kBytes; byte++) CHECK_EQ(b.m.mapping->data()[byte], 0);
  }
}

TEST("log mover: the thread moves by itself, signals, and does nothing once it is stopped") {
  Bitmaps b;
  auto log = DirtyLog::create(b.m.mapping, 0, kBytes, nullptr);
  const int eventfd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  OwnFd signal;
  CHECK(signal.duplicate(eventfd, nullptr));
  LogMover mover(b.from, b.to, b.ranges);
  mover.signal_to(std::move(signal));
  CHECK_EQ(mover.start(1, [] {}), 0);
  mark(*log, kPages - 1);
  while (!b.arrived(kPages - 1)) std::this_thread::yield();
  uint64_t count = 0;
  while (::read(eventfd, &count, sizeof count) < 0) std::this_thread::yield();
  CHECK_EQ(count, 1);
  CHECK_EQ(mover.moved.get(), 1);
  mover.stop();
  mark(*log, 7);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(!b.arrived(7));
  ::close(eventfd);
}

TEST("log mover: the memory of a log that vanishes ends the thread, which says so once") {
  Bitmaps b;
  Memory target(4096);
  std::atomic<int> told{0};
  LogMover mover(b.from, {target.mapping, 0, 4096}, b.ranges);
  CHECK_EQ(::ftruncate(target.fd, 0), 0);
  CHECK_EQ(mover.start(1, [&] { told++; }), 0);
  auto log = DirtyLog::create(b.m.mapping, 0, kBytes, nullptr);
  mark(*log, 1);
  while (told == 0) std::this_thread::yield();
  mover.stop();
  CHECK(!mover.move());
  CHECK(!mover.mark_all());
  CHECK_EQ(told, 1);
}
