// Checks regions once, when the table is made, so that translation can rely on them.
#include "region_table.h"

#include <algorithm>

#include "address_cache.h"

namespace vpci {

std::shared_ptr<const RegionTable> RegionTable::create(std::vector<Region> regions, std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return nullptr;
  };
  for (const Region& r : regions) {
    if (!r.mapping) return fail("region has no mapping");
    if (r.size == 0) return fail("region is empty");
    if (r.size - 1 > UINT64_MAX - r.address) return fail("region wraps around the end of the address space");
    if (r.offset > r.mapping->size() || r.size > r.mapping->size() - r.offset)
      return fail("region leaves its mapping");
  }
  std::sort(regions.begin(), regions.end(),
            [](const Region& a, const Region& b) { return a.address < b.address; });
  for (size_t i = 1; i < regions.size(); i++)
    if (regions[i].address - regions[i - 1].address < regions[i - 1].size) return fail("regions overlap");

  auto table = std::make_shared<RegionTable>();
  table->regions_ = std::move(regions);
  for (const Region& r : table->regions_) {
    auto& known = table->mappings_;
    if (std::find(known.begin(), known.end(), r.mapping.get()) == known.end())
      known.push_back(r.mapping.get());
  }
  return table;
}

const Region* RegionTable::find(uint64_t address) const {
  auto next = std::upper_bound(regions_.begin(), regions_.end(), address,
                               [](uint64_t at, const Region& r) { return at < r.address; });
  if (next == regions_.begin()) return nullptr;
  const Region& r = *(next - 1);
  return address - r.address < r.size ? &r : nullptr;
}

RegionTable::Span RegionTable::translate(uint64_t address) const {
  const Region* r = find(address);
  if (!r) return {nullptr, 0};
  uint64_t at = address - r->address;
  return {r->mapping->data() + r->offset + at, r->size - at};
}

uint8_t* RegionTable::translate(uint64_t address, uint64_t length) const {
  Span s = translate(address);
  return s.data && length <= s.length ? s.data : nullptr;
}

bool RegionTable::faulted() const {
  for (const Mapping* m : mappings_)
    if (m->faulted()) return true;
  return false;
}

bool AddressCache::find(uint64_t address) {
  const Region* r = table_->find(address);
  if (!r || (write_ && !r->mapping->writable())) return false;
  base_ = r->address;
  size_ = r->size;
  data_ = r->mapping->data() + r->offset;
  return true;
}

}  // namespace vpci
