// Control queues: both sides, one chain at a time, on the calling thread.
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "../core/control_queue.h"
#include "addon.h"
#include "check.h"
#include "memory.h"
#include "rings.h"

namespace vpci::js {
namespace {

[[noreturn]] void throw_broken(Napi::Env env, const char* cause) {
  throw_code(env, "EBADRING", cause ? cause : "the ring was given up");
}

class ControlDeviceObject : public Napi::ObjectWrap<ControlDeviceObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d636465, 0x0000000000000004};
  static constexpr const char* kName = "ControlDeviceQueue";

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, kName,
                       {
                           InstanceMethod<&ControlDeviceObject::pop>("pop"),
                           InstanceMethod<&ControlDeviceObject::push>("push"),
                           InstanceMethod<&ControlDeviceObject::needs_interrupt>("needsInterrupt"),
                           InstanceMethod<&ControlDeviceObject::set_table>("setTable"),
                           InstanceMethod<&ControlDeviceObject::close>("close"),
                       });
  }

  explicit ControlDeviceObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ControlDeviceObject>(info) {
    tag<ControlDeviceObject>(info);
    const auto& table = unwrap<RegionTableObject>(info[0], "table")->table();
    const RingAddresses ring = to_ring(to_object(info[1], "ring"));
    const uint64_t limit =
        absent(info[2]) ? ControlDevice::kDefaultLimit : to_integer(info[2], "limit", 1 << 30, 1);
    std::string error;
    queue_ = ControlDevice::create(table, ring, static_cast<uint32_t>(limit), &error);
    if (!queue_) throw_range(info.Env(), error);
  }

 private:
  Napi::Value pop(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    uint16_t head = 0;
    uint32_t writable = 0;
    switch (open().pop(&head, &data_, &writable)) {
      case ControlDevice::Pop::kNone:
        return env.Undefined();
      case ControlDevice::Pop::kBroken:
        throw_broken(env, open().broken());
      case ControlDevice::Pop::kChain:
        break;
    }
    Napi::Object chain = Napi::Object::New(env);
    chain.Set("head", Napi::Number::New(env, head));
    chain.Set("readable", Napi::Buffer<uint8_t>::Copy(env, data_.data(), data_.size()));
    chain.Set("writable", Napi::Number::New(env, writable));
    return chain;
  }

  void push(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const uint16_t head = static_cast<uint16_t>(to_integer(info[0], "head", 65535));
    const Bytes data = absent(info[1]) ? Bytes{nullptr, 0} : to_bytes(info[1], "data");
    switch (open().push(head, data.data, data.size)) {
      case ControlDevice::Push::kDone:
        return;
      case ControlDevice::Push::kNotPopped:
        throw_range(env, "chain " + std::to_string(head) + " is not popped");
      case ControlDevice::Push::kTooLong:
        throw_range(env, std::to_string(data.size) + " bytes do not fit the writable part of chain " +
                             std::to_string(head));
      case ControlDevice::Push::kBroken:
        throw_broken(env, open().broken());
    }
  }

  Napi::Value needs_interrupt(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), open().needs_interrupt());
  }

  void set_table(const Napi::CallbackInfo& info) {
    const auto& table = unwrap<RegionTableObject>(info[0], "table")->table();
    std::string error;
    if (!open().set_table(table, &error)) throw_broken(info.Env(), error.c_str());
  }

  void close(const Napi::CallbackInfo&) { queue_.reset(); }

  ControlDevice& open() {
    if (!queue_) throw_errno(Env(), EBADF, "access to a closed queue");
    return *queue_;
  }

  std::unique_ptr<ControlDevice> queue_;
  std::vector<uint8_t> data_;
};

class ControlDriverObject : public Napi::ObjectWrap<ControlDriverObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d636472, 0x0000000000000005};
  static constexpr const char* kName = "ControlDriverQueue";

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, kName,
                       {
                           StaticMethod<&ControlDriverObject::bytes>("bytes"),
                           InstanceAccessor<&ControlDriverObject::addresses>("addresses"),
                           InstanceMethod<&ControlDriverObject::add_readable>("addReadable"),
                           InstanceMethod<&ControlDriverObject::add_writable>("addWritable"),
                           InstanceMethod<&ControlDriverObject::harvest>("harvest"),
                           InstanceMethod<&ControlDriverObject::needs_notify>("needsNotify"),
                           InstanceMethod<&ControlDriverObject::close>("close"),
                       });
  }

  explicit ControlDriverObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ControlDriverObject>(info) {
    tag<ControlDriverObject>(info);
    const auto mapping = unwrap<MappingObject>(info[0], "mapping")->mapping();
    const uint64_t offset = to_integer(info[1], "offset");
    const uint64_t address = to_u64(info[2], "address");
    const auto size = static_cast<uint32_t>(to_integer(info[3], "size", kMaxRingSize, 1));
    const auto buffer_bytes = static_cast<uint32_t>(to_integer(info[4], "bufferBytes", kMaxBufferBytes, 1));
    std::string error;
    queue_ = ControlDriver::create(mapping, offset, address, size, buffer_bytes, &error);
    if (!queue_) throw_range(info.Env(), error);
  }

 private:
  static Napi::Value bytes(const Napi::CallbackInfo& info) {
    const auto size = static_cast<uint32_t>(to_integer(info[0], "size", kMaxRingSize, 1));
    const auto buffer_bytes = static_cast<uint32_t>(to_integer(info[1], "bufferBytes", kMaxBufferBytes, 1));
    const uint64_t bytes = ControlDriver::bytes(size, buffer_bytes);
    if (bytes == 0) throw_range(info.Env(), "size has to be a power of two");
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  }

  Napi::Value addresses(const Napi::CallbackInfo& info) { return from_ring(info.Env(), open().addresses()); }

  Napi::Value add_readable(const Napi::CallbackInfo& info) {
    const Bytes data = to_bytes(info[0], "data");
    return added(info.Env(), open().add_readable(data.data, data.size));
  }

  Napi::Value add_writable(const Napi::CallbackInfo& info) {
    return added(info.Env(), open().add_writable());
  }

  Napi::Value added(Napi::Env env, ControlDriver::Add result) {
    if (result == ControlDriver::Add::kBroken) throw_broken(env, open().broken());
    if (result == ControlDriver::Add::kTooLong) {
      throw_range(env, "data has to have 1 to " + std::to_string(open().buffer_bytes()) + " bytes");
    }
    return Napi::Boolean::New(env, result == ControlDriver::Add::kDone);
  }

  Napi::Value harvest(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const ControlDriver::Harvest result = open().harvest(&data_);
    if (result == ControlDriver::Harvest::kBroken) throw_broken(env, open().broken());
    if (result == ControlDriver::Harvest::kNone) return env.Undefined();
    return Napi::Buffer<uint8_t>::Copy(env, data_.data(), data_.size());
  }

  Napi::Value needs_notify(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), open().needs_notify());
  }

  void close(const Napi::CallbackInfo&) { queue_.reset(); }

  ControlDriver& open() {
    if (!queue_) throw_errno(Env(), EBADF, "access to a closed queue");
    return *queue_;
  }

  std::unique_ptr<ControlDriver> queue_;
  std::vector<uint8_t> data_;
};

}  // namespace

void init_control(Napi::Env env, Napi::Object exports) {
  exports.Set(ControlDeviceObject::kName, ControlDeviceObject::define(env));
  exports.Set(ControlDriverObject::kName, ControlDriverObject::define(env));
}

}  // namespace vpci::js
