// Driver side of one queue pair of a virtio-net device (VIRTIO 1.3, 5.1), with rings and buffers in memory of
// our own: receive takes from the receiveq, send fills the transmitq. One fixed buffer belongs to each
// descriptor.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mapping.h"
#include "net_header.h"
#include "notify.h"
#include "offload.h"
#include "port.h"
#include "split_driver.h"

namespace vpci {

struct DriverQueueOptions {
  std::shared_ptr<Mapping> mapping;
  uint64_t offset = 0;
  uint64_t address = 0;
  uint32_t size = 256;
  uint32_t buffer_bytes = 2048;
  uint64_t features = 0;
  int receive_call_fd = -1;  // descriptors are duplicated
  int transmit_call_fd = -1;
  int receive_kick_fd = -1;
  int transmit_kick_fd = -1;
};

class DriverQueue final : public PortQueue {
 public:
  // Bytes that the rings and buffers take; 0 for arguments that no queue can have.
  static uint64_t bytes(uint32_t size, uint32_t buffer_bytes);
  // nullptr, with the reason in `error`, for options that cannot be served.
  static std::shared_ptr<DriverQueue> create(const DriverQueueOptions& options, std::string* error);

  const RingAddresses& receiveq() const { return receive_.ring.addresses(); }
  const RingAddresses& transmitq() const { return transmit_.ring.addresses(); }

  uint32_t receive(Burst& burst) override;
  void release(Burst& burst, uint32_t n) override;
  uint32_t send(const Burst& burst) override;
  uint32_t room(iovec* pieces, uint32_t most, uint32_t bytes) override;
  void place(const NetHeader& header, uint32_t length) override;
  int wait_fd(bool for_send) override;
  bool arm(bool for_send) override;
  void disarm(bool for_send) override;
  void flush() override;
  void detached() override;

 private:
  struct Side {
    SplitDriver ring;
    OwnFd call, kick;
    uint8_t* buffers = nullptr;
    uint64_t address = 0;
    bool armed = false;
  };

  DriverQueue() = default;
  uint8_t* buffer(const Side& side, uint32_t i) const {
    return side.buffers + static_cast<uint64_t>(i) * stride_;
  }
  uint64_t buffer_address(const Side& side, uint32_t i) const {
    return side.address + static_cast<uint64_t>(i) * stride_;
  }
  Side& side(bool for_send) { return for_send ? transmit_ : receive_; }
  void break_both(const char* cause);
  bool memory_vanished();
  // -- receive (driver_receive.cc) --
  void give_back(uint32_t frames);
  bool take_frame(Burst& burst, uint32_t waiting, bool* later);

  // -- send (driver_send.cc) --
  uint32_t collect_sent(uint32_t wanted);
  uint32_t buffers_of(uint32_t length) const { return (header_bytes_ + length + buffer_bytes_ - 1) / buffer_bytes_; }
  uint8_t* free_buffer(uint32_t i) const {
    return buffer(transmit_, free_[(free_head_ + i) & (transmit_.ring.size() - 1)]);
  }
  void send_chain(const Burst& burst, const Packet& packet, const NetHeader& header, uint32_t count);
  void link_chain(uint32_t count, uint32_t last_bytes);

  std::shared_ptr<Mapping> mapping_;
  uint64_t features_ = 0;
  uint32_t buffer_bytes_ = 0;
  uint32_t stride_ = 0;
  uint32_t header_bytes_ = 12;
  bool mergeable_ = false;
  Side receive_, transmit_;

  // Buffers taken by receive and not given back: those of a packet, or of a frame that was dropped, in order.
  std::vector<uint16_t> held_;
  uint32_t held_begin_ = 0, held_end_ = 0;
  struct Frame {
    uint16_t buffers;
    bool dropped;
  };
  std::vector<Frame> frames_;
  uint32_t frame_begin_ = 0, frame_end_ = 0;

  // Free transmit descriptors, oldest first: a device that completes in order sees them in the order of the
  // ring.
  std::vector<uint16_t> free_;
  uint32_t free_head_ = 0, free_tail_ = 0;
  std::vector<uint16_t> chain_length_;  // of the chain that starts at a descriptor
  std::vector<uint16_t> chain_next_;
  OffloadFit offload_;
};

}  // namespace vpci
