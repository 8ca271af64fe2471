#include "memory.h"

#include <atomic>
#include <cerrno>
#include <cstring>

#include "addon.h"

namespace vpci::js {
namespace {

constexpr uint32_t kMaxRegions = 4096;

void check_span(Napi::Env env, uint64_t offset, uint64_t length, uint64_t size) {
  if (offset <= size && length <= size - offset) return;
  throw_range(env, std::to_string(length) + " bytes at " + std::to_string(offset) +
                       " are not inside a mapping of " + std::to_string(size) + " bytes");
}

}  // namespace

Place to_place(Napi::Value mapping, Napi::Value offset, uint64_t bytes, uint64_t align, const char* name) {
  Place place;
  place.mapping = unwrap<MappingObject>(mapping, name)->mapping();
  place.offset = to_integer(offset, "offset");
  check_span(mapping.Env(), place.offset, bytes, place.mapping->size());
  if (place.offset % align != 0)
    throw_range(mapping.Env(), "offset has to be a multiple of " + std::to_string(align));
  return place;
}

// -- Mapping -----------------------------------------------------------------------------------------------

Napi::Function MappingObject::define(Napi::Env env) {
  return DefineClass(env, kName,
                     {
                         InstanceAccessor<&MappingObject::size>("size"),
                         InstanceAccessor<&MappingObject::address>("address"),
                         InstanceAccessor<&MappingObject::faulted>("faulted"),
                         InstanceMethod<&MappingObject::read>("read"),
                         InstanceMethod<&MappingObject::write>("write"),
                         InstanceMethod<&MappingObject::load16>("load16"),
                         InstanceMethod<&MappingObject::load32>("load32"),
                         InstanceMethod<&MappingObject::store32>("store32"),
                         InstanceMethod<&MappingObject::exchange32>("exchange32"),
                         InstanceMethod<&MappingObject::close>("close"),
                     });
}

MappingObject::MappingObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<MappingObject>(info) {
  tag<MappingObject>(info);
  const int fd = to_fd(info[0], "fd");
  const uint64_t offset = to_integer(info[1], "offset");
  const uint64_t size = to_integer(info[2], "size", kMaxSafe, 1);
  const bool writable = to_bool(info[3], "writable");
  mapping_ = Mapping::create(fd, offset, size, writable);
  if (!mapping_) throw_errno(info.Env(), errno, "mmap");
}

const std::shared_ptr<Mapping>& MappingObject::mapping() const {
  if (!mapping_) throw_errno(Env(), EBADF, "access to a closed mapping");
  return mapping_;
}

void MappingObject::check_fault(const char* syscall) const {
  if (mapping_->faulted()) throw_errno(Env(), EFAULT, syscall, "the mapped file has shrunk");
}

Napi::Value MappingObject::size(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(mapping()->size()));
}

Napi::Value MappingObject::address(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(reinterpret_cast<uintptr_t>(mapping()->data())));
}

Napi::Value MappingObject::faulted(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), mapping()->faulted());
}

Napi::Value MappingObject::read(const Napi::CallbackInfo& info) {
  const auto& mapping = this->mapping();
  const uint64_t offset = to_integer(info[0], "offset");
  const uint64_t length = to_integer(info[1], "length");
  check_span(info.Env(), offset, length, mapping->size());
  Napi::Buffer<uint8_t> copy = Napi::Buffer<uint8_t>::New(info.Env(), length);
  if (length > 0) memcpy(copy.Data(), mapping->data() + offset, length);
  check_fault("read");
  return copy;
}

void MappingObject::write(const Napi::CallbackInfo& info) {
  const auto& mapping = this->mapping();
  const uint64_t offset = to_integer(info[0], "offset");
  const Bytes data = to_bytes(info[1], "data");
  check_span(info.Env(), offset, data.size, mapping->size());
  if (!mapping->writable()) throw_errno(info.Env(), EACCES, "write");
  if (data.size > 0) memcpy(mapping->data() + offset, data.data, data.size);
  check_fault("write");
}

template <typename Word>
std::atomic<Word>* MappingObject::word(const Napi::CallbackInfo& info, bool write) {
  const auto& mapping = this->mapping();
  const uint64_t offset = to_integer(info[0], "offset");
  check_span(info.Env(), offset, sizeof(Word), mapping->size());
  if (offset % sizeof(Word) != 0) {
    throw_range(info.Env(), "offset has to be a multiple of " + std::to_string(sizeof(Word)));
  }
  if (write && !mapping->writable()) throw_errno(info.Env(), EACCES, "write");
  static_assert(sizeof(std::atomic<Word>) == sizeof(Word) && std::atomic<Word>::is_always_lock_free);
  return reinterpret_cast<std::atomic<Word>*>(mapping->data() + offset);
}

Napi::Value MappingObject::load16(const Napi::CallbackInfo& info) {
  const uint16_t value = word<uint16_t>(info, false)->load(std::memory_order_acquire);
  check_fault("read");
  return Napi::Number::New(info.Env(), value);
}

Napi::Value MappingObject::load32(const Napi::CallbackInfo& info) {
  const uint32_t value = word<uint32_t>(info, false)->load(std::memory_order_acquire);
  check_fault("read");
  return Napi::Number::New(info.Env(), value);
}

void MappingObject::store32(const Napi::CallbackInfo& info) {
  auto* place = word<uint32_t>(info, true);
  place->store(static_cast<uint32_t>(to_integer(info[1], "value", 0xffffffff)), std::memory_order_release);
  check_fault("write");
}

Napi::Value MappingObject::exchange32(const Napi::CallbackInfo& info) {
  auto* place = word<uint32_t>(info, true);
  const uint32_t value = place->exchange(static_cast<uint32_t>(to_integer(info[1], "value", 0xffffffff)),
                                         std::memory_order_acq_rel);
  check_fault("write");
  return Napi::Number::New(info.Env(), value);
}

void MappingObject::close(const Napi::CallbackInfo&) { mapping_.reset(); }

// -- RegionTable -------------------------------------------------------------------------------------------

Napi::Function RegionTableObject::define(Napi::Env env) {
  return DefineClass(env, kName,
                     {
                         InstanceAccessor<&RegionTableObject::regions>("regions"),
                         InstanceMethod<&RegionTableObject::read>("read"),
                         InstanceMethod<&RegionTableObject::write>("write"),
                         InstanceMethod<&RegionTableObject::close>("close"),
                     });
}

RegionTableObject::RegionTableObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<RegionTableObject>(info) {
  tag<RegionTableObject>(info);
  const Napi::Array list = to_array(info[0], "regions", kMaxRegions);
  std::vector<Region> regions;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const Napi::Object entry = to_object(list.Get(i), "regions[]");
    Region region;
    region.address = to_u64(entry.Get("address"), "address");
    region.size = to_integer(entry.Get("size"), "size");
    region.mapping = unwrap<MappingObject>(entry.Get("mapping"), "mapping")->mapping();
    region.offset = to_integer(entry.Get("offset"), "offset");
    regions.push_back(std::move(region));
  }
  std::string error;
  table_ = RegionTable::create(std::move(regions), &error);
  if (!table_) throw_range(info.Env(), error);
}

const std::shared_ptr<const RegionTable>& RegionTableObject::table() const {
  if (!table_) throw_errno(Env(), EBADF, "access to a closed region table");
  return table_;
}

void RegionTableObject::close(const Napi::CallbackInfo&) { table_.reset(); }

Napi::Value RegionTableObject::regions(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(table()->regions().size()));
}

namespace {

// Calls `copy(data, at, n)` for the parts of [address, address + length); regions may meet without a gap.
// False when some byte is in no region. Each step passes one region, so that it ends.
template <typename Copy>
bool walk(const RegionTable& table, uint64_t address, uint64_t length, Copy copy) {
  uint64_t at = 0;
  while (at < length) {
    if (address + at < address) return false;
    const RegionTable::Span span = table.translate(address + at);
    if (!span.data || span.length == 0) return false;
    const uint64_t n = span.length < length - at ? span.length : length - at;
    copy(span.data, at, n);
    at += n;
  }
  return true;
}

bool may_write(const RegionTable& table, const uint8_t* data) {
  for (const Region& region : table.regions()) {
    const uint8_t* first = region.mapping->data();
    if (data >= first && data < first + region.mapping->size()) return region.mapping->writable();
  }
  return false;
}

std::string place_text(uint64_t address, uint64_t length) {
  char text[80];
  snprintf(text, sizeof text, "%llu bytes at address 0x%llx", static_cast<unsigned long long>(length),
           static_cast<unsigned long long>(address));
  return text;
}

}  // namespace

Napi::Value RegionTableObject::read(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const RegionTable& table = *this->table();
  const uint64_t address = to_u64(info[0], "address");
  const uint64_t length = to_integer(info[1], "length");
  // Looked at before a byte is allocated: the length may come from a peer.
  if (!walk(table, address, length, [](uint8_t*, uint64_t, uint64_t) {})) {
    throw_errno(env, EFAULT, "read", place_text(address, length));
  }
  Napi::Buffer<uint8_t> copy = Napi::Buffer<uint8_t>::New(env, length);
  uint8_t* into = copy.Data();
  walk(table, address, length,
       [into](uint8_t* data, uint64_t at, uint64_t n) { memcpy(into + at, data, n); });
  if (table.faulted()) throw_errno(env, EFAULT, "read", "the mapped file has shrunk");
  return copy;
}

void RegionTableObject::write(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const RegionTable& table = *this->table();
  const uint64_t address = to_u64(info[0], "address");
  const Bytes from = to_bytes(info[1], "data");
  bool writable = true;
  const bool inside = walk(table, address, from.size, [&](uint8_t* data, uint64_t, uint64_t) {
    if (!may_write(table, data)) writable = false;
  });
  if (!inside) throw_errno(env, EFAULT, "write", place_text(address, from.size));
  if (!writable) throw_errno(env, EACCES, "write", place_text(address, from.size));
  walk(table, address, from.size,
       [from](uint8_t* data, uint64_t at, uint64_t n) { memcpy(data, from.data + at, n); });
  if (table.faulted()) throw_errno(env, EFAULT, "write", "the mapped file has shrunk");
}

void init_memory(Napi::Env env, Napi::Object exports) {
  exports.Set(MappingObject::kName, MappingObject::define(env));
  exports.Set(RegionTableObject::kName, RegionTableObject::define(env));
  exports.Set("mappingCount", Napi::Function::New(
                                  env,
                                  [](const Napi::CallbackInfo& info) -> Napi::Value {
                                    return Napi::Number::New(info.Env(),
                                                             static_cast<double>(Mapping::live_count()));
                                  },
                                  "mappingCount"));
}

}  // namespace vpci::js
