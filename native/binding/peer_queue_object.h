// PeerQueue as a JavaScript object, for the worker's commands that take one.
#pragma once

#include "../core/peer_queue.h"
#include "queues.h"

namespace vpci::js {

class PeerQueueObject : public QueueObject<PeerQueueObject, PeerQueue> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d706565, 0x0000000000000006};
  static constexpr const char* kName = "PeerQueue";
  static Napi::Function define(Napi::Env env);

  explicit PeerQueueObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value next_avail(const Napi::CallbackInfo& info);
};

}  // namespace vpci::js
