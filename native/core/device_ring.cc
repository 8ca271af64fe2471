// The parts that do not run for every packet.
#include "device_ring.h"

namespace vpci {

uint8_t* DeviceRing::find(const RegionTable& table, const Area& area, std::string* error) {
  const char* why = nullptr;
  uint8_t* data = table.translate(area.address, area.bytes);
  if (area.address % area.align)
    why = " is unaligned";
  else if (!data)
    why = " is not inside one region";
  // Regions may start anywhere in their mapping; atomic accesses need the alignment here too.
  else if (reinterpret_cast<uintptr_t>(data) % area.align)
    why = " is unaligned in its mapping";
  else if (!table.find(area.address)->mapping->writable())
    why = " is in a read-only mapping";
  if (!why) return data;
  if (error) *error = std::string(area.name) + why;
  return nullptr;
}

bool DeviceRing::place(std::shared_ptr<const RegionTable> table, const Options& options,
                       std::initializer_list<Area*> areas, std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return false;
  };
  if (!table) return fail("ring has no region table");
  const Mapping* home = nullptr;
  bool one_home = true;
  for (Area* area : areas) {
    area->data = find(*table, *area, error);
    if (!area->data) return false;
    const Mapping* mapping = table->find(area->address)->mapping.get();
    one_home = one_home && (!home || mapping == home);
    home = mapping;
  }
  // Compared here and not as addresses: two regions may show the same bytes.
  for (const Area* a : areas)
    for (const Area* b : areas)
      if (a != b && a->data < b->data + b->bytes && b->data < a->data + a->bytes)
        return fail("ring areas overlap");
  // The peer's memory is one file (decision D5), and the dirty log counts in that file.
  if (!one_home) return fail("ring areas are in different mappings");

  size_ = options.ring.size;
  event_idx_ = options.features & kFeatureEventIdx;
  indirect_ = options.features & kFeatureIndirect;
  cache_.init(table.get(), options.writes_buffers);
  log_base_ = reinterpret_cast<uintptr_t>(home->data());
  table_ = std::move(table);
  return true;
}

uint32_t DeviceRing::indirect_entries(const VirtqDesc& d) {
  auto fail = [this](const char* why) -> uint32_t {
    cause_ = why;
    return 0;
  };
  // VIRTIO 1.3, 2.7.5.3 and 2.8.19
  if (!indirect_) return fail("indirect descriptor without the feature");
  if (d.flags & kDescNext) return fail("indirect descriptor with NEXT");
  if (d.len == 0 || d.len % sizeof(VirtqDesc))
    return fail("indirect table is empty or not a multiple of 16");
  uint32_t entries = d.len / sizeof(VirtqDesc);
  if (entries > kMaxRingSize) return fail("indirect table is too big");
  if (d.len - 1 > UINT64_MAX - d.addr)
    return fail("indirect table wraps around the end of the address space");
  return entries;
}

bool DeviceRing::fetch_indirect(uint64_t address, VirtqDesc* out) {
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
