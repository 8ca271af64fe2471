#include "to_main.h"

namespace vpci::js {

using Message = std::function<void(Napi::Env)>;

std::shared_ptr<ToMain> ToMain::create(Napi::Env env, const char* name, bool keeps_alive) {
  std::shared_ptr<ToMain> made(new ToMain);
  const napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, name), 0, 1, nullptr,
                                      nullptr, nullptr, call, &made->function_);
  if (status != napi_ok) throw Napi::Error::New(env);
  if (!keeps_alive) napi_unref_threadsafe_function(env, made->function_);
  // Hooks run last in, first out: this one before the function's own.
  made->at_exit_ = std::make_unique<AtExit>(env, [own = made.get()] { own->end(); });
  return made;
}

void ToMain::post(Message run) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!function_) return;
  auto* message = new Message(std::move(run));
  if (napi_call_threadsafe_function(function_, message, napi_tsfn_nonblocking) != napi_ok) delete message;
}

void ToMain::end() {
  at_exit_.reset();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (function_) napi_release_threadsafe_function(function_, napi_tsfn_abort);
  function_ = nullptr;
}

void ToMain::call(napi_env env, napi_value, void*, void* data) {
  const std::unique_ptr<Message> message(static_cast<Message*>(data));
  if (!env) return;  // the environment is ending
  call_in(env, [&] { (*message)(env); });
}

AtExit::AtExit(Napi::Env env, std::function<void()> hook) : env_(env), hook_(std::move(hook)) {
  napi_add_env_cleanup_hook(env_, call, this);
}

AtExit::~AtExit() {
  if (added_) napi_remove_env_cleanup_hook(env_, call, this);
}

void AtExit::call(void* self) {
  AtExit* own = static_cast<AtExit*>(self);
  own->added_ = false;
  const std::function<void()> hook = std::move(own->hook_);  // which may end `own`
  hook();
}

}  // namespace vpci::js
