// A port queue that consumes packets: it copies every frame into memory of its own, as a real consumer does,
// counts it, and verifies the frames of a stream on demand. It never has packets to give.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "frame_copy.h"
#include "port.h"

namespace vpci {

class SinkQueue : public PortQueue {
 public:
  struct Options {
    bool has_stream = false;
    uint32_t stream = 0;
  };
  struct Verified {
    Counter packets;    // of the stream
    Counter lost;       // sequence numbers passed over and not seen since
    Counter reordered;  // packets that came after a later one
    Counter altered;    // packets of the stream that are not what the source made
    Counter foreign;    // everything else
  };

  explicit SinkQueue(const Options& options);

  uint32_t receive(Burst& burst) override;
  void release(Burst& burst, uint32_t n) override { burst.begin += n; }
  uint32_t send(const Burst& burst) override;
  int wait_fd(bool) override { return kNever; }
  bool arm(bool) override { return true; }
  void disarm(bool) override {}

  Verified verified;

 private:
  void verify(const uint8_t* frame, uint32_t length);

  const Options options_;
  std::vector<uint8_t> frame_;
  CopyList copies_;
  uint64_t next_ = 0;
};

}  // namespace vpci
