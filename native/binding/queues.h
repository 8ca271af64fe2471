// What the JavaScript objects of all port queues have in common: statistics, an end, and a way for workers to
// take any kind of them as an argument.
#pragma once

#include <napi.h>

#include <memory>

#include "../core/port.h"
#include "check.h"

namespace vpci::js {

class QueueHolder {
 public:
  virtual ~QueueHolder() = default;
  // Throws EBADF once it is closed.
  const std::shared_ptr<PortQueue>& queue() const {
    if (!queue_) throw_errno(env_, EBADF, "access to a closed queue");
    return queue_;
  }
  // Workers that have the queue, or are about to.
  uint32_t users = 0;

 protected:
  Napi::Value stats_object() const;
  void close_queue();

  std::shared_ptr<PortQueue> queue_;
  Napi::Env env_{nullptr};
};

// T is the class itself; `Core` what it holds.
template <typename T, typename Core>
class QueueObject : public Napi::ObjectWrap<T>, public QueueHolder {
 public:
  explicit QueueObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<T>(info) {
    tag<T>(info);
    env_ = info.Env();
  }
  std::shared_ptr<Core> core() const { return std::static_pointer_cast<Core>(queue()); }

 protected:
  using Property = Napi::ClassPropertyDescriptor<T>;
  static Napi::Function define_queue(Napi::Env env, std::vector<Property> more = {}) {
    more.push_back(T::InstanceMethod("stats", &T::stats));
    more.push_back(T::InstanceMethod("close", &T::close));
    return T::DefineClass(env, T::kName, more);
  }

 public:
  Napi::Value stats(const Napi::CallbackInfo&) { return stats_object(); }
  void close(const Napi::CallbackInfo&) { close_queue(); }
};

// Any kind of port queue.
QueueHolder* to_queue(const Napi::Value& value, const char* name);
// Registers how objects of class T are recognised.
using TryUnwrap = QueueHolder* (*)(const Napi::Value& value);
void add_queue_class(TryUnwrap try_unwrap_class);
template <typename T>
void register_queue(Napi::Env env, Napi::Object exports) {
  exports.Set(T::kName, T::define(env));
  add_queue_class([](const Napi::Value& value) -> QueueHolder* { return try_unwrap<T>(value); });
}

}  // namespace vpci::js
