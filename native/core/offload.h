// Packets on their way to a destination that may not have negotiated what their headers ask for. Knows no ring.
#pragma once

#include <vector>

#include "net_header.h"

namespace vpci {

class OffloadFit {
 public:
  // `fit_header` is fit_for_driver or fit_for_device. No longer packet than `max_frame` has its checksum completed.
  void init(Offload (*fit_header)(NetHeader*, uint64_t), uint64_t features, uint32_t max_frame);

  // Fits the header of a packet. kChecksum: `replaced` takes the packet's place until the next call, with its checksum
  // completed in memory of our own, where nobody changes what was summed.
  Offload fit(const Burst& burst, const Packet& packet, NetHeader* header, Packet* replaced);

 private:
  Offload (*fit_header_)(NetHeader*, uint64_t) = nullptr;
  uint64_t features_ = 0;
  std::vector<uint8_t> linear_;
};

}  // namespace vpci
