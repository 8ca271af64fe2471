// Copies of frames. A burst's copies are collected and done in one call, with wide vectors where the CPU has them, and
// with the lines of later frames asked for meanwhile: many lines that another CPU owns are on their way at a time. Single
// copies, of what is not a frame in one piece, are inline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "packet.h"
#include "prefetch.h"

namespace vpci {

template <size_t N>
inline void copy_fixed(uint8_t* to, const uint8_t* from) {
  __builtin_memcpy(to, from, N);
}

inline void copy_bytes(uint8_t* to, const uint8_t* from, size_t n) {
  if (__builtin_expect(n > 256, 0)) {
    std::memcpy(to, from, n);
  } else if (n >= 32) {
    // The last move overlaps the one before, so no size needs a loop over bytes.
    for (size_t i = 0; i + 32 < n; i += 32) copy_fixed<32>(to + i, from + i);
    copy_fixed<32>(to + n - 32, from + n - 32);
  } else if (n >= 16) {
    copy_fixed<16>(to, from);
    copy_fixed<16>(to + n - 16, from + n - 16);
  } else if (n >= 8) {
    copy_fixed<8>(to, from);
    copy_fixed<8>(to + n - 8, from + n - 8);
  } else {
    for (size_t i = 0; i < n; i++) to[i] = from[i];
  }
}

// The frame of `packet` as one run of packet.length bytes at `to`.
inline void copy_packet(uint8_t* to, const Burst& burst, const Packet& packet) {
  copy_bytes(to, packet.first.data, packet.first.length);
  to += packet.first.length;
  for (uint32_t i = 1; i < packet.segments; i++) {
    const Segment& s = burst.extra[packet.more + i - 1];
    copy_bytes(to, s.data, s.length);
    to += s.length;
  }
}

// The copies of a burst, done in order when it is complete. The memory on both sides has to stay until then.
class CopyList {
 public:
  struct Copy {
    uint8_t* to;
    const uint8_t* from;
    uint32_t bytes;
  };
  using Way = void (*)(const Copy* copies, uint32_t n);

  // No more of them than a burst has packets.
  void add(uint8_t* to, const uint8_t* from, uint32_t bytes) { copies_[count_++] = {to, from, bytes}; }
  // Asks for the lines that the first of them write, so that something else can be done until they come.
  void ask() const;
  void run() {
    best_(copies_, count_);
    count_ = 0;
  }
  // Those that have not run.
  std::span<const Copy> pending() const { return {copies_, count_}; }

  // The ways that this CPU has, the best first.
  static std::vector<Way> ways();

 private:
  static const Way best_;

  Copy copies_[Burst::kMax];
  uint32_t count_ = 0;
};

}  // namespace vpci
