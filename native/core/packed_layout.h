// The packed virtqueue as it lies in memory (VIRTIO 1.3, 2.8): structs, flags, positions. Decides nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "split_layout.h"

namespace vpci {

// VIRTIO 1.3, 2.8.13. NEXT, WRITE and INDIRECT are the split ring's flags.
struct PackedDesc {
  uint64_t addr;
  uint32_t len;
  uint16_t id;
  uint16_t flags;
};
static_assert(sizeof(PackedDesc) == 16 && offsetof(PackedDesc, len) == 8 && offsetof(PackedDesc, flags) == 14);

enum : uint16_t { kDescAvail = 1 << 7, kDescUsed = 1 << 15 };

// VIRTIO 1.3, 2.8.14. Both halves change together, hence one word of 32 bits in memory.
struct PackedEvent {
  uint16_t off_wrap;
  uint16_t flags;
};
static_assert(sizeof(PackedEvent) == 4);
enum : uint16_t { kEventEnable = 0, kEventDisable = 1, kEventDesc = 2, kEventFlags = 3 };
constexpr uint32_t event_word(uint16_t off_wrap, uint16_t flags) {
  return off_wrap | static_cast<uint32_t>(flags) << 16;
}

constexpr uint64_t kEventBytes = sizeof(PackedEvent), kEventAlign = 4;
// VIRTIO 1.3, 2.8.10.1: no power of two is asked for.
constexpr bool valid_packed_size(uint32_t size) { return size >= 1 && size <= kMaxRingSize; }

// A place in the ring: bits 0-14 the offset, bit 15 the wrap counter there (as in vhost-user's ring base).
using Position = uint16_t;
constexpr Position kPositionWrap = 1 << 15;
constexpr uint32_t offset_of(Position p) { return p & 0x7fff; }
constexpr bool wrap_of(Position p) { return p & kPositionWrap; }
// `n` is at most the ring's size.
constexpr Position position_after(Position p, uint32_t n, uint32_t size) {
  uint32_t offset = offset_of(p) + n;
  bool wrap = wrap_of(p);
  if (offset >= size) {
    offset -= size;
    wrap = !wrap;
  }
  return static_cast<Position>(offset | (wrap ? kPositionWrap : 0));
}
// Descriptors from `from` on to `to`, of two laps.
constexpr uint32_t distance(Position from, Position to, uint32_t size) {
  uint32_t a = offset_of(from) + (wrap_of(from) ? 0 : size), b = offset_of(to) + (wrap_of(to) ? 0 : size);
  return b >= a ? b - a : b + 2 * size - a;
}

// VIRTIO 1.3, 2.8.1
constexpr bool is_available(uint16_t flags, bool wrap) {
  return static_cast<bool>(flags & kDescAvail) == wrap && static_cast<bool>(flags & kDescUsed) != wrap;
}
constexpr bool is_used(uint16_t flags, bool wrap) {
  return static_cast<bool>(flags & kDescAvail) == wrap && static_cast<bool>(flags & kDescUsed) == wrap;
}

// Length, id and flags lie in one aligned word: they are read and written together.
struct PackedRest {
  uint32_t len;
  uint16_t id;
  uint16_t flags;
};
inline PackedRest rest_of(uint64_t word) {
  return {static_cast<uint32_t>(word), static_cast<uint16_t>(word >> 32), static_cast<uint16_t>(word >> 48)};
}
constexpr uint64_t rest_word(uint32_t len, uint16_t id, uint16_t flags) {
  return len | static_cast<uint64_t>(id) << 32 | static_cast<uint64_t>(flags) << 48;
}
inline uint64_t* rest_at(PackedDesc* d) { return reinterpret_cast<uint64_t*>(&d->len); }
inline const uint64_t* rest_at(const PackedDesc* d) { return reinterpret_cast<const uint64_t*>(&d->len); }

inline uint64_t load_acquire64(const uint64_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void store_release64(uint64_t* p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
inline uint32_t load_relaxed32(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline void store_release32(uint32_t* p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

}  // namespace vpci
