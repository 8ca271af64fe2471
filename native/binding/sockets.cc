// Unix stream sockets that carry file descriptors (unix(7)). Non-blocking and close-on-exec, without
// exception.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "addon.h"
#include "check.h"

namespace vpci::js {
namespace {

constexpr int kType = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
constexpr uint32_t kMaxFds = 16;  // what one message of vhost-user or vfio-user may carry, with room to spare
constexpr uint64_t kMaxReceive = 64 << 20;

sockaddr_un address_of(Napi::Env env, const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    throw_range(env, "the path of a Unix socket has 1 to 107 bytes: '" + path + "'");
  }
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

int new_socket(Napi::Env env) {
  const int fd = socket(AF_UNIX, kType, 0);
  if (fd < 0) throw_errno(env, errno, "socket");
  return fd;
}

[[noreturn]] void close_and_throw(Napi::Env env, int fd, const char* syscall, const std::string& path) {
  const int number = errno;
  close(fd);
  throw_errno(env, number, syscall, path);
}

Napi::Value listen_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string path = to_text(info[0], "path");
  const int backlog = static_cast<int>(to_integer(info[1], "backlog", 65535));
  const sockaddr_un address = address_of(env, path);
  const int fd = new_socket(env);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    close_and_throw(env, fd, "bind", path);
  }
  if (listen(fd, backlog) != 0) close_and_throw(env, fd, "listen", path);
  return Napi::Number::New(env, fd);
}

Napi::Value accept_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = to_fd(info[0], "fd");
  for (;;) {
    const int connection = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (connection >= 0) return Napi::Number::New(env, connection);
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN) return env.Undefined();
    throw_errno(env, errno, "accept");
  }
}

Napi::Value connect_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string path = to_text(info[0], "path");
  const sockaddr_un address = address_of(env, path);
  const int fd = new_socket(env);
  // A Unix stream socket connects at once or fails: EAGAIN means that the listener's backlog is full.
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    close_and_throw(env, fd, "connect", path);
  }
  return Napi::Number::New(env, fd);
}

Napi::Value pair_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fds[2];
  if (socketpair(AF_UNIX, kType, 0, fds) != 0) throw_errno(env, errno, "socketpair");
  Napi::Array pair = Napi::Array::New(env, 2);
  pair.Set(0u, Napi::Number::New(env, fds[0]));
  pair.Set(1u, Napi::Number::New(env, fds[1]));
  return pair;
}

Napi::Value send_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = to_fd(info[0], "fd");
  const Napi::Array list = to_array(info[2], "fds", kMaxFds);
  int fds[kMaxFds];
  const uint32_t count = list.Length();
  for (uint32_t i = 0; i < count; i++) fds[i] = to_fd(list.Get(i), "fds[]");
  // Last, because reading the list may have run JavaScript.
  const Bytes data = to_bytes(info[1], "data");
  if (data.size == 0) throw_range(env, "a message has at least one byte");

  iovec part{const_cast<uint8_t*>(data.data), data.size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (count > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
  }
  for (;;) {
    const ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return Napi::Number::New(env, static_cast<double>(n));
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return Napi::Number::New(env, -1);
    throw_errno(env, errno, "sendmsg");
  }
}

Napi::Value receive_js(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = to_fd(info[0], "fd");
  const size_t length = static_cast<size_t>(to_integer(info[1], "length", kMaxReceive, 1));

  // Most reads ask for little, or find less than they ask for: the Buffer gets the size of what came.
  uint8_t small[4096];
  std::vector<uint8_t> large(length > sizeof small ? length : 0);
  uint8_t* into = large.empty() ? small : large.data();
  iovec part{into, length};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do {
    n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return env.Undefined();
  if (n < 0) throw_errno(env, errno, "recvmsg");

  std::vector<int> fds;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    const size_t have = fds.size();
    fds.resize(have + count);
    memcpy(fds.data() + have, CMSG_DATA(header), count * sizeof(int));
  }
  try {
    Napi::Object result = Napi::Object::New(env);
    result.Set("data", Napi::Buffer<uint8_t>::Copy(env, into, static_cast<size_t>(n)));
    Napi::Array list = Napi::Array::New(env, fds.size());
    for (uint32_t i = 0; i < fds.size(); i++) list.Set(i, Napi::Number::New(env, fds[i]));
    result.Set("fds", list);
    result.Set("truncated", Napi::Boolean::New(env, (message.msg_flags & MSG_CTRUNC) != 0));
    return result;
  } catch (...) {
    for (const int received : fds) close(received);
    throw;
  }
}

// unix(7): POLLHUP comes with the end of the other side, whatever of it is still unread.
Napi::Value hung_up_js(const Napi::CallbackInfo& info) {
  pollfd socket{to_fd(info[0], "fd"), 0, 0};
  const bool ended = poll(&socket, 1, 0) == 1 && (socket.revents & (POLLHUP | POLLERR)) != 0;
  return Napi::Boolean::New(info.Env(), ended);
}

}  // namespace

void init_sockets(Napi::Env env, Napi::Object exports) {
  exports.Set("unixListen", Napi::Function::New(env, listen_js, "unixListen"));
  exports.Set("unixAccept", Napi::Function::New(env, accept_js, "unixAccept"));
  exports.Set("unixConnect", Napi::Function::New(env, connect_js, "unixConnect"));
  exports.Set("unixPair", Napi::Function::New(env, pair_js, "unixPair"));
  exports.Set("sendMessage", Napi::Function::New(env, send_js, "sendMessage"));
  exports.Set("hungUp", Napi::Function::New(env, hung_up_js, "hungUp"));
  exports.Set("receiveMessage", Napi::Function::New(env, receive_js, "receiveMessage"));
}

}  // namespace vpci::js
