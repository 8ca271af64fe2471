// Port queues without a peer: source, sink and TAP.
#include <cerrno>
#include <cstring>

#include "../core/sink_queue.h"
#include "../core/source_queue.h"
#include "../core/tap_queue.h"
#include "../core/test_frame.h"
#include "addon.h"
#include "queues.h"

namespace vpci::js {
namespace {

void to_mac(const Napi::Value& value, const char* name, uint8_t* mac) {
  const Bytes bytes = to_bytes(value, name);
  if (bytes.size != 6) throw_range(value.Env(), std::string(name) + " has to have 6 bytes");
  memcpy(mac, bytes.data, 6);
}

class SourceQueueObject : public QueueObject<SourceQueueObject, SourceQueue> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d737263, 0x0000000000000008};
  static constexpr const char* kName = "SourceQueue";
  static Napi::Function define(Napi::Env env) { return define_queue(env); }

  explicit SourceQueueObject(const Napi::CallbackInfo& info) : QueueObject(info) {
    const Napi::Object given = to_object(info[0], "options");
    SourceQueue::Options options;
    const Napi::Value stream = given.Get("stream");
    if (!absent(stream)) {
      options.has_stream = true;
      options.stream = static_cast<uint32_t>(to_integer(stream, "stream", 0xffffffff));
    }
    const uint32_t least = options.has_stream ? test_frame::kMinBytes : test_frame::kEthernetBytes;
    options.bytes = static_cast<uint32_t>(to_integer(given.Get("bytes"), "bytes", 65535, least));
    to_mac(given.Get("destination"), "destination", options.destination);
    to_mac(given.Get("source"), "source", options.source);
    const Napi::Value count = given.Get("count");
    if (!absent(count)) options.count = to_integer(count, "count", kMaxSafe, 1);
    queue_ = SourceQueue::create(options);
  }
};

class SinkQueueObject : public QueueObject<SinkQueueObject, SinkQueue> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d736e6b, 0x0000000000000009};
  static constexpr const char* kName = "SinkQueue";
  static Napi::Function define(Napi::Env env) {
    return define_queue(env, {InstanceMethod<&SinkQueueObject::verified>("verified")});
  }

  explicit SinkQueueObject(const Napi::CallbackInfo& info) : QueueObject(info) {
    SinkQueue::Options options;
    if (!absent(info[0])) {
      const Napi::Value stream = to_object(info[0], "options").Get("stream");
      if (!absent(stream)) {
        options.has_stream = true;
        options.stream = static_cast<uint32_t>(to_integer(stream, "stream", 0xffffffff));
      }
    }
    queue_ = std::make_shared<SinkQueue>(options);
  }

 private:
  Napi::Value verified(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const auto queue = core();
    const SinkQueue::Verified& found = queue->verified;
    Napi::Object out = Napi::Object::New(env);
    const auto set = [&](const char* name, const Counter& counter) {
      out.Set(name, Napi::Number::New(env, static_cast<double>(counter.get())));
    };
    set("packets", found.packets);
    set("lost", found.lost);
    set("reordered", found.reordered);
    set("altered", found.altered);
    set("foreign", found.foreign);
    return out;
  }
};

class TapQueueObject : public QueueObject<TapQueueObject, TapQueue> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d746170, 0x000000000000000d};
  static constexpr const char* kName = "TapQueue";
  static Napi::Function define(Napi::Env env) { return define_queue(env); }

  explicit TapQueueObject(const Napi::CallbackInfo& info) : QueueObject(info) {
    const Napi::Object given = to_object(info[0], "options");
    const int fd = to_fd(given.Get("fd"), "fd");
    const Napi::Value max_frame = given.Get("maxFrame");
    const uint64_t most =
        absent(max_frame) ? kDefaultMaxFrame : to_integer(max_frame, "maxFrame", kDefaultMaxFrame, kMinFrame);
    queue_ = TapQueue::create(fd, static_cast<uint32_t>(most));
    if (!queue_) throw_errno(info.Env(), errno, "epoll_ctl");
  }
};

}  // namespace

void init_simple_queues(Napi::Env env, Napi::Object exports) {
  register_queue<SourceQueueObject>(env, exports);
  register_queue<SinkQueueObject>(env, exports);
  register_queue<TapQueueObject>(env, exports);
}

}  // namespace vpci::js
