// Moves the bits of a dirty log into the log of whoever asked for it: every so often on a thread of its own, which costs
// the data path nothing, and at once when asked (decision D7). Knows pages by number, not what they are.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "mapping.h"
#include "notify.h"
#include "stats.h"
#include "thread.h"

namespace vpci {

class LogMover {
 public:
  // Pages [first, first + count) of the source; page n is number n + shift in the target. Pages outside of either bitmap
  // have no bit.
  struct Range {
    uint64_t first;
    uint64_t count;
    int64_t shift;
  };
  // Bit 0 is at `offset` of the mapping, which ends `bytes` behind it or later.
  struct Bitmap {
    std::shared_ptr<Mapping> mapping;
    uint64_t offset;
    uint64_t bytes;
  };

  LogMover(Bitmap from, Bitmap to, std::vector<Range> ranges);
  ~LogMover() { stop(); }
  LogMover(const LogMover&) = delete;
  LogMover& operator=(const LogMover&) = delete;

  // Moves every `period_ms` from now on. `failed` is called on the thread, which ends, when the memory of a bitmap has
  // vanished. 0 or errno.
  int start(uint32_t period_ms, std::function<void()> failed);
  // The thread moves nothing any more. Idempotent.
  void stop();

  // Any thread. Every bit that was set before the call is in the target when it returns. False: a bitmap's memory has
  // vanished.
  bool move();
  // Every page of the ranges counts as written. False as above.
  bool mark_all();
  // Signalled whenever bits have arrived; the eventfd is somebody else's.
  void signal_to(OwnFd eventfd);

  // Bits that have arrived.
  Counter moved;

 private:
  template <typename Work>
  bool work(Work each);
  void loop(uint32_t period_ms);

  const Bitmap from_, to_;
  const std::vector<Range> ranges_;
  std::function<void()> failed_;
  WakeFd wake_;
  Thread thread_;

  // Held over a pass: nobody else finds both bitmaps empty while a bit is on its way.
  std::mutex mutex_;
  OwnFd signal_;
};

}  // namespace vpci
