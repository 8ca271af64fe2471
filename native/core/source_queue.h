// A port queue that makes packets: the same frame again and again, or a stream whose packets a sink can
// verify. It takes nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "port.h"

namespace vpci {

class SourceQueue : public PortQueue {
 public:
  struct Options {
    uint32_t bytes = 64;  // frame length, at least 14; with `stream` at least test_frame::kMinBytes
    uint8_t destination[6] = {};
    uint8_t source[6] = {};
    uint64_t count = 0;  // packets until the end; 0: no end
    bool has_stream = false;
    uint32_t stream = 0;
  };
  // nullptr when `bytes` is out of range.
  static std::shared_ptr<SourceQueue> create(const Options& options);

  uint32_t receive(Burst& burst) override;
  void release(Burst& burst, uint32_t n) override;
  uint32_t send(const Burst& burst) override;
  int wait_fd(bool) override { return kNever; }
  bool arm(bool for_send) override { return for_send || ended(); }
  void disarm(bool) override {}
  bool ended() const override { return options_.count != 0 && made_ == options_.count; }

 private:
  explicit SourceQueue(const Options& options);
  void write_frame(uint8_t* frame, uint64_t sequence);

  const Options options_;
  uint32_t stride_ = 0;
  uint32_t frames_ = 1;
  std::vector<uint8_t> memory_;  // a burst of frames for a stream, else one that all packets share
  uint64_t made_ = 0;
};

}  // namespace vpci
