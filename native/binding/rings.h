// Ring addresses and notification targets, between JavaScript and the core.
#pragma once

#include <napi.h>

#include "../core/notify.h"
#include "../core/split_layout.h"

namespace vpci::js {

constexpr uint32_t kMaxRingSize = 32768;  // VIRTIO 1.3, 2.7
constexpr uint32_t kMaxBufferBytes = 1 << 20;

// Power of two, alignment and place are checked by the queue that is made from it.
RingAddresses to_ring(const Napi::Object& ring);
Napi::Value from_ring(Napi::Env env, const RingAddresses& ring);
NotifyOptions to_notify(const Napi::Value& target);
// -1 when absent.
int to_optional_fd(const Napi::Value& value, const char* name);

}  // namespace vpci::js
