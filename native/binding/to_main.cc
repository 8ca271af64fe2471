#include "to_main.h"

#include <thread>

#include "check.h"

namespace vpci::js {

std::shared_ptr<ToMain> ToMain::create(Napi::Env env, const char* name, bool keeps_alive) {
  std::shared_ptr<ToMain> made(new ToMain(env, name));
  uv_loop_t* loop = nullptr;
  NAPI_THROW_IF_FAILED(env, napi_get_uv_event_loop(env, &loop), nullptr);
  const int failed =
      uv_async_init(loop, &made->wake_, [](uv_async_t* wake) { static_cast<ToMain*>(wake->data)->run_waiting(); });
  if (failed) throw_errno(env, -failed, "uv_async_init");
  made->wake_.data = made.get();
  made->self_ = made;
  if (!keeps_alive) uv_unref(reinterpret_cast<uv_handle_t*>(&made->wake_));
  // Hooks run last in, first out. The environment waits for the handle to be closed.
  napi_add_async_cleanup_hook(
      env, [](napi_async_cleanup_hook_handle, void* own) { static_cast<ToMain*>(own)->end(); }, made.get(),
      &made->hook_);
  // An owner whose constructor throws has no destructor that would end it.
  return {made.get(), [made](ToMain*) { made->end(); }};
}

void ToMain::post(Message run) {
  posting_.fetch_add(1);
  if (!ended_.load()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back(std::move(run));
    }
    uv_async_send(&wake_);
  }
  posting_.fetch_sub(1);
}

void ToMain::end() {
  if (ended_.exchange(true)) return;
  while (posting_.load() != 0) std::this_thread::yield();
  uv_close(reinterpret_cast<uv_handle_t*>(&wake_),
           [](uv_handle_t* wake) { static_cast<ToMain*>(wake->data)->closed(); });
}

void ToMain::closed() {
  const std::shared_ptr<ToMain> keep = std::move(self_);
  const Napi::HandleScope scope(env_);
  context_.reset();
  waiting_.clear();
  napi_remove_async_cleanup_hook(hook_);
}

void ToMain::run_waiting() {
  const std::shared_ptr<ToMain> keep = self_;
  std::vector<Message> messages;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    messages.swap(waiting_);
  }
  for (const Message& message : messages) {
    if (ended_.load()) return;
    call_in(env_, [&] {
      const Napi::CallbackScope ticks(env_, *context_);
      call_in(env_, [&] { message(env_); });
    });
  }
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
