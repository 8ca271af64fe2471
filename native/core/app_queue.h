// A port queue whose other end is the program itself: packets in a pool of slots of our own, handed over
// through two single-producer single-consumer rings between the worker thread and the program's thread. Half
// of the slots carry packets to the program, the others packets from it; each ring uses its slots in turn, so
// that no free list exists.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "frame_copy.h"
#include "port.h"
#include "thread.h"

namespace vpci {

// Memory that the program may keep longer than the queue.
struct AppPool {
  AppPool(uint32_t slots, uint32_t stride, uint32_t burst);
  ~AppPool();
  AppPool(const AppPool&) = delete;
  AppPool& operator=(const AppPool&) = delete;

  uint8_t* memory;  // nullptr when there is not enough
  size_t size;
  std::vector<uint32_t> received;  // pairs (offset of the frame in the pool, length)
  std::vector<uint32_t> to_send;
};

class AppQueue final : public PortQueue {
 public:
  struct Options {
    uint32_t slots = 0;
    uint32_t slot_bytes = 0;  // virtio_net_hdr and frame
    uint32_t burst = 0;
  };
  static constexpr uint32_t kHeaderBytes = sizeof(NetHeader);
  static constexpr uint32_t kLineBytes = 64;

  // Bytes from slot to slot. Frames begin at cache lines, their headers end the lines before. It is an odd
  // number of lines: with a power of two the first lines of all slots would share a few sets of the caches.
  static constexpr uint32_t stride(uint32_t slot_bytes) {
    return ((1 + (slot_bytes - kHeaderBytes + kLineBytes - 1) / kLineBytes) | 1) * kLineBytes;
  }

  // nullptr when there is not enough memory or no descriptor left. `wake` is called on the worker's thread.
  static std::shared_ptr<AppQueue> create(const Options& options, std::function<void()> wake);

  // -- the program's side, on one thread -------------------------------------------------------------------
  const std::shared_ptr<AppPool>& pool() const { return pool_; }
  // Fills pool()->received; frees the slots of the previous call.
  uint32_t take();
  // Fills pool()->to_send with free slots, their headers zero. An earlier reservation is void.
  uint32_t reserve(uint32_t n);
  // Publishes the first `n` reserved slots. False, and nothing happens, when to_send is not what was
  // reserved, or a length is not from 14 to the slot's capacity.
  bool give(uint32_t n);
  uint32_t reserved() const { return reserved_; }
  uint32_t capacity() const { return slot_bytes_ - kHeaderBytes; }
  // Asks for one `wake` when packets wait, or slots came free after a reservation that fell short. True when
  // that is so already: there will be no `wake`.
  bool want();

  // -- the worker's side -----------------------------------------------------------------------------------
  uint32_t receive(Burst& burst) override;
  void release(Burst& burst, uint32_t n) override;
  uint32_t send(const Burst& burst) override;
  int wait_fd(bool for_send) override { return (for_send ? in_ : out_).event.fd(); }
  bool arm(bool for_send) override;
  void disarm(bool for_send) override;
  void flush() override;
  void settle() override { tell(); }
  void detached() override;

 private:
  // One direction. `produced` and `consumed` only grow; a position is a counter modulo `slots`.
  struct Ring {
    uint32_t first = 0;  // slot
    uint32_t slots = 0;
    std::vector<uint32_t> lengths;
    WakeFd event;  // for the worker
    alignas(64) std::atomic<uint64_t> produced{0};
    alignas(64) std::atomic<uint64_t> consumed{0};
    alignas(64) std::atomic<bool> armed{false};

    uint32_t next(uint32_t position) const { return position + 1 == slots ? 0 : position + 1; }
    uint64_t used() const {
      return produced.load(std::memory_order_relaxed) - consumed.load(std::memory_order_relaxed);
    }
    void wake_worker();
  };
  enum Want : uint32_t { kPackets = 1, kSpace = 2 };

  AppQueue() = default;
  void tell();
  uint32_t frame_offset(const Ring& ring, uint32_t position) const {
    return (ring.first + position) * stride_ + kLineBytes;
  }

  std::shared_ptr<AppPool> pool_;
  uint32_t stride_ = 0;
  uint32_t slot_bytes_ = 0;
  uint32_t burst_ = 0;
  std::function<void()> wake_;
  Ring in_;   // worker → program
  Ring out_;  // program → worker
  alignas(64) std::atomic<uint32_t> wanted_{0};

  // The program's own.
  alignas(64) uint32_t taken_ = 0;
  uint32_t reserved_ = 0;
  uint32_t take_position_ = 0;
  uint32_t reserve_position_ = 0;
  bool short_ = false;
  uint64_t consumed_then_ = 0;

  // The worker's own.
  alignas(64) uint64_t read_ = 0;  // entries of out_ that are in a burst or done with
  uint32_t read_position_ = 0;
  uint32_t release_position_ = 0;
  uint32_t write_position_ = 0;
  uint32_t news_ = 0;
  uint64_t news_since_ = 0;  // nanoseconds; 0 when nothing is put off
  uint64_t pause_since_ = 0;
  uint64_t moved_then_ = 0;
  std::vector<uint8_t> headers_;  // of each slot of in_: 1 when its header is not zero
  CopyList copies_;
  uint16_t steps_[Burst::kMax] = {};  // ring entries that the release of a packet gives back
};

}  // namespace vpci
