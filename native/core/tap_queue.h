// One queue of a TAP device (Linux Documentation/networking/tuntap.rst): a tun fd with IFF_VNET_HDR whose
// header has 12 bytes, so that checksum and segmentation offload pass through as they are.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "net_header.h"
#include "notify.h"
#include "port.h"

namespace vpci {

class TapQueue final : public PortQueue {
 public:
  // The fd is duplicated and becomes non-blocking. nullptr with errno set when that fails.
  static std::shared_ptr<TapQueue> create(int fd, uint32_t max_frame);
  ~TapQueue() override;

  uint32_t receive(Burst& burst) override;
  Straight receive_into(PortQueue& to) override;
  void release(Burst& burst, uint32_t n) override { burst.begin += n; }
  uint32_t send(const Burst& burst) override;
  int wait_fd(bool for_send) override { return for_send ? writable_ : fd_.get(); }
  bool arm(bool) override { return true; }
  void disarm(bool) override {}

 private:
  explicit TapQueue(uint32_t max_frame);
  enum class Read : uint8_t {
    kFrame,
    kDropped,
    kNothing,  // there was no packet, and nothing was written
    kFailed,   // no frame, and no reason to read on
  };
  Read read_frame(const iovec* parts, uint32_t count, NetHeader* header, uint32_t* length);
  void count_received(uint32_t frames, uint64_t bytes);
  int write_packet(const Burst& burst, const Packet& packet);

  OwnFd fd_;
  int writable_ = -1;  // an epoll fd that becomes readable when the tun fd is writable
  const uint32_t max_frame_;
  bool long_frames_ = false;     // the last frame that was received was one
  std::vector<uint8_t> memory_;  // a burst of frames
  std::vector<uint8_t> linear_;  // a frame of more pieces than one system call takes
};

}  // namespace vpci
