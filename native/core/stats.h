// Counters of one direction of a port queue. One thread writes, any thread reads; readers may see a counter a
// burst late, never torn.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>

namespace vpci {

// The order is that of DROP_CAUSES in src/sys/native.ts.
enum class Drop : uint8_t {
  kNoBuffers,
  kTooShort,
  kTooLong,
  kBadHeader,
  kOffload,
  kBadChain,
  kDisabled,
  kDeviceError,
  kCount,
};

// A counter that only its owner thread changes: a plain load and store, no locked instruction.
class Counter {
 public:
  void add(uint64_t n) { v_.store(v_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  void set(uint64_t n) { v_.store(n, std::memory_order_relaxed); }
  uint64_t get() const { return v_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> v_{0};
};

struct RingStats {
  static constexpr unsigned kBurstClasses = 7;  // 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64 and more

  Counter packets;
  Counter bytes;
  Counter bursts[kBurstClasses];
  Counter drops[static_cast<unsigned>(Drop::kCount)];
  Counter notifications_sent;
  Counter notifications_suppressed;
  Counter fill;

  void drop(Drop cause, uint64_t n = 1) { drops[static_cast<unsigned>(cause)].add(n); }
  void burst(uint32_t n) {
    if (n == 0) return;
    unsigned c = std::bit_width(n) - 1;
    bursts[c < kBurstClasses ? c : kBurstClasses - 1].add(1);
  }
};

}  // namespace vpci
