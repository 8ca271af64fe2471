// AppQueue as a JavaScript object. The pool is memory of our own, so that it may be an ArrayBuffer (decision
// D3).
#include "../core/app_queue.h"

#include "addon.h"
#include "queues.h"
#include "to_main.h"

namespace vpci::js {
namespace {

constexpr uint64_t kMaxPoolBytes = 1 << 30;

class AppQueueObject : public QueueObject<AppQueueObject, AppQueue> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d617070, 0x000000000000000c};
  static constexpr const char* kName = "AppQueue";

  static Napi::Function define(Napi::Env env) {
    return define_queue(env, {
                                 InstanceMethod<&AppQueueObject::receive>("receive"),
                                 InstanceMethod<&AppQueueObject::reserve>("reserve"),
                                 InstanceMethod<&AppQueueObject::send>("send"),
                                 InstanceMethod<&AppQueueObject::on_ready>("onReady"),
                             });
  }

  explicit AppQueueObject(const Napi::CallbackInfo& info) : QueueObject(info) {
    Napi::Env env = info.Env();
    const Napi::Object given = to_object(info[0], "options");
    AppQueue::Options options;
    options.slots = static_cast<uint32_t>(to_integer(given.Get("slots"), "slots", 1 << 20, 2));
    options.slot_bytes = static_cast<uint32_t>(to_integer(given.Get("slotBytes"), "slotBytes", 1 << 17, 64));
    const Napi::Value burst = given.Get("burst");
    options.burst = absent(burst) ? 256 : static_cast<uint32_t>(to_integer(burst, "burst", 1 << 16, 1));
    if (uint64_t{options.slots} * AppQueue::stride(options.slot_bytes) > kMaxPoolBytes) {
      throw_range(env, "slots times slotBytes is more than 1 GiB");
    }
    to_main_ = ToMain::create(env, "vhost-pci packets", false);
    app_ = AppQueue::create(options,
                            [to_main = to_main_, this] { to_main->post([this](Napi::Env) { ready(); }); });
    if (!app_) throw_errno(env, ENOMEM, "mmap");
    queue_ = app_;
    const std::shared_ptr<AppPool>& pool = app_->pool();
    define_property(info, "pool", buffer(env, pool, pool->memory, pool->size));
    define_property(info, "received", words(env, pool, pool->received));
    define_property(info, "toSend", words(env, pool, pool->to_send));
  }

  ~AppQueueObject() override {
    if (to_main_) to_main_->end();
  }

  void close(const Napi::CallbackInfo&) {
    close_queue();
    to_main_->end();
    app_.reset();
  }

 private:
  // The memory lives until the program has let go of it too.
  static Napi::ArrayBuffer buffer(Napi::Env env, const std::shared_ptr<AppPool>& pool, void* data,
                                  size_t size) {
    return Napi::ArrayBuffer::New(
        env, data, size, [](Napi::Env, void*, std::shared_ptr<AppPool>* keep) { delete keep; },
        new std::shared_ptr<AppPool>(pool));
  }

  static Napi::Value words(Napi::Env env, const std::shared_ptr<AppPool>& pool, std::vector<uint32_t>& data) {
    return Napi::Uint32Array::New(env, data.size(), buffer(env, pool, data.data(), data.size() * 4), 0);
  }

  static void define_property(const Napi::CallbackInfo& info, const char* name, Napi::Value value) {
    info.This().As<Napi::Object>().DefineProperty(
        Napi::PropertyDescriptor::Value(name, value, napi_enumerable));
  }

  AppQueue& app() {
    queue();  // throws when closed
    return *app_;
  }

  Napi::Value receive(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), app().take()); }

  Napi::Value reserve(const Napi::CallbackInfo& info) {
    const auto n = static_cast<uint32_t>(to_integer(info[0], "n", 0xffffffff));
    return Napi::Number::New(info.Env(), app().reserve(n));
  }

  void send(const Napi::CallbackInfo& info) {
    const auto n = static_cast<uint32_t>(to_integer(info[0], "n", app().reserved()));
    if (!app().give(n)) {
      throw_range(info.Env(), "toSend has to have reserved offsets, and lengths from 14 to " +
                                  std::to_string(app().capacity()));
    }
  }

  void on_ready(const Napi::CallbackInfo& info) {
    callback_ = Napi::Persistent(to_function(info[0], "callback"));
    // Never from inside this call: the caller may not be ready for it.
    if (app().want()) to_main_->post([this](Napi::Env) { ready(); });
  }

  void ready() {
    if (callback_.IsEmpty()) return;
    const Napi::Function callback = callback_.Value();
    callback_.Reset();
    callback.Call({});
  }

  std::shared_ptr<ToMain> to_main_;
  std::shared_ptr<AppQueue> app_;
  Napi::FunctionReference callback_;
};

}  // namespace

void init_app_queue(Napi::Env env, Napi::Object exports) { register_queue<AppQueueObject>(env, exports); }

}  // namespace vpci::js
