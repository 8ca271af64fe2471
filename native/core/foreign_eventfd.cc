#include "foreign_eventfd.h"

#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

namespace vpci {
namespace {

// io_setup(2) of a thread, made by its first signal.
class Signaller {
 public:
  Signaller() { usable_ = syscall(SYS_io_setup, 1, &context_) == 0; }
  ~Signaller() {
    if (usable_) syscall(SYS_io_destroy, context_);
  }
  Signaller(const Signaller&) = delete;
  Signaller& operator=(const Signaller&) = delete;

  // The kernel's own signal of an eventfd never waits, unlike write(2). It is to be had as the end of an asynchronous
  // request (IOCB_FLAG_RESFD); a read of no bytes is over at once, whatever comes of it.
  bool signal(int fd) {
    iocb request{};
    request.aio_lio_opcode = IOCB_CMD_PREAD;
    request.aio_fildes = static_cast<uint32_t>(fd);
    request.aio_flags = IOCB_FLAG_RESFD;
    request.aio_resfd = static_cast<uint32_t>(fd);
    iocb* requests[] = {&request};
    if (!usable_) return false;
    if (syscall(SYS_io_submit, context_, 1, requests) == 1) return true;
    if (errno != EAGAIN) return false;
    // The results fill a ring, which is emptied only here: once in a hundred signals or so.
    constexpr int kEvents = 64;
    io_event events[kEvents];
    timespec now = {0, 0};
    while (syscall(SYS_io_getevents, context_, 0, kEvents, events, &now) > 0) {
    }
    return syscall(SYS_io_submit, context_, 1, requests) == 1;
  }

 private:
  aio_context_t context_ = 0;
  bool usable_;
};

// O_NONBLOCK need not be there for this one.
ssize_t read_now(int fd, uint64_t* count) {
  iovec into = {count, sizeof *count};
  return preadv2(fd, &into, 1, -1, RWF_NOWAIT);
}

}  // namespace

bool take_eventfd(int fd) {
  uint64_t count;
  ssize_t n = read_now(fd, &count);
  if (n < 0 && errno == EOPNOTSUPP) {  // before Linux 5.12
    pollfd p = {fd, POLLIN, 0};
    if (::poll(&p, 1, 0) <= 0 || !(p.revents & POLLIN)) return false;
    n = read(fd, &count, sizeof count);
  }
  return n == sizeof count;
}

bool signal_foreign_eventfd(int fd) {
  static thread_local Signaller signaller;
  return signaller.signal(fd);
}

bool foreign_eventfds_supported() {
  const int fd = eventfd(0, EFD_CLOEXEC);
  if (fd < 0) return false;
  Signaller signaller;
  uint64_t count = 0;
  const bool reads = read_now(fd, &count) < 0 && errno == EAGAIN;
  const bool signals = signaller.signal(fd) && read_now(fd, &count) == sizeof count && count == 1;
  close(fd);
  return reads && signals;
}

}  // namespace vpci
