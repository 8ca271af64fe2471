// Checks where a notification goes, and sends it.
#include "notify.h"

#include <poll.h>

#include "foreign_eventfd.h"

namespace vpci {

bool OwnFd::drain() const { return fd_ >= 0 && take_eventfd(fd_); }

void OwnFd::signal() const {
  if (fd_ < 0 || signal_foreign_eventfd(fd_)) return;
  // Without that way there is no better one: the other side may have passed a blocking eventfd, and may hold its counter at
  // the limit.
  pollfd p = {fd_, POLLOUT, 0};
  if (::poll(&p, 1, 0) <= 0 || !(p.revents & POLLOUT)) return;
  uint64_t one = 1;
  (void)!::write(fd_, &one, sizeof one);
}

bool NotifyTarget::init(const NotifyOptions& options, std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return false;
  };
  auto place = [](const Mapping& m, uint64_t offset, uint64_t bytes) -> uint8_t* {
    bool inside = m.writable() && offset % bytes == 0 && m.size() >= bytes && offset <= m.size() - bytes;
    return inside ? m.data() + offset : nullptr;
  };
  if (options.fd >= 0 && options.mmio) return fail("notify has both an eventfd and a register");
  if (options.mmio) {
    uint8_t* at = place(*options.mmio, options.mmio_offset, 2);
    if (!at) return fail("notify register is unaligned, read-only or outside its mapping");
    mmio_ = reinterpret_cast<volatile uint16_t*>(at);
    mmio_value_ = options.mmio_value;
    mmio_mapping_ = options.mmio;
  }
  if (options.doorbell) {
    uint8_t* word = place(*options.doorbell, options.doorbell_offset, 4);
    uint8_t* sleep = place(*options.doorbell, options.sleep_offset, 4);
    if (!word || !sleep) return fail("doorbell word is unaligned, read-only or outside its mapping");
    doorbell_ = reinterpret_cast<uint32_t*>(word);
    sleep_ = reinterpret_cast<uint32_t*>(sleep);
    doorbell_mapping_ = options.doorbell;
  }
  return fd_.duplicate(options.fd, error);
}

void NotifyTarget::signal() const {
  if (doorbell_) {
    __atomic_fetch_add(doorbell_, 1u, __ATOMIC_RELEASE);
    // docs/protocol.md, P6: either we see the device asleep, or it sees the new word before it sleeps.
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(sleep_, __ATOMIC_RELAXED) & 1)) return;
  }
  fd_.signal();
  if (mmio_) *mmio_ = mmio_value_;
}

}  // namespace vpci
