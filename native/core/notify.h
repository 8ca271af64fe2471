// How the other side of a ring is told: an eventfd or a 16-bit store into a device register, either of them
// possibly behind a shared doorbell word (docs/protocol.md, P6). Does not decide whether to tell.
#pragma once

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "mapping.h"

namespace vpci {

// Own duplicate of a descriptor of the caller's.
class OwnFd {
 public:
  OwnFd() = default;
  OwnFd(OwnFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnFd& operator=(OwnFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~OwnFd() {
    if (fd_ >= 0) ::close(fd_);
  }
  // -1 is no descriptor and no error.
  bool duplicate(int fd, std::string* error) {
    if (fd < 0) return true;
    OwnFd copy;
    copy.fd_ = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy.fd_ < 0) {
      if (error) *error = std::string("cannot duplicate a descriptor: ") + std::strerror(errno);
      return false;
    }
    *this = std::move(copy);
    return true;
  }
  int get() const { return fd_; }

  // For eventfds. Does not block, whatever others that hold the eventfd do to it, where the system has a way for that
  // (foreign_eventfd.h); a full counter is as good as a signal, any other failure is the other side's loss.
  void signal() const;
  // Takes what was signalled, without waiting; true when there was something.
  bool drain() const;

 private:
  int fd_ = -1;
};

struct NotifyOptions {
  int fd = -1;

  std::shared_ptr<Mapping> mmio;  // nullptr: no register
  uint64_t mmio_offset = 0;
  uint16_t mmio_value = 0;

  std::shared_ptr<Mapping> doorbell;  // nullptr: no doorbell word
  uint64_t doorbell_offset = 0;
  uint64_t sleep_offset = 0;
};

class NotifyTarget {
 public:
  bool init(const NotifyOptions& options, std::string* error);
  // False when there is nobody to tell: the other side polls.
  bool present() const { return fd_.get() >= 0 || mmio_ || doorbell_; }
  void signal() const;

 private:
  OwnFd fd_;
  std::shared_ptr<Mapping> mmio_mapping_, doorbell_mapping_;
  volatile uint16_t* mmio_ = nullptr;
  uint16_t mmio_value_ = 0;
  uint32_t* doorbell_ = nullptr;
  uint32_t* sleep_ = nullptr;
};

}  // namespace vpci
