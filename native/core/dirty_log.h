// The dirty log: one bit for each 4096 bytes of the peer's file, set after the page was written, so that whoever
// takes a bit and then reads the page finds what was written (decision D7). Knows no regions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>

#include "mapping.h"
#include "packet.h"

namespace vpci {

// The kinds of writes that have to be logged. A test build leaves one out (see native/test/Makefile), to show
// that the tests would notice; every other build has 0 here.
#ifndef VPCI_UNLOGGED
#define VPCI_UNLOGGED 0
#endif
enum class Written : int { kBuffer = 1, kUsed = 2, kEvent = 3 };
constexpr bool is_logged(Written kind) { return static_cast<int>(kind) != VPCI_UNLOGGED; }

// Of the eight pages of a byte of the log, the bits of those from the first to the last.
struct LogBits {
  uint8_t of[8][8] = {};
  constexpr LogBits() {
    for (unsigned first = 0; first < 8; first++)
      for (unsigned last = first; last < 8; last++) of[first][last] = static_cast<uint8_t>((2u << last) - (1u << first));
  }
};
inline constexpr LogBits kLogBits;

class DirtyLog {
 public:
  // How many threads set bits. Others may take bits away at any time.
  enum class Writers : uint8_t { kOne, kSeveral };

  // The bitmap is `bytes` bytes from `offset` of `mapping`. Returns nullptr and says why in `error`.
  static std::shared_ptr<const DirtyLog> create(std::shared_ptr<Mapping> mapping, uint64_t offset, uint64_t bytes,
                                                std::string* error, Writers writers = Writers::kSeveral) {
    const char* why = nullptr;
    if (!mapping)
      why = "dirty log has no mapping";
    else if (!mapping->writable())
      why = "dirty log mapping is read-only";
    else if (offset > mapping->size() || bytes > mapping->size() - offset)
      why = "dirty log leaves its mapping";
    else if (bytes == 0)
      why = "dirty log is empty";
    if (why) {
      if (error) *error = why;
      return nullptr;
    }
    return std::shared_ptr<const DirtyLog>(new DirtyLog(std::move(mapping), offset, bytes, writers));
  }

  static constexpr unsigned kPageShift = 12;
  // Bytes of memory that a byte of the log stands for.
  static constexpr uint64_t kByteOf = 8ull << kPageShift;
  // Two for each packet of a burst that is no longer than kByteOf, and those of one of kLongestPacket.
  static constexpr uint64_t kLongestPacket = (1 << 20) + 64;
  static constexpr uint32_t kWaiting = 2 * Burst::kMax + kLongestPacket / kByteOf + 2;

  // Bits that wait to be set, by the byte of the log that they are in: eight neighbouring pages share one. None is set
  // before store() while there are no more than kWaiting.
  class Waiting {
   public:
    explicit Waiting(const DirtyLog& log) : bits_(log.bits_), one_(log.writers_ == Writers::kOne) {}
    ~Waiting() { store(); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

    void add(uint64_t byte, uint32_t marks) {
      if (count_ == std::size(bytes_)) store();
      bytes_[count_++] = {static_cast<uint32_t>(byte), marks};
    }
    void store() {
      for (uint32_t i = 0; i < count_; i++) {
        uint8_t* const at = bits_ + bytes_[i].at;
        const uint8_t marks = static_cast<uint8_t>(bytes_[i].marks);
        // Stored whatever is there already: to leave out a bit that seems to be set would take a fence between the writes
        // and the look.
        if (one_)
          // A bit that somebody takes in between comes back, and none is missed: no locked operation is needed.
          __atomic_store_n(at, static_cast<uint8_t>(__atomic_load_n(at, __ATOMIC_RELAXED) | marks), __ATOMIC_RELEASE);
        else
          __atomic_fetch_or(at, marks, __ATOMIC_RELEASE);
      }
      count_ = 0;
    }

   private:
    struct Byte {
      uint32_t at;  // enough for 128 TiB
      uint32_t marks;
    };
    uint8_t* const bits_;
    const bool one_;
    uint32_t count_ = 0;
    Byte bytes_[kWaiting];
  };

  // Finds the bits of what is written. The peer's file begins at address `base`.
  class Batch {
   public:
    Batch(const DirtyLog& log, Waiting& waiting, uint64_t base = 0)
        : waiting_(waiting), pages_(log.pages_), base_(base), here_(base) {}
    ~Batch() { close(); }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    // Bytes [address, address + length), at least one. Pages behind the bitmap's end have no bit.
    void add(uint64_t address, uint64_t length) {
      const uint64_t first = address - here_, last = first + (length - 1);
      if (__builtin_expect((first | last) < kByteOf, 1))
        marks_ |= kLogBits.of[first >> kPageShift][last >> kPageShift];
      else
        add_across(address - base_, length);
    }

   private:
    void add_across(uint64_t offset, uint64_t length) {
      const uint64_t last = std::min((offset + (length - 1)) >> kPageShift, pages_ - 1);
      for (uint64_t page = offset >> kPageShift; page <= last; page++) {
        if (page / 8 != byte()) {
          close();
          here_ = base_ + page / 8 * kByteOf;
        }
        marks_ |= 1u << page % 8;
      }
    }
    void close() {
      if (marks_ != 0) waiting_.add(byte(), marks_);
      marks_ = 0;
    }
    uint64_t byte() const { return (here_ - base_) / kByteOf; }

    Waiting& waiting_;
    const uint64_t pages_;
    const uint64_t base_;
    uint64_t here_;       // where the pages of a byte begin
    uint32_t marks_ = 0;  // of them
  };

 private:
  DirtyLog(std::shared_ptr<Mapping> mapping, uint64_t offset, uint64_t bytes, Writers writers)
      : mapping_(std::move(mapping)), bits_(mapping_->data() + offset), pages_(bytes * 8), writers_(writers) {}

  const std::shared_ptr<Mapping> mapping_;
  uint8_t* const bits_;
  const uint64_t pages_;
  const Writers writers_;
};

// ORs 64 bits into `to`, the lowest at number `at`. Bits outside are dropped. Returns how many arrived.
inline uint64_t or_dirty_bits(uint8_t* to, uint64_t to_bytes, __int128 at, uint64_t bits) {
  // They land in one word or two neighbours: floor and remainder of a possibly negative number.
  const unsigned __int128 spread = static_cast<unsigned __int128>(bits) << static_cast<unsigned>(at & 63);
  uint64_t arrived = 0;
  for (unsigned k = 0; k < 2; k++) {
    uint64_t part = static_cast<uint64_t>(spread >> (64 * k));
    const __int128 byte = ((at >> 6) + k) * 8;
    if (part == 0 || byte < 0 || byte >= static_cast<__int128>(to_bytes)) continue;
    uint8_t* place = to + static_cast<uint64_t>(byte);
    const uint64_t left = std::min<uint64_t>(8, to_bytes - static_cast<uint64_t>(byte));
    if (left < 8) part &= (uint64_t{1} << (8 * left)) - 1;
    if (left == 8 && reinterpret_cast<uintptr_t>(place) % 8 == 0) {
      __atomic_fetch_or(reinterpret_cast<uint64_t*>(place), part, __ATOMIC_SEQ_CST);
    } else {
      for (uint64_t i = 0; i < left; i++) {
        const uint8_t some = static_cast<uint8_t>(part >> (8 * i));
        if (some) __atomic_fetch_or(place + i, some, __ATOMIC_SEQ_CST);
      }
    }
    arrived += static_cast<uint64_t>(__builtin_popcountll(part));
  }
  return arrived;
}

// Takes the set bits among `count` bits from number `first` of `from` (exchange with 0, whole words where it
// can) and ORs each into `to` at its number + shift. Bits that would land outside `to` are dropped. Returns
// the number of bits that arrived. Work is bounded by from_bytes.
inline uint64_t move_dirty_bits(uint8_t* from, uint64_t from_bytes, uint8_t* to, uint64_t to_bytes,
                                int64_t shift, uint64_t first = 0, uint64_t count = UINT64_MAX) {
  uint64_t end = from_bytes * 8;
  if (first >= end) return 0;
  if (count < end - first) end = first + count;
  const bool words = reinterpret_cast<uintptr_t>(from) % 8 == 0;
  uint64_t arrived = 0;
  for (uint64_t bit = first; bit < end;) {
    if (words && bit % 64 == 0 && end - bit >= 64) {
      uint64_t* word = reinterpret_cast<uint64_t*>(from + bit / 8);
      if (__atomic_load_n(word, __ATOMIC_RELAXED) != 0) {
        const uint64_t taken = __atomic_exchange_n(word, uint64_t{0}, __ATOMIC_SEQ_CST);
        arrived += or_dirty_bits(to, to_bytes, static_cast<__int128>(bit) + shift, taken);
      }
      bit += 64;
      continue;
    }
    // A byte, or the part of it that is asked for: its neighbours belong to somebody else.
    const unsigned low = bit % 8;
    const unsigned bits = static_cast<unsigned>(std::min<uint64_t>(8 - low, end - bit));
    const uint8_t mask = static_cast<uint8_t>(((1u << bits) - 1) << low);
    if (__atomic_load_n(from + bit / 8, __ATOMIC_RELAXED) & mask) {
      const uint8_t taken =
          __atomic_fetch_and(from + bit / 8, static_cast<uint8_t>(~mask), __ATOMIC_SEQ_CST) & mask;
      arrived += or_dirty_bits(to, to_bytes, static_cast<__int128>(bit - low) + shift, taken);
    }
    bit += bits;
  }
  return arrived;
}

}  // namespace vpci
