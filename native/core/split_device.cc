// The parts of the device side that do not run for every packet.
#include "split_device.h"

namespace vpci {

bool SplitDevice::init(std::shared_ptr<const RegionTable> table, const Options& options, std::string* error) {
  const RingAddresses& r = options.ring;
  if (!valid_ring_size(r.size)) {
    if (error) *error = "ring size is not a power of two from 1 to 32768";
    return false;
  }
  Area desc = {r.desc, desc_bytes(r.size), kDescAlign, "descriptor table"};
  Area avail = {r.driver, avail_bytes(r.size), kAvailAlign, "available ring"};
  Area used = {r.device, used_bytes(r.size), kUsedAlign, "used ring"};
  if (!place(std::move(table), options, {&desc, &avail, &used}, error)) return false;
  desc_ = reinterpret_cast<const VirtqDesc*>(desc.data);
  avail_ = reinterpret_cast<VirtqAvail*>(avail.data);
  used_ = reinterpret_cast<VirtqUsed*>(used.data);
  mask_ = static_cast<uint16_t>(r.size - 1);
  next_avail_ = seen_avail_ = used_idx_ = signalled_ = options.next_avail;
  published_ = load_relaxed16(&used_->idx);
  return true;
}

uint32_t SplitDevice::look() {
  if (cause_) return 0;
  uint16_t seen = load_acquire16(&avail_->idx);
  uint16_t waiting = static_cast<uint16_t>(seen - next_avail_);
  if (waiting > size_) {
    cause_ = "available index is behind, or further ahead than the ring is long";
    return 0;
  }
  // The peer's VMM empties a ring whose back-end has died, which a driver in a VM learns seconds later: a chain that both
  // give back breaks the peer's driver. In a packed ring what somebody else has used is not available.
  if (load_relaxed16(&used_->idx) != published_) {
    cause_ = "the used index was written by somebody else: another back-end serves this ring, or the peer's VMM took it back";
    return 0;
  }
  seen_avail_ = seen;
  return waiting;
}

void SplitDevice::write16(uint16_t* to, uint16_t value) {
  store_relaxed16(to, value);
  if (log_) mark(Written::kEvent, to, sizeof *to);
}

void SplitDevice::mark_used(uint32_t ahead, uint32_t n) const {
  const uint32_t first = (used_idx_ + ahead) & mask_, to_end = std::min(n, size_ - first);
  mark(Written::kUsed, &used_->ring[first], 8ull * to_end);
  if (n > to_end) mark(Written::kUsed, &used_->ring[0], 8ull * (n - to_end));
}

template <bool kLog>
void SplitDevice::publish(uint32_t n) {
  if (n == 0) return;
  // Everything that the index makes visible is logged first.
  if (kLog) mark_used(0, n);
  used_idx_ = static_cast<uint16_t>(used_idx_ + n);
  // VIRTIO 1.3, 2.7.8.2: elements and buffers are visible before the index.
  store_release16(&used_->idx, used_idx_);
  published_ = used_idx_;
  if (kLog) mark(Written::kUsed, &used_->idx, sizeof used_->idx);
}

template void SplitDevice::publish<false>(uint32_t);
template void SplitDevice::publish<true>(uint32_t);

bool SplitDevice::needs_signal() {
  uint16_t before = signalled_;
  if (signal_settled()) return false;
  bool valid = signal_valid_;
  signalled_ = used_idx_;
  signal_valid_ = true;
  // VIRTIO 1.3, 2.7.7.2: the index must be visible before the driver's wish is read.
  full_fence();
  if (!event_idx_) return !(load_relaxed16(&avail_->flags) & kAvailNoInterrupt);
  // The first time nobody knows what was signalled by whoever served the ring before.
  return !valid || need_event(load_relaxed16(used_event()), used_idx_, before);
}

void SplitDevice::write_suppression() {
  kicks_ = Kicks::kSuppressed;
  suppressed_at_ = next_avail_;
  // VIRTIO 1.3, 2.7.10.2: flags stay 0 with event indices.
  write16(&used_->flags, event_idx_ ? 0 : kUsedNoNotify);
  if (event_idx_) write16(avail_event(), far_event(next_avail_, size_));
}

bool SplitDevice::request_kicks(uint16_t from) {
  kicks_ = Kicks::kWanted;
  if (event_idx_) write16(avail_event(), from);
  write16(&used_->flags, 0);
  // Either the driver sees the wish when it has published, or we see what it published.
  full_fence();
  return load_acquire16(&avail_->idx) == from;
}

}  // namespace vpci
