// The parts of the device side that do not run for every packet.
#include "split_device.h"

namespace vpci {

uint8_t* SplitDevice::area(const RegionTable& table, uint64_t address, uint64_t bytes, uint64_t align,
                           std::string* error, const char* name) {
  const char* why = nullptr;
  uint8_t* data = table.translate(address, bytes);
  if (address % align)
    why = " is unaligned";
  else if (!data)
    why = " is not inside one region";
  // Regions may start anywhere in their mapping; atomic accesses need the alignment here too.
  else if (reinterpret_cast<uintptr_t>(data) % align)
    why = " is unaligned in its mapping";
  else if (!table.find(address)->mapping->writable())
    why = " is in a read-only mapping";
  if (!why) return data;
  if (error) *error = std::string(name) + why;
  return nullptr;
}

bool SplitDevice::init(std::shared_ptr<const RegionTable> table, const Options& options, std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return false;
  };
  const RingAddresses& r = options.ring;
  if (!table) return fail("ring has no region table");
  if (!valid_ring_size(r.size)) return fail("ring size is not a power of two from 1 to 32768");
  uint8_t* desc = area(*table, r.desc, desc_bytes(r.size), kDescAlign, error, "descriptor table");
  uint8_t* avail =
      desc ? area(*table, r.driver, avail_bytes(r.size), kAvailAlign, error, "available ring") : nullptr;
  uint8_t* used =
      avail ? area(*table, r.device, used_bytes(r.size), kUsedAlign, error, "used ring") : nullptr;
  if (!used) return false;

  // Compared here and not as addresses: two regions may show the same bytes.
  auto apart = [](const uint8_t* a, uint64_t a_bytes, const uint8_t* b, uint64_t b_bytes) {
    return a + a_bytes <= b || b + b_bytes <= a;
  };
  if (!apart(desc, desc_bytes(r.size), avail, avail_bytes(r.size)) ||
      !apart(desc, desc_bytes(r.size), used, used_bytes(r.size)) ||
      !apart(avail, avail_bytes(r.size), used, used_bytes(r.size)))
    return fail("ring areas overlap");
  // The peer's memory is one file (decision D5), and the dirty log counts in that file.
  const Mapping* home = table->find(r.desc)->mapping.get();
  if (table->find(r.driver)->mapping.get() != home || table->find(r.device)->mapping.get() != home)
    return fail("ring areas are in different mappings");

  desc_ = reinterpret_cast<const VirtqDesc*>(desc);
  avail_ = reinterpret_cast<VirtqAvail*>(avail);
  used_ = reinterpret_cast<VirtqUsed*>(used);
  size_ = r.size;
  mask_ = static_cast<uint16_t>(r.size - 1);
  next_avail_ = seen_avail_ = used_idx_ = signalled_ = options.next_avail;
  event_idx_ = options.features & kFeatureEventIdx;
  indirect_ = options.features & kFeatureIndirect;
  cache_.init(table.get(), options.writes_buffers);
  log_base_ = home->data();
  log_limit_ = home->size();
  table_ = std::move(table);
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
  seen_avail_ = seen;
  return waiting;
}

void SplitDevice::write16(uint16_t* to, uint16_t value) {
  store_relaxed16(to, value);
  if (log_ && is_logged(Written::kEvent)) mark_now(to, sizeof *to);
}

void SplitDevice::mark_used(uint32_t ahead, uint32_t n) {
  if (!is_logged(Written::kUsed)) return;
  uint32_t first = (used_idx_ + ahead) & mask_, to_end = std::min(n, size_ - first);
  mark_later(reinterpret_cast<uint8_t*>(&used_->ring[first]), 8ull * to_end);
  mark_later(reinterpret_cast<uint8_t*>(&used_->ring[0]), 8ull * (n - to_end));
}

void SplitDevice::publish(uint32_t n) {
  // Everything that the index makes visible is logged first, and what it does not is logged as well.
  if (log_) {
    mark_used(0, n);
    log_pending();
  }
  if (n == 0) return;
  used_idx_ = static_cast<uint16_t>(used_idx_ + n);
  // VIRTIO 1.3, 2.7.8.2: elements and buffers are visible before the index.
  store_release16(&used_->idx, used_idx_);
  if (log_ && is_logged(Written::kUsed))
    mark_later(reinterpret_cast<const uint8_t*>(&used_->idx), sizeof used_->idx);
}

bool SplitDevice::needs_signal() {
  uint16_t before = signalled_;
  if (signal_settled()) return false;
  bool valid = signal_valid_;
  signalled_ = used_idx_;
  signal_valid_ = true;
  // VIRTIO 1.3, 2.7.7.2: the index must be visible before the driver's wish is read.
  full_fence();
  log_fenced();
  if (!event_idx_) return !(load_relaxed16(&avail_->flags) & kAvailNoInterrupt);
  // The first time nobody knows what was signalled by whoever served the ring before.
  return !valid || need_event(load_relaxed16(used_event()), used_idx_, before);
}

void SplitDevice::write_suppression() {
  kicks_ = Kicks::kSuppressed;
  if (event_idx_) {
    // VIRTIO 1.3, 2.7.10.2: flags stay 0; an index that the driver has passed already is not reached for
    // long.
    event_ = static_cast<uint16_t>(next_avail_ - 1);
    write16(&used_->flags, 0);
    write16(avail_event(), event_);
  } else {
    event_ = next_avail_;
    write16(&used_->flags, kUsedNoNotify);
  }
}

uint16_t SplitDevice::request_kicks(uint16_t from) {
  kicks_ = Kicks::kWanted;
  if (event_idx_) write16(avail_event(), from);
  write16(&used_->flags, 0);
  // Either the driver sees the wish when it has published, or we see what it published.
  full_fence();
  return load_acquire16(&avail_->idx);
}

bool SplitDevice::fetch_indirect(uint64_t address, VirtqDesc* out) {
  if (uint8_t* at = cache_.translate(address, sizeof(VirtqDesc))) {
    *out = fetch_desc(at);
    return true;
  }
  // Tables need no alignment, so a descriptor may lie across two regions.
  uint8_t bytes[sizeof(VirtqDesc)];
  for (uint32_t i = 0; i < sizeof bytes; i++) {
    uint8_t* at = cache_.translate(address + i, 1);
    if (!at) return false;
    bytes[i] = *static_cast<volatile uint8_t*>(at);
  }
  *out = fetch_desc(bytes);
  return true;
}

}  // namespace vpci
