#include "check.h"

#include <uv.h>

#include <cmath>
#include <cstring>

namespace vpci::js {

void throw_type(Napi::Env env, const std::string& message) { throw Napi::TypeError::New(env, message); }

void throw_range(Napi::Env env, const std::string& message) { throw Napi::RangeError::New(env, message); }

Napi::Error errno_error(Napi::Env env, int number, const char* syscall, const std::string& what) {
  const char* code = uv_err_name(-number);
  std::string message = std::string(code) + ": " + strerror(number) + ", " + syscall;
  if (!what.empty()) message += " '" + what + "'";
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  error.Set("errno", Napi::Number::New(env, -number));
  error.Set("syscall", Napi::String::New(env, syscall));
  return error;
}

void throw_errno(Napi::Env env, int number, const char* syscall, const std::string& what) {
  throw errno_error(env, number, syscall, what);
}

void throw_code(Napi::Env env, const char* code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  throw error;
}

uint64_t to_integer(Napi::Value value, const char* name, uint64_t max, uint64_t min) {
  if (!value.IsNumber()) throw_type(value.Env(), std::string(name) + " has to be a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= static_cast<double>(min)) || number > static_cast<double>(max) ||
      std::floor(number) != number) {
    throw_range(value.Env(), std::string(name) + " has to be an integer from " + std::to_string(min) +
                                 " to " + std::to_string(max));
  }
  return static_cast<uint64_t>(number);
}

uint64_t to_u64(Napi::Value value, const char* name) {
  if (!value.IsBigInt()) throw_type(value.Env(), std::string(name) + " has to be a bigint");
  bool lossless = false;
  const uint64_t number = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throw_range(value.Env(), std::string(name) + " has to fit 64 unsigned bits");
  return number;
}

int to_fd(Napi::Value value, const char* name) {
  return static_cast<int>(to_integer(value, name, 0x7fffffff));
}

bool to_bool(Napi::Value value, const char* name) {
  if (!value.IsBoolean()) throw_type(value.Env(), std::string(name) + " has to be a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::string to_text(Napi::Value value, const char* name) {
  if (!value.IsString()) throw_type(value.Env(), std::string(name) + " has to be a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (text.find('\0') != std::string::npos) throw_range(value.Env(), std::string(name) + " has a NUL in it");
  return text;
}

Napi::Object to_object(Napi::Value value, const char* name) {
  if (!value.IsObject()) throw_type(value.Env(), std::string(name) + " has to be an object");
  return value.As<Napi::Object>();
}

Napi::Array to_array(Napi::Value value, const char* name, uint32_t max) {
  if (!value.IsArray()) throw_type(value.Env(), std::string(name) + " has to be an array");
  Napi::Array array = value.As<Napi::Array>();
  if (array.Length() > max) {
    throw_range(value.Env(), std::string(name) + " has more than " + std::to_string(max) + " elements");
  }
  return array;
}

Napi::Function to_function(Napi::Value value, const char* name) {
  if (!value.IsFunction()) throw_type(value.Env(), std::string(name) + " has to be a function");
  return value.As<Napi::Function>();
}

Bytes to_bytes(Napi::Value value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw_type(value.Env(), std::string(name) + " has to be a Uint8Array");
  }
  Napi::Uint8Array array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

}  // namespace vpci::js
