// Header rules. Nothing here runs for a packet whose header is all zero.
#include "net_header.h"

namespace vpci {
namespace {

// Feature bits that a gso_type needs; 0 for types that do not exist. Index 0: towards a device, 1: towards a
// driver.
struct GsoRule {
  uint8_t type;
  uint64_t needs[2];
  uint64_t ecn[2];
};
constexpr GsoRule kGsoRules[] = {
    {kGsoTcp4, {kNetHostTso4, kNetGuestTso4}, {kNetHostEcn, kNetGuestEcn}},
    {kGsoTcp6, {kNetHostTso6, kNetGuestTso6}, {kNetHostEcn, kNetGuestEcn}},
    {kGsoUdp, {kNetHostUfo, kNetGuestUfo}, {0, 0}},
    // The header does not say which IP it is.
    {kGsoUdpL4, {kNetHostUso, kNetGuestUso4 | kNetGuestUso6}, {0, 0}},
};
constexpr uint64_t kChecksumFeature[2] = {kNetCsum, kNetGuestCsum};
enum Towards : unsigned { kDevice, kDriver };

bool gso_negotiated(uint8_t gso_type, uint64_t features, Towards to) {
  for (const GsoRule& r : kGsoRules) {
    if (r.type != (gso_type & ~kGsoEcn)) continue;
    if ((features & r.needs[to]) != r.needs[to]) return false;
    return !(gso_type & kGsoEcn) || (features & r.ecn[to]) != 0;
  }
  return false;
}

bool check(NetHeader* h, uint32_t length, uint64_t features, Towards to) {
  uint8_t known = 0;
  if (features & kChecksumFeature[to]) known = to == kDriver ? kHdrNeedsCsum | kHdrDataValid : kHdrNeedsCsum;
  h->flags &= known;  // VIRTIO 1.3, 5.1.6.2.2: flags that were not negotiated are ignored
  h->num_buffers = 0;
  uint32_t checksum_end = 0;
  if (h->flags & kHdrNeedsCsum) {
    checksum_end = static_cast<uint32_t>(h->csum_start) + h->csum_offset + 2;
    if (checksum_end > length) return false;
  } else {
    h->csum_start = h->csum_offset = 0;
  }
  if (h->hdr_len > length) return false;
  if (h->gso_type == kGsoNone) {
    h->hdr_len = h->gso_size = 0;
    return true;
  }
  if (!gso_negotiated(h->gso_type, features, to) || h->gso_size == 0) return false;
  // VIRTIO 1.3, 5.1.6.2.1: GSO comes with NEEDS_CSUM
  if (!(h->flags & kHdrNeedsCsum)) return false;
  // hdr_len is a hint (5.1.6.2.2); the checksum field is a header for certain.
  if (h->hdr_len < checksum_end) h->hdr_len = static_cast<uint16_t>(checksum_end);
  return true;
}

Offload fit(NetHeader* h, uint64_t features, Towards to) {
  bool checksum = (features & kChecksumFeature[to]) != 0;
  if (h->gso_type != kGsoNone && (!checksum || !gso_negotiated(h->gso_type, features, to)))
    return Offload::kRefuse;
  if (checksum) {
    // VIRTIO 1.3, 5.1.6.2.1: a driver does not set DATA_VALID
    h->flags &= to == kDriver ? kHdrNeedsCsum | kHdrDataValid : kHdrNeedsCsum;
    return Offload::kPass;
  }
  bool incomplete = h->flags & kHdrNeedsCsum;
  *h = NetHeader{};
  return incomplete ? Offload::kChecksum : Offload::kPass;
}

}  // namespace

bool check_from_driver(NetHeader* header, uint32_t length, uint64_t features) {
  return check(header, length, features, kDevice);
}
bool check_from_device(NetHeader* header, uint32_t length, uint64_t features) {
  return check(header, length, features, kDriver);
}
Offload fit_for_driver(NetHeader* header, uint64_t features) { return fit(header, features, kDriver); }
Offload fit_for_device(NetHeader* header, uint64_t features) { return fit(header, features, kDevice); }

void complete_checksum(uint8_t* frame, uint32_t length, uint16_t start, uint16_t offset) {
  // RFC 1071: the sum does not depend on the byte order it is computed in.
  const uint8_t* p = frame + start;
  uint32_t left = length - start;
  uint64_t sum = 0;
  for (; left >= 4; left -= 4, p += 4) sum += load_once32(p);
  if (left >= 2) {
    sum += load_once16(p);
    p += 2;
    left -= 2;
  }
  if (left) sum += *p;
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  uint16_t value = static_cast<uint16_t>(~sum);
  // 0 means "no checksum" to UDP, and is the same number as 0xffff to everybody else.
  store16(frame + start + offset, value ? value : 0xffff);
}

}  // namespace vpci
