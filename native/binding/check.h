// Arguments that come from JavaScript: type and range are checked here, before anything else sees them. Every
// function throws (TypeError, RangeError, or an Error with `code` and `syscall` as node:fs throws them).
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

namespace vpci::js {

constexpr uint64_t kMaxSafe = (uint64_t{1} << 53) - 1;

[[noreturn]] void throw_type(Napi::Env env, const std::string& message);
[[noreturn]] void throw_range(Napi::Env env, const std::string& message);
// `what` names the object of the call (a path), or is empty.
[[noreturn]] void throw_errno(Napi::Env env, int number, const char* syscall, const std::string& what = "");
// The same error as a value, for promises.
Napi::Error errno_error(Napi::Env env, int number, const char* syscall, const std::string& what = "");
// An Error with a code of ours.
[[noreturn]] void throw_code(Napi::Env env, const char* code, const std::string& message);

uint64_t to_integer(Napi::Value value, const char* name, uint64_t max = kMaxSafe, uint64_t min = 0);
uint64_t to_u64(Napi::Value value, const char* name);  // bigint
int to_fd(Napi::Value value, const char* name);
bool to_bool(Napi::Value value, const char* name);
std::string to_text(Napi::Value value, const char* name);
Napi::Object to_object(Napi::Value value, const char* name);
Napi::Array to_array(Napi::Value value, const char* name, uint32_t max);
Napi::Function to_function(Napi::Value value, const char* name);

// Valid until JavaScript runs again.
struct Bytes {
  const uint8_t* data;
  size_t size;
};
Bytes to_bytes(Napi::Value value, const char* name);

inline bool absent(const Napi::Value& value) { return value.IsUndefined() || value.IsNull(); }

// -- classes
// ------------------------------------------------------------------------------------------------- Each
// class has its own tag, so that an object of another class is a TypeError and not a wild pointer. T has
// `static constexpr napi_type_tag kTag` and `static constexpr const char* kName`.
template <typename T>
void tag(const Napi::CallbackInfo& info) {
  info.This().As<Napi::Object>().TypeTag(&T::kTag);
}

template <typename T>
T* try_unwrap(const Napi::Value& value) {
  if (!value.IsObject()) return nullptr;
  Napi::Object object = value.As<Napi::Object>();
  if (!object.CheckTypeTag(&T::kTag)) return nullptr;
  return T::Unwrap(object);
}

template <typename T>
T* unwrap(const Napi::Value& value, const char* name) {
  T* object = try_unwrap<T>(value);
  if (!object) throw_type(value.Env(), std::string(name) + " has to be a " + T::kName);
  return object;
}

}  // namespace vpci::js
