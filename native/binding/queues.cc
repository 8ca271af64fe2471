#include "queues.h"

#include <cerrno>
#include <mutex>

namespace vpci::js {
namespace {

constexpr const char* kDropNames[] = {"no-buffers", "too-short", "too-long", "bad-header",
                                      "offload",    "bad-chain", "disabled", "device-error"};
static_assert(std::size(kDropNames) == static_cast<size_t>(Drop::kCount));

Napi::Number number(Napi::Env env, const Counter& counter) {
  return Napi::Number::New(env, static_cast<double>(counter.get()));
}

Napi::Object ring_stats(Napi::Env env, const RingStats& stats, const char* broken) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("packets", number(env, stats.packets));
  out.Set("bytes", number(env, stats.bytes));
  Napi::Array bursts = Napi::Array::New(env, RingStats::kBurstClasses);
  for (uint32_t i = 0; i < RingStats::kBurstClasses; i++) bursts.Set(i, number(env, stats.bursts[i]));
  out.Set("bursts", bursts);
  Napi::Object drops = Napi::Object::New(env);
  for (size_t i = 0; i < std::size(kDropNames); i++) drops.Set(kDropNames[i], number(env, stats.drops[i]));
  out.Set("drops", drops);
  out.Set("notificationsSent", number(env, stats.notifications_sent));
  out.Set("notificationsSuppressed", number(env, stats.notifications_suppressed));
  out.Set("fill", number(env, stats.fill));
  out.Set("broken", broken ? Napi::Value(Napi::String::New(env, broken)) : env.Undefined());
  return out;
}

// The same for every environment of the process, so that it is filled once.
std::mutex classes_mutex;
std::vector<TryUnwrap>& classes() {
  static std::vector<TryUnwrap> list;
  return list;
}

}  // namespace

Napi::Value QueueHolder::stats_object() const {
  const PortQueue& of = *queue();
  Napi::Object out = Napi::Object::New(env_);
  out.Set("receive", ring_stats(env_, of.receive_stats, of.broken(false)));
  out.Set("send", ring_stats(env_, of.send_stats, of.broken(true)));
  return out;
}

void QueueHolder::close_queue() {
  if (!queue_) return;
  if (users > 0 || queue_->claimed()) throw_errno(env_, EBUSY, "close: a worker has the queue");
  queue_.reset();
}

void add_queue_class(TryUnwrap try_unwrap_class) {
  const std::lock_guard<std::mutex> lock(classes_mutex);
  for (const TryUnwrap known : classes()) {
    if (known == try_unwrap_class) return;
  }
  classes().push_back(try_unwrap_class);
}

QueueHolder* to_queue(const Napi::Value& value, const char* name) {
  {
    const std::lock_guard<std::mutex> lock(classes_mutex);
    for (const TryUnwrap try_class : classes()) {
      if (QueueHolder* holder = try_class(value)) return holder;
    }
  }
  throw_type(value.Env(), std::string(name) + " has to be a port queue");
}

}  // namespace vpci::js
