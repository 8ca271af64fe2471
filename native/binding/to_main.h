// A way for native threads to run something on the JavaScript thread. Messages arrive in order.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>

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

class ToMain {
 public:
  // Throws when the environment cannot make one. While `keeps_alive`, the process does not end by itself.
  static std::shared_ptr<ToMain> create(Napi::Env env, const char* name, bool keeps_alive);
  ~ToMain() { end(); }
  ToMain(const ToMain&) = delete;
  ToMain& operator=(const ToMain&) = delete;

  // From any thread. `run` is dropped, unrun, when the environment ends first.
  void post(std::function<void(Napi::Env env)> run);
  // On the JavaScript thread: nothing is run any more, and the process is not kept alive. Owners call it
  // before they go; an environment that ends does it too.
  void end();

 private:
  ToMain() = default;
  static void call(napi_env env, napi_value, void* context, void* data);

  std::mutex mutex_;  // against an end while a thread posts
  napi_threadsafe_function function_ = nullptr;
  std::unique_ptr<AtExit> at_exit_;
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
