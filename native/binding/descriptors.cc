// memfds, eventfds and dup. Everything made here is close-on-exec.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../core/foreign_eventfd.h"
#include "addon.h"
#include "check.h"

namespace vpci::js {
namespace {

Napi::Value memfd_create_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string name = to_text(info[0], "name");
  if (name.size() > 249) throw_range(env, "name has more than 249 bytes");  // memfd_create(2)
  const uint64_t size = to_integer(info[1], "size");
  const bool seal = !absent(info[2]) && to_bool(info[2], "sealShrink");
  const int fd = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) throw_errno(env, errno, "memfd_create");
  const char* failed = nullptr;
  if (ftruncate(fd, static_cast<off_t>(size)) != 0) {
    failed = "ftruncate";
  } else if (seal && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
    failed = "fcntl";
  }
  if (failed) {
    const int number = errno;
    close(fd);
    throw_errno(env, number, failed);
  }
  return Napi::Number::New(env, fd);
}

Napi::Value eventfd_js(const Napi::CallbackInfo& info) {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) throw_errno(info.Env(), errno, "eventfd");
  return Napi::Number::New(info.Env(), fd);
}

// An fd that a peer gave may be blocking: the poll keeps a full counter from stopping the event loop.
bool ready(int fd, short events) {
  pollfd p{fd, events, 0};
  int n;
  do {
    n = poll(&p, 1, 0);
  } while (n < 0 && errno == EINTR);
  return n > 0 && (p.revents & events) && !(p.revents & (POLLNVAL | POLLERR));
}

Napi::Value eventfd_signal_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = to_fd(info[0], "fd");
  pollfd p{fd, POLLOUT, 0};
  const int n = poll(&p, 1, 0);
  if (n > 0 && (p.revents & POLLNVAL)) return Napi::Boolean::New(env, false);
  if (n == 0) return Napi::Boolean::New(env, true);  // full: whoever waits is awake already
  const uint64_t one = 1;
  const ssize_t done = write(fd, &one, sizeof one);
  return Napi::Boolean::New(env, done == sizeof one || (done < 0 && errno == EAGAIN));
}

Napi::Value eventfd_take_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = to_fd(info[0], "fd");
  if (fcntl(fd, F_GETFD) < 0) throw_errno(env, errno, "read");
  if (!ready(fd, POLLIN)) return Napi::Number::New(env, 0);
  uint64_t value = 0;
  const ssize_t n = read(fd, &value, sizeof value);
  if (n < 0 && errno != EAGAIN) throw_errno(env, errno, "read");
  if (n != sizeof value) return Napi::Number::New(env, 0);
  return Napi::Number::New(env, static_cast<double>(value));
}

Napi::Value dup_js(const Napi::CallbackInfo& info) {
  const int fd = fcntl(to_fd(info[0], "fd"), F_DUPFD_CLOEXEC, 3);
  if (fd < 0) throw_errno(info.Env(), errno, "dup");
  return Napi::Number::New(info.Env(), fd);
}

Napi::Value foreign_eventfds_js(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), foreign_eventfds_supported());
}

}  // namespace

void init_descriptors(Napi::Env env, Napi::Object exports) {
  exports.Set("memfdCreate", Napi::Function::New(env, memfd_create_js, "memfdCreate"));
  exports.Set("eventfd", Napi::Function::New(env, eventfd_js, "eventfd"));
  exports.Set("eventfdSignal", Napi::Function::New(env, eventfd_signal_js, "eventfdSignal"));
  exports.Set("eventfdTake", Napi::Function::New(env, eventfd_take_js, "eventfdTake"));
  exports.Set("foreignEventfds", Napi::Function::New(env, foreign_eventfds_js, "foreignEventfds"));
  exports.Set("dup", Napi::Function::New(env, dup_js, "dup"));
}

}  // namespace vpci::js
