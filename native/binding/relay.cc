// The relay as a JavaScript object. Its thread does not keep the process alive; an environment that ends
// stops it.
#include "../core/relay.h"

#include <memory>

#include "addon.h"
#include "memory.h"
#include "to_main.h"

namespace vpci::js {
namespace {

class RelayObject : public Napi::ObjectWrap<RelayObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d72656c, 0x000000000000000b};
  static constexpr const char* kName = "Relay";

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, kName,
                       {
                           InstanceMethod<&RelayObject::add>("add"),
                           InstanceMethod<&RelayObject::add_doorbell>("addDoorbell"),
                           InstanceMethod<&RelayObject::ring>("ring"),
                           InstanceMethod<&RelayObject::set_sleep_word>("setSleepWord"),
                           InstanceMethod<&RelayObject::remove>("remove"),
                           InstanceMethod<&RelayObject::stats>("stats"),
                           InstanceMethod<&RelayObject::stop>("stop"),
                       });
  }

  explicit RelayObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RelayObject>(info) {
    tag<RelayObject>(info);
    const int failed = relay_.start();
    if (failed) throw_errno(info.Env(), failed, "pthread_create");
    at_exit_ = std::make_unique<AtExit>(info.Env(), [this] { relay_.stop(); });
  }

 private:
  struct Word {
    std::shared_ptr<Mapping> mapping;
    uint32_t* at;
  };
  static Word to_word(const Napi::CallbackInfo& info) {
    const Place place = to_place(info[0], info[1], 4, 4, "mapping");
    if (!place.mapping->writable()) throw_errno(info.Env(), EACCES, "write");
    return {place.mapping, reinterpret_cast<uint32_t*>(place.mapping->data() + place.offset)};
  }

  Napi::Value added(Napi::Env env, int64_t id, const char* syscall) {
    if (id < 0) throw_errno(env, static_cast<int>(-id), syscall);
    return Napi::Number::New(env, static_cast<double>(id));
  }

  void check_running(Napi::Env env) {
    if (!at_exit_) throw_code(env, "ESHUTDOWN", "the relay has been stopped");
  }

  Napi::Value add(const Napi::CallbackInfo& info) {
    check_running(info.Env());
    const int from = to_fd(info[0], "from");
    return added(info.Env(), relay_.add(from, to_fd(info[1], "to")), "epoll_ctl");
  }

  Napi::Value add_doorbell(const Napi::CallbackInfo& info) {
    check_running(info.Env());
    const Word word = to_word(info);
    const int from = absent(info[3]) ? -1 : to_fd(info[3], "from");
    return added(info.Env(), relay_.add_doorbell(word.mapping, word.at, to_fd(info[2], "to"), from),
                 "epoll_ctl");
  }

  void ring(const Napi::CallbackInfo& info) {
    const auto id = static_cast<int64_t>(to_integer(info[0], "id"));
    if (!relay_.ring(id)) throw_range(info.Env(), "the relay has no doorbell " + std::to_string(id));
  }

  void set_sleep_word(const Napi::CallbackInfo& info) {
    check_running(info.Env());
    const Word word = to_word(info);
    relay_.set_sleep_word(word.mapping, word.at);
  }

  void remove(const Napi::CallbackInfo& info) {
    const auto id = static_cast<int64_t>(to_integer(info[0], "id"));
    if (!relay_.remove(id)) throw_range(info.Env(), "the relay has no number " + std::to_string(id));
  }

  Napi::Value stats(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Napi::Object out = Napi::Object::New(env);
    out.Set("wakeups", Napi::Number::New(env, static_cast<double>(relay_.stats.wakeups.get())));
    out.Set("forwarded", Napi::Number::New(env, static_cast<double>(relay_.stats.forwarded.get())));
    out.Set("doorbells", Napi::Number::New(env, static_cast<double>(relay_.stats.doorbells.get())));
    return out;
  }

  // The thread sleeps or is in a scan of microseconds, so that joining it here holds nothing up.
  Napi::Value stop(const Napi::CallbackInfo& info) {
    relay_.stop();
    at_exit_.reset();
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    deferred.Resolve(info.Env().Undefined());
    return deferred.Promise();
  }

  Relay relay_;
  std::unique_ptr<AtExit> at_exit_;
};

}  // namespace

void init_relay(Napi::Env env, Napi::Object exports) {
  exports.Set(RelayObject::kName, RelayObject::define(env));
}

}  // namespace vpci::js
