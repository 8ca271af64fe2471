// Both sides of a control queue: one chain at a time, with copies. The rings are SplitDevice and SplitDriver;
// there is no other ring code. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mapping.h"
#include "packet.h"
#include "region_table.h"
#include "split_device.h"
#include "split_driver.h"

namespace vpci {

class ControlDevice {
 public:
  static constexpr uint32_t kDefaultLimit = 65536;
  // nullptr, with the reason in `error`, for a ring that cannot be there. Neither INDIRECT nor EVENT_IDX is
  // negotiated on control queues; the ring starts at index 0.
  static std::unique_ptr<ControlDevice> create(std::shared_ptr<const RegionTable> table,
                                               const RingAddresses& ring, uint32_t limit, std::string* error);

  enum class Pop : uint8_t { kChain, kNone, kBroken };
  // Next available chain: its head, a copy of what the device may read, and how much it may write.
  Pop pop(uint16_t* head, std::vector<uint8_t>* readable, uint32_t* writable);

  enum class Push : uint8_t { kDone, kNotPopped, kTooLong, kBroken };
  // Writes to the chain's writable part and returns the chain to the driver.
  Push push(uint16_t head, const uint8_t* data, size_t length);

  // Goes on in another address space with the same rings at the same addresses; no chain may be popped. On
  // failure the queue is broken, with the reason in `error`.
  bool set_table(std::shared_ptr<const RegionTable> table, std::string* error);

  // True when the driver wants an interrupt for what was pushed since the last call. False when broken.
  bool needs_interrupt();

  // Static text; nullptr while the queue works. A broken queue refuses further work.
  const char* broken() const { return broken_; }

 private:
  struct Chain {
    bool popped = false;
    uint32_t writable = 0;
    std::vector<Segment> pieces;
  };

  ControlDevice() = default;

  std::shared_ptr<const RegionTable> table_;
  RingAddresses where_;
  SplitDevice ring_;
  bool interrupt_owed_ = false;  // for what was pushed in a table before this one
  uint32_t limit_ = kDefaultLimit;
  const char* broken_ = nullptr;
  std::vector<Chain> chains_;  // by head
};

class ControlDriver {
 public:
  // Bytes that the ring and one buffer for each entry take; 0 for arguments that no queue can have.
  static uint64_t bytes(uint32_t size, uint32_t buffer_bytes);
  static std::unique_ptr<ControlDriver> create(std::shared_ptr<Mapping> mapping, uint64_t offset,
                                               uint64_t address, uint32_t size, uint32_t buffer_bytes,
                                               std::string* error);

  const RingAddresses& addresses() const { return ring_.addresses(); }
  uint32_t buffer_bytes() const { return buffer_bytes_; }

  enum class Add : uint8_t { kDone, kFull, kTooLong, kBroken };
  Add add_readable(const uint8_t* data, size_t length);  // length 1 … buffer_bytes, else kTooLong
  Add add_writable();

  enum class Harvest : uint8_t { kBuffer, kNone, kBroken };
  // Next buffer that came back: what the device wrote, empty for readable ones.
  Harvest harvest(std::vector<uint8_t>* data);

  bool needs_notify();
  const char* broken() const { return broken_; }

 private:
  ControlDriver() = default;
  uint8_t* buffer(uint32_t i) const { return buffers_ + static_cast<uint64_t>(i) * buffer_bytes_; }
  uint64_t buffer_address(uint32_t i) const {
    return buffers_address_ + static_cast<uint64_t>(i) * buffer_bytes_;
  }
  Add add(uint16_t i, uint32_t length, bool writable);

  std::shared_ptr<Mapping> mapping_;
  SplitDriver ring_;
  uint8_t* buffers_ = nullptr;
  uint64_t buffers_address_ = 0;
  uint32_t buffer_bytes_ = 0;
  const char* broken_ = nullptr;
  std::vector<uint16_t> free_;
  std::vector<uint8_t> writable_;  // by descriptor
};

}  // namespace vpci
