// struct virtio_net_hdr (VIRTIO 1.3, 5.1.6): what a received header may say, and what a destination that
// negotiated less can be told. Knows no ring.
#pragma once

#include <cstdint>

#include "packet.h"
#include "split_layout.h"
#include "stats.h"

namespace vpci {

enum : uint8_t { kHdrNeedsCsum = 1, kHdrDataValid = 2 };
enum : uint8_t { kGsoNone = 0, kGsoTcp4 = 1, kGsoUdp = 3, kGsoTcp6 = 4, kGsoUdpL4 = 5, kGsoEcn = 0x80 };

// VIRTIO 1.3, 5.1.3
constexpr uint64_t kNetCsum = 1ull << 0;
constexpr uint64_t kNetGuestCsum = 1ull << 1;
constexpr uint64_t kNetGuestTso4 = 1ull << 7;
constexpr uint64_t kNetGuestTso6 = 1ull << 8;
constexpr uint64_t kNetGuestEcn = 1ull << 9;
constexpr uint64_t kNetGuestUfo = 1ull << 10;
constexpr uint64_t kNetHostTso4 = 1ull << 11;
constexpr uint64_t kNetHostTso6 = 1ull << 12;
constexpr uint64_t kNetHostEcn = 1ull << 13;
constexpr uint64_t kNetHostUfo = 1ull << 14;
constexpr uint64_t kNetMrgRxbuf = 1ull << 15;
constexpr uint64_t kNetGuestUso4 = 1ull << 54;
constexpr uint64_t kNetGuestUso6 = 1ull << 55;
constexpr uint64_t kNetHostUso = 1ull << 56;

constexpr uint32_t kMinFrame = 14;            // an Ethernet header
constexpr uint32_t kDefaultMaxFrame = 65550;  // 64 KiB of IP behind an Ethernet header

// VIRTIO 1.3, 5.1.6.1: without VERSION_1 and MRG_RXBUF there is no num_buffers.
constexpr uint32_t net_header_bytes(uint64_t features) {
  return features & (kFeatureVersion1 | kNetMrgRxbuf) ? 12 : 10;
}

// The 12 bytes as the ring code carries them: flags … csum_start in `low`, csum_offset and num_buffers in
// `high`.
struct HeaderWords {
  uint64_t low;
  uint32_t high;
};
inline HeaderWords header_words(const NetHeader& h) {
  HeaderWords w;
  std::memcpy(&w.low, &h, 8);
  std::memcpy(&w.high, reinterpret_cast<const uint8_t*>(&h) + 8, 4);
  return w;
}
inline NetHeader header_of(HeaderWords w) {
  NetHeader h;
  std::memcpy(static_cast<void*>(&h), &w.low, 8);
  std::memcpy(reinterpret_cast<uint8_t*>(&h) + 8, &w.high, 4);
  return h;
}

// Checks the header of a frame of `length` bytes that a driver gave to a device that negotiated `features`,
// and clears what has no meaning there (VIRTIO 1.3, 5.1.6.2). False: the fields are impossible.
bool check_from_driver(NetHeader* header, uint32_t length, uint64_t features);

// The same for a header that a device gave to a driver (VIRTIO 1.3, 5.1.6.4).
bool check_from_device(NetHeader* header, uint32_t length, uint64_t features);

enum class Offload : uint8_t {
  kPass,      // header is what the destination may see
  kChecksum,  // the checksum has to be completed, then the header is what the destination may see
  kRefuse,    // the destination cannot take this packet
};
// Fits a checked header to a driver that negotiated `features` (VIRTIO 1.3, 5.1.6.4.1).
Offload fit_for_driver(NetHeader* header, uint64_t features);
// Fits a checked header to a device that negotiated `features` (VIRTIO 1.3, 5.1.6.2.1).
Offload fit_for_device(NetHeader* header, uint64_t features);

// Completes a partial checksum in place; start + offset + 2 <= length (VIRTIO 1.3, 5.1.6.2).
void complete_checksum(uint8_t* frame, uint32_t length, uint16_t start, uint16_t offset);

}  // namespace vpci
