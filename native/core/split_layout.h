// The split virtqueue as it lies in memory (VIRTIO 1.3, 2.7): structs, flags, sizes, and the few kinds of
// access that memory shared with another party allows. Decides nothing.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace vpci {

static_assert(std::endian::native == std::endian::little, "ring fields are little-endian and read in place");

// VIRTIO 1.3, 2.7.5
struct VirtqDesc {
  uint64_t addr;
  uint32_t len;
  uint16_t flags;
  uint16_t next;
};
static_assert(sizeof(VirtqDesc) == 16 && offsetof(VirtqDesc, flags) == 12);

enum : uint16_t { kDescNext = 1, kDescWrite = 2, kDescIndirect = 4 };

// VIRTIO 1.3, 2.7.6. Behind ring[size]: le16 used_event.
struct VirtqAvail {
  uint16_t flags;
  uint16_t idx;
  uint16_t ring[];
};
static_assert(sizeof(VirtqAvail) == 4);
constexpr uint16_t kAvailNoInterrupt = 1;

// VIRTIO 1.3, 2.7.8. The driver aligns the ring to 4 bytes, so an element may lie across two cache lines.
struct VirtqUsedElem {
  uint32_t id;
  uint32_t len;
};

// VIRTIO 1.3, 2.7.8. Behind ring[size]: le16 avail_event.
struct VirtqUsed {
  uint16_t flags;
  uint16_t idx;
  VirtqUsedElem ring[];
};
static_assert(sizeof(VirtqUsed) == 4);
constexpr uint16_t kUsedNoNotify = 1;

// VIRTIO 1.3, 2.7
constexpr uint32_t kMaxRingSize = 32768;
constexpr uint64_t desc_bytes(uint32_t size) { return 16ull * size; }
constexpr uint64_t avail_bytes(uint32_t size) { return 6 + 2ull * size; }
constexpr uint64_t used_bytes(uint32_t size) { return 6 + 8ull * size; }
constexpr uint64_t kDescAlign = 16, kAvailAlign = 2, kUsedAlign = 4;
constexpr bool valid_ring_size(uint32_t size) {
  return size >= 1 && size <= kMaxRingSize && std::has_single_bit(size);
}

// Where a ring is, in the address space of a region table.
struct RingAddresses {
  uint32_t size = 0;
  uint64_t desc = 0;
  uint64_t driver = 0;
  uint64_t device = 0;
};

// Feature bits that change what a ring means (VIRTIO 1.3, 6).
constexpr uint64_t kFeatureIndirect = 1ull << 28;
constexpr uint64_t kFeatureEventIdx = 1ull << 29;
constexpr uint64_t kFeatureVersion1 = 1ull << 32;
constexpr uint64_t kFeaturePacked = 1ull << 34;

// VIRTIO 1.3, 2.7.7.2 and 2.7.10: did the index pass `event` on its way from `before` to `now`?
constexpr bool need_event(uint16_t event, uint16_t now, uint16_t before) {
  return static_cast<uint16_t>(now - event - 1) < static_cast<uint16_t>(now - before);
}

// The event index of a side that is at `index` and wants to hear nothing: as far as can be from where the other side is,
// at most a ring's length ahead, and from where it was when it asked last. To be moved along after kEventLag chains.
constexpr uint16_t kEventLag = 0x2000;
constexpr uint16_t far_event(uint16_t index, uint32_t size) {
  return static_cast<uint16_t>(index + (0x10000 + size) / 2);
}

// One load that the compiler neither splits nor repeats, of any alignment: what the other side does to the
// word afterwards is not seen any more.
struct __attribute__((packed, may_alias)) Word64 {
  uint64_t v;
};
struct __attribute__((packed, may_alias)) Word32 {
  uint32_t v;
};
struct __attribute__((packed, may_alias)) Word16 {
  uint16_t v;
};
inline uint64_t load_once64(const void* p) { return static_cast<const volatile Word64*>(p)->v; }
inline uint32_t load_once32(const void* p) { return static_cast<const volatile Word32*>(p)->v; }
inline uint16_t load_once16(const void* p) { return static_cast<const volatile Word16*>(p)->v; }
inline void store64(void* p, uint64_t v) { static_cast<Word64*>(p)->v = v; }
inline void store32(void* p, uint32_t v) { static_cast<Word32*>(p)->v = v; }
inline void store16(void* p, uint16_t v) { static_cast<Word16*>(p)->v = v; }

inline VirtqDesc fetch_desc(const void* p) {
  uint64_t addr = load_once64(p);
  uint64_t rest = load_once64(static_cast<const uint8_t*>(p) + 8);
  return {addr, static_cast<uint32_t>(rest), static_cast<uint16_t>(rest >> 32),
          static_cast<uint16_t>(rest >> 48)};
}

inline uint16_t load_acquire16(const uint16_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline uint16_t load_relaxed16(const uint16_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline void store_release16(uint16_t* p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
inline void store_relaxed16(uint16_t* p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
inline void full_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // namespace vpci
