#include "log_mover.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "dirty_log.h"

namespace vpci {

LogMover::LogMover(Bitmap from, Bitmap to, std::vector<Range> ranges)
    : from_(std::move(from)), to_(std::move(to)), ranges_(std::move(ranges)) {}

int LogMover::start(uint32_t period_ms, std::function<void()> failed) {
  if (!wake_.valid()) return EMFILE;
  failed_ = std::move(failed);
  return thread_.start("vhost-pci log", -1, [this, period_ms] { loop(period_ms); });
}

void LogMover::stop() {
  wake_.signal();
  thread_.join();
}

void LogMover::loop(uint32_t period_ms) {
  pollfd wake{wake_.fd(), POLLIN, 0};
  for (;;) {
    const int woken = poll(&wake, 1, static_cast<int>(period_ms));
    if (woken > 0) return;
    if (woken < 0 && errno == EINTR) continue;
    if (move()) continue;
    failed_();
    return;
  }
}

// `each` returns how many bits of a range have arrived.
template <typename Work>
bool LogMover::work(Work each) {
  const std::lock_guard<std::mutex> lock(mutex_);
  uint64_t arrived = 0;
  for (const Range& range : ranges_) arrived += each(range);
  if (from_.mapping->faulted() || to_.mapping->faulted()) return false;
  moved.add(arrived);
  if (arrived != 0) signal_.signal();
  return true;
}

bool LogMover::move() {
  return work([this](const Range& range) {
    return move_dirty_bits(from_.mapping->data() + from_.offset, from_.bytes, to_.mapping->data() + to_.offset, to_.bytes,
                           range.shift, range.first, range.count);
  });
}

bool LogMover::mark_all() {
  return work([this](const Range& range) {
    uint64_t arrived = 0;
    for (uint64_t n = 0; n < range.count; n += 64) {
      const uint64_t left = range.count - n;
      const uint64_t bits = left < 64 ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
      arrived += or_dirty_bits(to_.mapping->data() + to_.offset, to_.bytes,
                               static_cast<__int128>(range.first) + range.shift + n, bits);
    }
    return arrived;
  });
}

void LogMover::signal_to(OwnFd eventfd) {
  const std::lock_guard<std::mutex> lock(mutex_);
  signal_ = std::move(eventfd);
}

}  // namespace vpci
