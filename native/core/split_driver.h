// Driver side of a split ring in memory of our own (VIRTIO 1.3, 2.7): offers descriptors, takes them back,
// and both directions of notification suppression. The device is another party: what it puts into the used
// ring is checked. Knows no packet and owns no buffer. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mapping.h"
#include "split_layout.h"

namespace vpci {

class SplitDriver {
 public:
  // Bytes that the three areas take, a multiple of 64.
  static uint64_t bytes(uint32_t size);

  // Lays the ring out from `base`, which the device sees at `address`, and clears it. Both are multiples
  // of 64.
  void init(uint8_t* base, uint64_t address, uint32_t size, uint64_t features);

  const RingAddresses& addresses() const { return addresses_; }
  uint32_t size() const { return size_; }
  const char* cause() const { return cause_; }

  // -- offering ---------------------------------------------------------------------------------------------
  // Sets a descriptor that the device does not have. Leaves the memory alone when it says so already: a line
  // that did not change stays in the device's cache.
  void set_desc(uint16_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next) {
    uint64_t rest = len | static_cast<uint64_t>(flags) << 32 | static_cast<uint64_t>(next) << 48;
    Shadow& s = shadow_[i];
    if (s.rest != rest || s.addr != addr) {
      s.addr = addr;
      s.rest = rest;
      store64(&desc_[i].addr, addr);
      store64(&desc_[i].len, rest);
    }
  }
  // Puts a chain behind those offered so far; the device sees it after publish.
  void offer(uint16_t head) {
    uint16_t* entry = &avail_->ring[next_avail_ & mask_];
    if (*entry != head) store_relaxed16(entry, head);
    next_avail_++;
    state_[head] = kOffered;
  }
  void publish() { store_release16(&avail_->idx, next_avail_); }
  uint16_t offered_idx() const { return next_avail_; }
  // Chains that the device has.
  uint32_t outstanding() const { return static_cast<uint16_t>(next_avail_ - next_used_); }

  // -- taking back ------------------------------------------------------------------------------------------
  // How many used elements wait. Looks at the shared index only when fewer than `wanted` are known. 0 with
  // cause() set when the index is impossible.
  uint32_t used(uint32_t wanted) {
    uint16_t known = static_cast<uint16_t>(seen_used_ - next_used_);
    return known >= wanted ? known : look();
  }
  // The element `ahead` behind the next one, not checked.
  VirtqUsedElem peek(uint32_t ahead) const {
    uint64_t w = load_once64(&used_->ring[(next_used_ + ahead) & mask_]);
    return {static_cast<uint32_t>(w), static_cast<uint32_t>(w >> 32)};
  }
  // Takes the next element, whose id was peeked: false, with cause() set, when the device never had that
  // chain.
  bool take(uint32_t id) {
    if (id >= size_ || state_[id] != kOffered) {
      cause_ = "used element names a chain that the device does not have";
      return false;
    }
    state_[id] = kFree;
    next_used_++;
    return true;
  }

  // -- notifications ----------------------------------------------------------------------------------------
  // True when the device wants to hear of what was published since the last call (VIRTIO 1.3, 2.7.10.1).
  bool needs_notify();
  bool notify_settled() const { return notified_ == next_avail_; }
  // Asks the device not to interrupt; cheap when that is so already.
  void suppress_interrupts() {
    if (suppressed_ && static_cast<uint16_t>(next_used_ - suppressed_at_) <= kEventLag) return;
    write_suppression();
  }
  // Asks for an interrupt when the used index goes beyond what was taken. False: it has already.
  bool request_interrupts();

 private:
  struct Shadow {
    uint64_t addr, rest;
  };
  enum : uint8_t { kFree, kOffered };

  uint32_t look();
  void write_suppression();
  uint16_t* used_event() const { return &avail_->ring[size_]; }
  uint16_t* avail_event() const { return reinterpret_cast<uint16_t*>(&used_->ring[size_]); }

  VirtqDesc* desc_ = nullptr;
  VirtqAvail* avail_ = nullptr;
  VirtqUsed* used_ = nullptr;
  uint32_t size_ = 0;
  uint16_t mask_ = 0;
  uint16_t next_avail_ = 0;
  uint16_t next_used_ = 0;
  uint16_t seen_used_ = 0;
  uint16_t notified_ = 0;
  uint16_t suppressed_at_ = 0;
  bool suppressed_ = false;
  bool event_idx_ = false;
  const char* cause_ = nullptr;
  std::vector<Shadow> shadow_;
  std::vector<uint8_t> state_;
  RingAddresses addresses_;
};

}  // namespace vpci
