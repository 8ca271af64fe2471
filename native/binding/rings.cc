#include "rings.h"

#include "check.h"
#include "memory.h"

namespace vpci::js {

RingAddresses to_ring(const Napi::Object& ring) {
  RingAddresses addresses;
  addresses.size = static_cast<uint32_t>(to_integer(ring.Get("size"), "size", kMaxRingSize, 1));
  addresses.desc = to_u64(ring.Get("desc"), "desc");
  addresses.driver = to_u64(ring.Get("driver"), "driver");
  addresses.device = to_u64(ring.Get("device"), "device");
  return addresses;
}

Napi::Value from_ring(Napi::Env env, const RingAddresses& ring) {
  Napi::Object addresses = Napi::Object::New(env);
  addresses.Set("size", Napi::Number::New(env, ring.size));
  addresses.Set("desc", Napi::BigInt::New(env, ring.desc));
  addresses.Set("driver", Napi::BigInt::New(env, ring.driver));
  addresses.Set("device", Napi::BigInt::New(env, ring.device));
  return addresses;
}

int to_optional_fd(const Napi::Value& value, const char* name) {
  return absent(value) ? -1 : to_fd(value, name);
}

NotifyOptions to_notify(const Napi::Value& target) {
  NotifyOptions options;
  if (absent(target)) return options;
  const Napi::Object notify = to_object(target, "notify");
  options.fd = to_optional_fd(notify.Get("fd"), "notify.fd");
  const Napi::Value mmio = notify.Get("mmio");
  if (!absent(mmio)) {
    const Napi::Object object = to_object(mmio, "notify.mmio");
    const Place place = to_place(object.Get("mapping"), object.Get("offset"), 2, 2, "notify.mmio.mapping");
    options.mmio = place.mapping;
    options.mmio_offset = place.offset;
    options.mmio_value = static_cast<uint16_t>(to_integer(object.Get("value"), "notify.mmio.value", 65535));
  }
  const Napi::Value doorbell = notify.Get("doorbell");
  if (!absent(doorbell)) {
    const Napi::Object object = to_object(doorbell, "notify.doorbell");
    const Place word = to_place(object.Get("mapping"), object.Get("offset"), 4, 4, "notify.doorbell.mapping");
    const Place sleep =
        to_place(object.Get("mapping"), object.Get("sleepOffset"), 4, 4, "notify.doorbell.mapping");
    options.doorbell = word.mapping;
    options.doorbell_offset = word.offset;
    options.sleep_offset = sleep.offset;
  }
  return options;
}

}  // namespace vpci::js
