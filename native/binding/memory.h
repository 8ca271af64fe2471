// Mapping and RegionTable as JavaScript objects, for the parts of the binding that take them as arguments.
#pragma once

#include <napi.h>

#include <memory>

#include "../core/mapping.h"
#include "../core/region_table.h"
#include "check.h"

namespace vpci::js {

class MappingObject : public Napi::ObjectWrap<MappingObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d6d6170, 0x0000000000000002};
  static constexpr const char* kName = "Mapping";
  static Napi::Function define(Napi::Env env);

  explicit MappingObject(const Napi::CallbackInfo& info);
  // Throws EBADF once it is closed.
  const std::shared_ptr<Mapping>& mapping() const;

 private:
  Napi::Value size(const Napi::CallbackInfo& info);
  Napi::Value address(const Napi::CallbackInfo& info);
  Napi::Value faulted(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  void write(const Napi::CallbackInfo& info);
  Napi::Value load16(const Napi::CallbackInfo& info);
  Napi::Value load32(const Napi::CallbackInfo& info);
  void store32(const Napi::CallbackInfo& info);
  Napi::Value exchange32(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  // The checked place of an aligned word.
  template <typename Word>
  std::atomic<Word>* word(const Napi::CallbackInfo& info, bool write);
  void check_fault(const char* syscall) const;

  std::shared_ptr<Mapping> mapping_;
};

class RegionTableObject : public Napi::ObjectWrap<RegionTableObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d746162, 0x0000000000000003};
  static constexpr const char* kName = "RegionTable";
  static Napi::Function define(Napi::Env env);

  explicit RegionTableObject(const Napi::CallbackInfo& info);
  // Throws EBADF once it is closed.
  const std::shared_ptr<const RegionTable>& table() const;

 private:
  Napi::Value regions(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  void write(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  std::shared_ptr<const RegionTable> table_;
};

// The mapping of a `{ mapping, offset }` argument and the offset of `bytes` bytes in it, aligned to `align`.
struct Place {
  std::shared_ptr<Mapping> mapping;
  uint64_t offset;
};
Place to_place(Napi::Value mapping, Napi::Value offset, uint64_t bytes, uint64_t align, const char* name);

}  // namespace vpci::js
