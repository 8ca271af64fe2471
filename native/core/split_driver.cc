// The parts of the driver side that do not run for every packet.
#include "split_driver.h"

#include <cstring>

namespace vpci {

namespace {
constexpr uint64_t kAreaAlign = 64;  // no cache line belongs to two areas
constexpr uint64_t align_up(uint64_t n) { return (n + kAreaAlign - 1) / kAreaAlign * kAreaAlign; }
}  // namespace

uint64_t SplitDriver::bytes(uint32_t size) {
  return align_up(desc_bytes(size)) + align_up(avail_bytes(size)) + align_up(used_bytes(size));
}

void SplitDriver::init(uint8_t* base, uint64_t address, uint32_t size, uint64_t features) {
  std::memset(base, 0, bytes(size));
  uint64_t avail_at = align_up(desc_bytes(size));
  uint64_t used_at = avail_at + align_up(avail_bytes(size));
  desc_ = reinterpret_cast<VirtqDesc*>(base);
  avail_ = reinterpret_cast<VirtqAvail*>(base + avail_at);
  used_ = reinterpret_cast<VirtqUsed*>(base + used_at);
  size_ = size;
  mask_ = static_cast<uint16_t>(size - 1);
  event_idx_ = features & kFeatureEventIdx;
  addresses_ = {size, address, address + avail_at, address + used_at};
  shadow_.assign(size, Shadow{0, 0});
  state_.assign(size, kFree);
}

uint32_t SplitDriver::look() {
  if (cause_) return 0;
  uint16_t seen = load_acquire16(&used_->idx);
  uint16_t waiting = static_cast<uint16_t>(seen - next_used_);
  if (waiting > outstanding()) {
    cause_ = "used index is behind, or ahead of what was offered";
    return 0;
  }
  seen_used_ = seen;
  return waiting;
}

bool SplitDriver::needs_notify() {
  uint16_t before = notified_;
  if (before == next_avail_) return false;
  notified_ = next_avail_;
  // VIRTIO 1.3, 2.7.13.4.1: the index must be visible before the device's wish is read.
  full_fence();
  if (!event_idx_) return !(load_relaxed16(&used_->flags) & kUsedNoNotify);
  return need_event(load_relaxed16(avail_event()), next_avail_, before);
}

void SplitDriver::write_suppression() {
  suppressed_ = true;
  suppressed_at_ = next_used_;
  // VIRTIO 1.3, 2.7.7.1: flags stay 0 with event indices.
  if (event_idx_)
    store_relaxed16(used_event(), far_event(next_used_, size_));
  else
    store_relaxed16(&avail_->flags, kAvailNoInterrupt);
}

bool SplitDriver::request_interrupts() {
  suppressed_ = false;
  if (event_idx_) store_relaxed16(used_event(), next_used_);
  store_relaxed16(&avail_->flags, 0);
  // Either the device sees the wish when it has published, or we see what it published.
  full_fence();
  return load_acquire16(&used_->idx) == next_used_;
}

}  // namespace vpci
