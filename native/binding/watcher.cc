// Watched fds of the event loop (uv_poll). The watcher keeps a duplicate of the fd, so that an fd that its
// owner closes too early cannot make libuv abort, and two watchers of one fd are possible.
#include <fcntl.h>
#include <unistd.h>
#include <uv.h>

#include <cerrno>
#include <memory>

#include "addon.h"
#include "check.h"
#include "to_main.h"

namespace vpci::js {
namespace {

class WatcherObject;

// Lives until libuv has let go of the handle, which is after the JavaScript object may have gone.
struct Handle {
  uv_poll_t poll;
  int fd;
  WatcherObject* owner;  // nullptr once stopped
  napi_async_cleanup_hook_handle hook = nullptr;
};

class WatcherObject : public Napi::ObjectWrap<WatcherObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d776174, 0x0000000000000001};

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Watcher",
                       {
                           InstanceMethod<&WatcherObject::set>("set"),
                           InstanceMethod<&WatcherObject::ref>("ref"),
                           InstanceMethod<&WatcherObject::unref>("unref"),
                           InstanceMethod<&WatcherObject::stop>("stop"),
                       });
  }

  explicit WatcherObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<WatcherObject>(info) {
    Napi::Env env = info.Env();
    tag<WatcherObject>(info);
    const int given = to_fd(info[0], "fd");
    callback_ = Napi::Persistent(to_function(info[1], "callback"));
    const int fd = fcntl(given, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) throw_errno(env, errno, "dup");
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    auto handle = std::make_unique<Handle>();
    handle->fd = fd;
    handle->owner = this;
    handle->poll.data = handle.get();
    const int failed = uv_poll_init(loop, &handle->poll, fd);
    if (failed) {
      close(fd);
      throw_errno(env, -failed, "epoll_ctl");  // EPERM: a file that cannot be waited for
    }
    handle_ = handle.release();
    napi_add_async_cleanup_hook(env, at_exit, handle_, &handle_->hook);
    events_ = UV_READABLE;
    uv_poll_start(&handle_->poll, events_, on_event);
    Ref();  // an active watcher is not garbage
  }

  ~WatcherObject() override { end(); }

 private:
  void set(const Napi::CallbackInfo& info) {
    const Napi::Object events = to_object(info[0], "events");
    const Napi::Value readable = events.Get("readable");
    const Napi::Value writable = events.Get("writable");
    int wanted = events_;
    if (!absent(readable))
      wanted = to_bool(readable, "readable") ? wanted | UV_READABLE : wanted & ~UV_READABLE;
    if (!absent(writable))
      wanted = to_bool(writable, "writable") ? wanted | UV_WRITABLE : wanted & ~UV_WRITABLE;
    events_ = wanted;
    if (!handle_) return;
    if (wanted == 0) {
      uv_poll_stop(&handle_->poll);
    } else {
      uv_poll_start(&handle_->poll, wanted, on_event);
    }
  }

  void ref(const Napi::CallbackInfo&) {
    if (handle_) uv_ref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
  }

  void unref(const Napi::CallbackInfo&) {
    if (handle_) uv_unref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
  }

  void stop(const Napi::CallbackInfo&) {
    if (!handle_) return;
    end();
    Unref();
  }

  void end() {
    if (!handle_) return;
    Handle* handle = handle_;
    handle_ = nullptr;
    handle->owner = nullptr;
    callback_.Reset();
    shut(handle);
  }

  // The duplicate is closed at once, as epoll forgets it at uv_poll_stop: nobody else sees a socket that
  // lives on.
  static void shut(Handle* handle) {
    uv_poll_stop(&handle->poll);
    if (uv_is_closing(reinterpret_cast<uv_handle_t*>(&handle->poll))) return;
    uv_close(reinterpret_cast<uv_handle_t*>(&handle->poll), [](uv_handle_t* closed) {
      Handle* own = static_cast<Handle*>(closed->data);
      if (own->hook) napi_remove_async_cleanup_hook(own->hook);
      delete own;
    });
    close(handle->fd);
  }

  static void at_exit(napi_async_cleanup_hook_handle, void* data) {
    Handle* handle = static_cast<Handle*>(data);
    if (handle->owner) handle->owner->handle_ = nullptr;
    handle->owner = nullptr;
    shut(handle);
  }

  static void on_event(uv_poll_t* poll, int status, int events) {
    WatcherObject* watcher = static_cast<Handle*>(poll->data)->owner;
    if (!watcher) return;
    Napi::Env env = watcher->Env();
    // libuv stops the handle on EPOLLERR. The owner's next read or write gets the error itself.
    const bool readable = status < 0 || (events & UV_READABLE);
    const bool writable = status < 0 ? (watcher->events_ & UV_WRITABLE) != 0 : (events & UV_WRITABLE) != 0;
    call_in(env, [&] {
      watcher->callback_.Value().MakeCallback(
          watcher->Value(), {Napi::Boolean::New(env, readable), Napi::Boolean::New(env, writable)});
    });
  }

  Handle* handle_ = nullptr;
  int events_ = 0;
  Napi::FunctionReference callback_;
};

}  // namespace

void init_watcher(Napi::Env env, Napi::Object exports) {
  // The constructor is reached through watch() alone; each environment has its own.
  auto* constructor = new Napi::FunctionReference(Napi::Persistent(WatcherObject::define(env)));
  env.AddCleanupHook([](Napi::FunctionReference* reference) { delete reference; }, constructor);
  exports.Set("watch", Napi::Function::New(
                           env,
                           [constructor](const Napi::CallbackInfo& info) -> Napi::Value {
                             return constructor->New({info[0], info[1]});
                           },
                           "watch"));
}

}  // namespace vpci::js
