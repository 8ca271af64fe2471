// A shared mapping of a file that another process may shrink at any time, guarded against SIGBUS: the handler
// puts private zero pages over the whole mapping and marks it faulted, so that the access that met the
// missing page completes and the owner finds out afterwards (decision D3). Knows no ring.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace vpci {

class Mapping {
 public:
  // Returns nullptr with errno set when the file cannot be mapped. `offset` is a multiple of the page size of
  // the file. The fd is not kept.
  static std::shared_ptr<Mapping> create(int fd, uint64_t offset, size_t size, bool writable);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  bool writable() const { return writable_; }
  // To be asked after a burst of accesses and before anything is concluded from what they read.
  bool faulted() const { return faulted_.load(std::memory_order_acquire); }

  static size_t live_count();

 private:
  friend struct GuardSlots;
  Mapping() = default;

  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;  // size_, rounded up to pages of the file
  int slot_ = -1;
  bool writable_ = false;
  std::atomic<bool> faulted_{false};
};

}  // namespace vpci
