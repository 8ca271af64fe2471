// A way for native threads to run something on the JavaScript thread. Messages arrive in order.
#pragma once

#include <napi.h>
#include <uv.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace vpci::js {

// Runs `hook` when the environment ends, before anything made earlier is taken apart; not once this object is
// gone.
class AtExit {
 public:
  AtExit(Napi::Env env, std::function<void()> hook);
  ~AtExit();
  AtExit(const AtExit&) = delete;
  AtExit& operator=(const AtExit&) = delete;

 private:
  static void call(void* self);
  Napi::Env env_;
  std::function<void()> hook_;
  bool added_ = true;
};

// libuv's handle itself: a thread-safe function of Node-API wakes the loop while it holds its lock, which the loop then waits
// for, two more changes of thread where both share a CPU.
class ToMain {
 public:
  // Throws when the environment cannot make one. While `keeps_alive`, the process does not end by itself.
  static std::shared_ptr<ToMain> create(Napi::Env env, const char* name, bool keeps_alive);
  ToMain(const ToMain&) = delete;
  ToMain& operator=(const ToMain&) = delete;

  // From any thread. `run` is dropped, unrun, when the environment ends first.
  void post(std::function<void(Napi::Env env)> run);
  // On the JavaScript thread: nothing is run any more, and the process is not kept alive. Owners call it
  // before they go; it happens too when the last of them is gone, and when the environment ends.
  void end();

 private:
  using Message = std::function<void(Napi::Env)>;

  ToMain(Napi::Env env, const char* name) : env_(env), context_(new Napi::AsyncContext(env, name)) {}
  void run_waiting();
  void closed();

  const Napi::Env env_;
  // These belong to the JavaScript thread, until the handle is closed.
  std::unique_ptr<Napi::AsyncContext> context_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  std::shared_ptr<ToMain> self_;
  uv_async_t wake_{};

  std::atomic<bool> ended_{false};
  std::atomic<uint32_t> posting_{0};  // threads that may be about to use the handle
  std::mutex mutex_;
  std::vector<Message> waiting_;
};

// Runs `body`, which calls into JavaScript from outside of it; what that throws becomes an uncaught
// exception.
template <typename Body>
void call_in(Napi::Env env, Body body) {
  Napi::HandleScope scope(env);
  try {
    body();
  } catch (const Napi::Error& error) {
    try {
      napi_fatal_exception(env, error.Value());
    } catch (const Napi::Error&) {
      // The environment is being terminated: nobody is there to be told.
    }
  }
}

}  // namespace vpci::js
