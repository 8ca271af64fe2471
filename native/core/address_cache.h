// The last region that a ring's addresses were found in, so that translation is one range check in the common
// case. Belongs to one thread; the table outlives it.
#pragma once

#include <cstdint>

#include "region_table.h"

namespace vpci {

class AddressCache {
 public:
  // `write`: regions of read-only mappings count as absent.
  void init(const RegionTable* table, bool write) {
    table_ = table;
    write_ = write;
    size_ = 0;
  }

  // The pointer when all `length` bytes lie in one region, else nullptr.
  uint8_t* translate(uint64_t address, uint32_t length) {
    uint64_t at = address - base_;
    if (__builtin_expect(at < size_ && length <= size_ - at, 1)) return data_ + at;
    return find(address) && length <= size_ - (address - base_) ? data_ + (address - base_) : nullptr;
  }

  // Where `address` is and how far the memory goes on.
  RegionTable::Span span(uint64_t address) {
    if (address - base_ >= size_ && !find(address)) return {nullptr, 0};
    return {data_ + (address - base_), size_ - (address - base_)};
  }

 private:
  // Makes the region of `address` the cached one; keeps the old one when there is none.
  bool find(uint64_t address);

  const RegionTable* table_ = nullptr;
  uint64_t base_ = 0;
  uint64_t size_ = 0;
  uint8_t* data_ = nullptr;
  bool write_ = false;
};

}  // namespace vpci
