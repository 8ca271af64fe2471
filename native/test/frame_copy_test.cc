// Every way to copy a burst, against memcpy: all short lengths at all alignments, and nothing beside the frame.
#include "../core/frame_copy.h"

#include "check.h"

using namespace vpci;

namespace {

constexpr uint32_t kRoom = 20000, kMargin = 128;

bool same(const std::vector<uint8_t>& to, const uint8_t* from, uint32_t offset, uint32_t bytes) {
  for (uint32_t i = 0; i < to.size(); i++) {
    const bool inside = i >= offset && i < offset + bytes;
    if (to[i] != (inside ? from[i - offset] : 0xee)) return false;
  }
  return true;
}

void compare(CopyList::Way way, uint32_t bytes, uint32_t to_offset, uint32_t from_offset,
             const std::vector<uint8_t>& source) {
  std::vector<uint8_t> to(bytes + 2 * kMargin, 0xee);
  const CopyList::Copy copy = {to.data() + to_offset, source.data() + from_offset, bytes};
  way(&copy, 1);
  if (!same(to, source.data() + from_offset, to_offset, bytes))
    CHECK_EQ(bytes, 0u);
}

std::vector<uint8_t> noise() {
  check::Random random(1);
  std::vector<uint8_t> source(kRoom);
  for (uint8_t& byte : source) byte = static_cast<uint8_t>(random.next());
  return source;
}

}  // namespace

TEST("every way copies every short length, whatever the alignment") {
  const std::vector<uint8_t> source = noise();
  for (CopyList::Way way : CopyList::ways())
    for (uint32_t bytes = 0; bytes <= 300; bytes++)
      for (uint32_t shift = 0; shift < 64; shift += 7) compare(way, bytes, shift, 64 - shift, source);
}

TEST("every way copies long frames") {
  const std::vector<uint8_t> source = noise();
  for (CopyList::Way way : CopyList::ways())
    for (uint32_t bytes : {1514u, 1518u, 4096u, 8191u, 8192u, 8193u, 9014u, 19000u})
      compare(way, bytes, 12, 3, source);
}

TEST("every way copies lists of frames of any lengths") {
  const std::vector<uint8_t> source = noise();
  check::Random r(3);
  constexpr uint32_t kSlot = 2048, kList = 8;
  for (CopyList::Way way : CopyList::ways())
    for (int round = 0; round < 300; round++) {
      const uint32_t n = static_cast<uint32_t>(r.below(kList + 1));
      std::vector<uint8_t> to(kList * kSlot, 0xee), expected = to;
      CopyList::Copy copies[kList];
      for (uint32_t i = 0; i < n; i++) {
        const uint32_t bytes = static_cast<uint32_t>(r.below(r.below(2) ? 1600 : 300)), at = i * kSlot + static_cast<uint32_t>(r.below(300));
        copies[i] = {to.data() + at, source.data() + r.below(kRoom - bytes), bytes};
        std::copy(copies[i].from, copies[i].from + bytes, expected.begin() + at);
      }
      way(copies, n);
      CHECK(to == expected);
    }
}

TEST("a list copies a whole burst in order and is empty afterwards") {
  const std::vector<uint8_t> source = noise();
  CopyList list;
  std::vector<uint8_t> to(200, 0xee);
  for (uint32_t i = 0; i < Burst::kMax; i++) list.add(to.data() + i, source.data() + i, 64);
  list.run();
  CHECK(same(to, source.data(), 0, Burst::kMax + 63));
  std::fill(to.begin(), to.end(), 0xee);
  list.run();
  CHECK(same(to, source.data(), 0, 0));
}
