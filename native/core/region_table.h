// A foreign address space: an immutable, sorted list of regions, each a window onto a mapping. Translation is the
// only way from a foreign address to a pointer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mapping.h"

namespace vpci {

struct Region {
  uint64_t address;
  uint64_t size;
  std::shared_ptr<Mapping> mapping;
  uint64_t offset;  // of the region's first byte in the mapping
};

class RegionTable {
 public:
  // Returns nullptr and says why in `error`: regions that are empty, wrap, overlap or leave their mapping.
  static std::shared_ptr<const RegionTable> create(std::vector<Region> regions, std::string* error);

  struct Span {
    uint8_t* data;      // nullptr: the address is in no region
    uint64_t length;    // bytes from data to the end of the region
  };
  // Where `address` is, and how far the memory goes on. Never compares address + length: that may wrap.
  Span translate(uint64_t address) const;
  // The pointer when all `length` bytes lie in one region, else nullptr.
  uint8_t* translate(uint64_t address, uint64_t length) const;

  // The region that holds `address`, or nullptr.
  const Region* find(uint64_t address) const;

  const std::vector<Region>& regions() const { return regions_; }
  bool faulted() const;

 private:
  std::vector<Region> regions_;
  std::vector<const Mapping*> mappings_;  // each once
};

}  // namespace vpci
