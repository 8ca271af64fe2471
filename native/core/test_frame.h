// The frames that a source makes and a sink verifies: an Ethernet header with ethertype 0x88b5 (IEEE 802:
// local experiments), StreamHeader, then a pattern that the sequence number determines. Every byte of the
// frame takes part: the two MAC addresses and the header through a sum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace vpci::test_frame {

constexpr uint32_t kEthernetBytes = 14;
constexpr uint32_t kMagic = 0x74706376;  // "vcpt"
constexpr uint8_t kEthertype[2] = {0x88, 0xb5};

struct StreamHeader {
  uint32_t magic;
  uint32_t stream;
  uint64_t sequence;  // 0 for the first packet of a stream
  uint32_t length;    // of the whole frame
  uint32_t sum;       // header_sum
};
static_assert(sizeof(StreamHeader) == 24);

constexpr uint32_t kPatternAt = kEthernetBytes + sizeof(StreamHeader);
constexpr uint32_t kMinBytes = kPatternAt;

// Over the two MAC addresses and the fields: a changed bit changes the product above it, and so the folded
// sum.
inline uint32_t header_sum(const uint8_t* frame, uint64_t sequence, uint32_t length) {
  uint64_t first, second;
  memcpy(&first, frame, 8);
  memcpy(&second, frame + 6, 8);
  const uint64_t sum = first * 0x9e3779b97f4a7c15u ^ second * 0xd6e8feb86659fd93u ^
                       (sequence + 1) * 0xa0761d6478bd642fu ^ length * 0xe7037ed1a0b428dbu;
  return static_cast<uint32_t>(sum ^ sum >> 32);
}

// Two neighbouring sequences share no word, and no byte of a word is constant.
inline uint64_t pattern_base(uint64_t sequence) { return (sequence + 1) * 0x9e3779b97f4a7c15u; }
constexpr uint64_t kPatternStep = 0xd1b54a32d192ed03u;

inline void write_pattern(uint8_t* at, uint32_t length, uint64_t sequence) {
  uint64_t word = pattern_base(sequence);
  const uint32_t words = length / 8;
  for (uint32_t i = 0; i < words; i++) {
    const uint64_t value = word + i * kPatternStep;
    memcpy(at + 8 * i, &value, 8);
  }
  word += words * kPatternStep;
  memcpy(at + 8 * words, &word, length % 8);
}

inline bool check_pattern(const uint8_t* at, uint32_t length, uint64_t sequence) {
  uint64_t word = pattern_base(sequence);
  const uint32_t words = length / 8;
  uint64_t wrong = 0;  // no branch in the loop, so that the compiler can use vectors
  for (uint32_t i = 0; i < words; i++) {
    uint64_t value;
    memcpy(&value, at + 8 * i, 8);
    wrong |= value ^ (word + i * kPatternStep);
  }
  word += words * kPatternStep;
  return wrong == 0 && memcmp(at + 8 * words, &word, length % 8) == 0;
}

}  // namespace vpci::test_frame
