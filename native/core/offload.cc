#include "offload.h"

#include "frame_copy.h"

namespace vpci {

void OffloadFit::init(Offload (*fit_header)(NetHeader*, uint64_t), uint64_t features, uint32_t max_frame) {
  fit_header_ = fit_header;
  features_ = features;
  // Memory for those only that can be asked to complete one.
  NetHeader partial;
  partial.flags = kHdrNeedsCsum;
  if (fit_header(&partial, features) == Offload::kChecksum) linear_.resize(max_frame);
}

Offload OffloadFit::fit(const Burst& burst, const Packet& packet, NetHeader* header, Packet* replaced) {
  const uint32_t start = header->csum_start, offset = header->csum_offset;
  const Offload result = fit_header_(header, features_);
  if (result != Offload::kChecksum) return result;
  if (packet.length > linear_.size() || start + offset + 2 > packet.length) return Offload::kRefuse;
  copy_packet(linear_.data(), burst, packet);
  complete_checksum(linear_.data(), packet.length, static_cast<uint16_t>(start), static_cast<uint16_t>(offset));
  *replaced = {{linear_.data(), packet.length}, packet.length, 1, 0, *header};
  return result;
}

}  // namespace vpci
