// The parts of the device side that run once a burst.
#include "packed_device.h"

#include <bit>

namespace vpci {

bool PackedDevice::init(std::shared_ptr<const RegionTable> table, const Options& options, std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return false;
  };
  const RingAddresses& r = options.ring;
  if (!valid_packed_size(r.size)) return fail("ring size is not from 1 to 32768");
  if (offset_of(options.next_avail) >= r.size) return fail("ring position is outside the ring");
  Area desc = {r.desc, desc_bytes(r.size), kDescAlign, "descriptor ring"};
  Area driver = {r.driver, kEventBytes, kEventAlign, "driver event area"};
  Area device = {r.device, kEventBytes, kEventAlign, "device event area"};
  if (!place(std::move(table), options, {&desc, &driver, &device}, error)) return false;
  desc_ = reinterpret_cast<PackedDesc*>(desc.data);
  driver_event_ = reinterpret_cast<const uint32_t*>(driver.data);
  device_event_ = reinterpret_cast<uint32_t*>(device.data);
  written_ = options.writes_buffers ? kDescWrite : 0;
  chains_.resize(std::bit_ceil(r.size));
  mask_ = static_cast<uint16_t>(chains_.size() - 1);
  used_at_ = seen_avail_ = options.next_avail;
  return true;
}

uint32_t PackedDevice::look(uint32_t wanted) {
  if (cause_) return 0;
  uint32_t seen = known();
  if (seen != 0 && !valid_head(head(seen - 1))) return seen;
  // In registers: as far as the compiler knows, what is stored below may be any of the members.
  Chain* const chains = chains_.data();
  const PackedDesc* const desc = desc_;
  const uint32_t mask = mask_, size = size_;
  uint32_t outstanding = outstanding_;
  uint16_t end = end_;
  Position at = seen_avail_;
  // What was taken and not given back is not available again, whatever its flags say.
  while (seen < wanted && outstanding < size) {
    // VIRTIO 1.3, 2.8.6: the flags of the first descriptor are set last; everything of the chain follows.
    const PackedRest rest = rest_of(load_acquire64(rest_at(desc + offset_of(at))));
    if (!is_available(rest.flags, wrap_of(at))) break;
    Chain* c = chains + (end & mask);
    *c = {at, 1, rest.id, 0, 0};
    const bool sound = !(rest.flags & kDescNext) || measure(c, rest, size - outstanding);
    if (__builtin_expect(!sound, 0)) c->length = 0;
    end++;
    seen++;
    if (__builtin_expect(!sound, 0)) break;
    outstanding += c->length;
    at = position_after(at, c->length, size);
  }
  outstanding_ = outstanding;
  end_ = end;
  seen_avail_ = at;
  return seen;
}

// How long the chain is, and its id, which is in the last descriptor. False when it has no end in time.
bool PackedDevice::measure(Chain* chain, PackedRest rest, uint32_t room) const {
  while (rest.flags & kDescNext) {
    if (chain->length == room) return false;
    const uint32_t offset = offset_of(position_after(chain->at, chain->length, size_));
    rest = rest_of(load_once64(rest_at(desc_ + offset)));
    chain->length++;
  }
  chain->id = rest.id;
  return true;
}

void PackedDevice::write_used(const Chain& c) {
  auto flags_at = [](Position p) { return static_cast<uint16_t>(wrap_of(p) ? kDescAvail | kDescUsed : 0); };
  // The driver skips the chain's other descriptors (VIRTIO 1.3, 2.8.6). They are marked all the same: so the USED
  // bits alone tell where a device got to that ended without a word.
  for (uint32_t i = 1; i < c.length; i++) {
    const Position p = position_after(c.at, i, size_);
    store_relaxed16(&desc_[offset_of(p)].flags, flags_at(p));
  }
  const uint16_t written = c.used_length ? written_ : 0;
  // VIRTIO 1.3, 2.8.21: what was written to the buffer is visible before the flags are.
  store_release64(rest_at(desc_ + offset_of(c.at)),
                  rest_word(c.used_length, c.id, static_cast<uint16_t>(flags_at(c.at) | written)));
}

// `n` chains of which each is one descriptor and a request by itself: the usual case. False: something else came.
bool PackedDevice::write_used_singles(uint32_t n) {
  const Chain* const chains = chains_.data();
  PackedDesc* const desc = desc_;
  const uint32_t mask = mask_, first = used_;
  const uint16_t written = written_;
  uint16_t other = 0;
  for (uint32_t i = 0; i < n; i++) {
    const Chain& c = chains[(first + i) & mask];
    other |= static_cast<uint16_t>((c.length ^ 1) | c.joined);
  }
  if (other) return false;
  for (uint32_t i = 0; i < n; i++) {
    const Chain& c = chains[(first + i) & mask];
    const uint16_t flags = static_cast<uint16_t>((c.at >> 15) * (kDescAvail | kDescUsed));
    store_release64(rest_at(desc + offset_of(c.at)),
                    rest_word(c.used_length, c.id, static_cast<uint16_t>(flags | (c.used_length ? written : 0))));
  }
  return true;
}

// The `n` descriptors from used_at_ on were written.
void PackedDevice::log_used(uint32_t n) const {
  const uint32_t first = offset_of(used_at_), to_end = std::min(n, size_ - first);
  mark(Written::kUsed, desc_ + first, sizeof *desc_ * to_end);
  if (n > to_end) mark(Written::kUsed, desc_, sizeof *desc_ * (n - to_end));
}

template <bool kLog>
void PackedDevice::publish(uint32_t n) {
  if (n == 0) return;
  if (!write_used_singles(n)) {
    for (uint32_t i = 0; i < n;) {
      // VIRTIO 1.3, 2.8.9: the first of several buffers of a request becomes visible last.
      const uint32_t together = std::min(n - i, chain(used_ + i).joined + 1u);
      for (uint32_t k = together; k-- > 0;) write_used(chain(used_ + i + k));
      i += together;
    }
  }
  const Chain& last = chain(used_ + n - 1);
  const Position end = position_after(last.at, last.length, size_);
  used_ = static_cast<uint16_t>(used_ + n);
  // A whole lap when the ends meet: n is not 0.
  uint32_t moved = distance(used_at_, end, size_);
  if (kLog) log_used(moved);
  used_at_ = end;
  outstanding_ -= moved;
  unsignalled_ += moved;
}

template void PackedDevice::publish<false>(uint32_t);
template void PackedDevice::publish<true>(uint32_t);

bool PackedDevice::needs_signal() {
  if (signal_settled()) return false;
  const uint64_t moved = unsignalled_;
  unsignalled_ = 0;
  // The flags of what was used must be visible before the driver's wish is read.
  full_fence();
  // The first time nobody knows what was signalled by whoever served the ring before.
  const bool valid = signal_valid_;
  signal_valid_ = true;
  const uint32_t event = load_relaxed32(driver_event_);
  const uint16_t flags = event >> 16 & kEventFlags;
  if (flags == kEventDisable) return false;
  // The reserved value, and DESC where it cannot be, are taken for ENABLE: a signal too many does no harm.
  if (flags != kEventDesc || !event_idx_ || !valid) return true;
  const Position at = static_cast<Position>(event);
  if (offset_of(at) >= size_) return true;
  // Did the position pass `at`? It is back - 1 descriptors behind the last used one.
  const uint32_t back = distance(at, used_at_, size_);
  return moved >= 2ull * size_ || (back != 0 && back <= moved);
}

void PackedDevice::write_event(uint32_t word) {
  store_release32(device_event_, word);
  if (log_) mark(Written::kEvent, device_event_, sizeof word);
}

bool PackedDevice::request_kicks(Position from) {
  kicks_ = Kicks::kWanted;
  write_event(event_idx_ ? event_word(from, kEventDesc) : event_word(0, kEventEnable));
  // Either the driver sees the wish when it has published, or we see what it published.
  full_fence();
  const PackedRest rest = rest_of(load_acquire64(rest_at(desc_ + offset_of(from))));
  return !is_available(rest.flags, wrap_of(from));
}

}  // namespace vpci
