// The two sides of a virtio-net queue pair as JavaScript objects: PeerQueue (device side) and DriverQueue.
#include <string>

#include "../core/driver_queue.h"
#include "peer_queue_object.h"
#include "addon.h"
#include "memory.h"
#include "rings.h"

namespace vpci::js {

// -- PeerQueue ---------------------------------------------------------------------------------------------

namespace {

std::optional<PeerRingOptions> to_peer_ring(const Napi::Value& value, const char* name) {
  if (absent(value)) return std::nullopt;
  const Napi::Object ring = to_object(value, name);
  PeerRingOptions options;
  options.ring = to_ring(ring);
  options.next_avail = static_cast<uint16_t>(to_integer(ring.Get("nextAvail"), "nextAvail", 65535));
  options.enabled = to_bool(ring.Get("enabled"), "enabled");
  options.kick_fd = to_optional_fd(ring.Get("kickFd"), "kickFd");
  options.notify = to_notify(ring.Get("notify"));
  return options;
}

}  // namespace

Napi::Function PeerQueueObject::define(Napi::Env env) {
  return define_queue(env, {InstanceMethod<&PeerQueueObject::next_avail>("nextAvail")});
}

PeerQueueObject::PeerQueueObject(const Napi::CallbackInfo& info) : QueueObject(info) {
  const Napi::Object given = to_object(info[0], "options");
  PeerQueueOptions options;
  options.table = unwrap<RegionTableObject>(given.Get("table"), "table")->table();
  options.features = to_u64(given.Get("features"), "features");
  options.transmit = to_peer_ring(given.Get("transmit"), "transmit");
  options.receive = to_peer_ring(given.Get("receive"), "receive");
  const Napi::Value max_frame = given.Get("maxFrame");
  if (!absent(max_frame)) {
    options.max_frame = static_cast<uint32_t>(to_integer(max_frame, "maxFrame", kDefaultMaxFrame, kMinFrame));
  }
  std::string error;
  queue_ = PeerQueue::create(options, &error);
  if (!queue_) throw_range(info.Env(), error);
}

Napi::Value PeerQueueObject::next_avail(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto queue = core();
  Napi::Object out = Napi::Object::New(env);
  for (const bool transmit : {true, false}) {
    out.Set(transmit ? "transmit" : "receive",
            queue->has(transmit) ? Napi::Value(Napi::Number::New(env, queue->next_avail(transmit)))
                                 : env.Undefined());
  }
  return out;
}

// -- DriverQueue -------------------------------------------------------------------------------------------

namespace {

class DriverQueueObject : public QueueObject<DriverQueueObject, DriverQueue> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d647276, 0x0000000000000007};
  static constexpr const char* kName = "DriverQueue";

  static Napi::Function define(Napi::Env env) {
    return define_queue(env, {
                                 StaticMethod<&DriverQueueObject::bytes>("bytes"),
                                 InstanceAccessor<&DriverQueueObject::receiveq>("receiveq"),
                                 InstanceAccessor<&DriverQueueObject::transmitq>("transmitq"),
                             });
  }

  explicit DriverQueueObject(const Napi::CallbackInfo& info) : QueueObject(info) {
    const Napi::Object given = to_object(info[0], "options");
    DriverQueueOptions options;
    options.mapping = unwrap<MappingObject>(given.Get("mapping"), "mapping")->mapping();
    options.offset = to_integer(given.Get("offset"), "offset");
    options.address = to_u64(given.Get("address"), "address");
    options.size = static_cast<uint32_t>(to_integer(given.Get("size"), "size", kMaxRingSize, 1));
    options.buffer_bytes =
        static_cast<uint32_t>(to_integer(given.Get("bufferBytes"), "bufferBytes", kMaxBufferBytes, 1));
    options.features = to_u64(given.Get("features"), "features");
    options.receive_call_fd = to_optional_fd(given.Get("receiveCallFd"), "receiveCallFd");
    options.transmit_call_fd = to_optional_fd(given.Get("transmitCallFd"), "transmitCallFd");
    options.receive_kick_fd = to_optional_fd(given.Get("receiveKickFd"), "receiveKickFd");
    options.transmit_kick_fd = to_optional_fd(given.Get("transmitKickFd"), "transmitKickFd");
    std::string error;
    queue_ = DriverQueue::create(options, &error);
    if (!queue_) throw_range(info.Env(), error);
  }

 private:
  static Napi::Value bytes(const Napi::CallbackInfo& info) {
    const auto size = static_cast<uint32_t>(to_integer(info[0], "size", kMaxRingSize, 1));
    const auto buffer_bytes = static_cast<uint32_t>(to_integer(info[1], "bufferBytes", kMaxBufferBytes, 1));
    const uint64_t bytes = DriverQueue::bytes(size, buffer_bytes);
    if (bytes == 0) throw_range(info.Env(), "no queue can have this size and these buffers");
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  }

  Napi::Value receiveq(const Napi::CallbackInfo& info) { return from_ring(info.Env(), core()->receiveq()); }
  Napi::Value transmitq(const Napi::CallbackInfo& info) { return from_ring(info.Env(), core()->transmitq()); }
};

}  // namespace

void init_peer_queues(Napi::Env env, Napi::Object exports) {
  register_queue<PeerQueueObject>(env, exports);
  register_queue<DriverQueueObject>(env, exports);
}

}  // namespace vpci::js
