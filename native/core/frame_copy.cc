// A burst's copies in vectors of 32 or 16 bytes, chosen at run time: the binary runs on every CPU of its architecture.
// Vectors of 64 bytes are no better: frames are not aligned, and each store of such a vector takes two lines.
#include "frame_copy.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#define VPCI_TARGET(isa) __attribute__((target(isa)))
#endif

namespace vpci {

namespace {

// Beyond this the C library's ways are better.
constexpr uint32_t kLong = 8192;
// Beyond this the lines of a frame far ahead are asked for, one with each line that is copied: the CPU itself looks no
// further than the end of a frame, and a line of another CPU takes longer than some frames.
constexpr uint32_t kManyLines = 256, kAhead = 4;

void run_portable(const CopyList::Copy* copies, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) copy_bytes(copies[i].to, copies[i].from, copies[i].bytes);
}

#if defined(__x86_64__)
VPCI_TARGET("avx2") inline void move32(uint8_t* to, const uint8_t* from) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
}

VPCI_TARGET("avx2") void run_avx2(const CopyList::Copy* copies, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    const CopyList::Copy c = copies[i];  // no reference: the stores below might change what it refers to
    if (c.bytes < 32 || c.bytes > kLong) {
      copy_bytes(c.to, c.from, c.bytes);
      continue;
    }
    uint32_t at = 0;
    if (c.bytes > kManyLines && i + kAhead < n) {
      const CopyList::Copy ahead = copies[i + kAhead];
      for (const uint32_t end = std::min(c.bytes - 64, ahead.bytes); at < end; at += 64) {
        __builtin_prefetch(ahead.from + at);
        prefetch_for_write(ahead.to + at);
        move32(c.to + at, c.from + at);
        move32(c.to + at + 32, c.from + at + 32);
      }
    }
    for (; at + 32 < c.bytes; at += 32) move32(c.to + at, c.from + at);
    move32(c.to + c.bytes - 32, c.from + c.bytes - 32);
  }
}
#endif

}  // namespace

void CopyList::ask() const {
  for (uint32_t i = 0; i < std::min(kAhead, count_); i++) {
    if (copies_[i].bytes <= kManyLines) continue;
    for (uint32_t at = 0; at < copies_[i].bytes; at += 64) prefetch_for_write(copies_[i].to + at);
  }
}

std::vector<CopyList::Way> CopyList::ways() {
  std::vector<Way> ways;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) ways.push_back(run_avx2);
#endif
  ways.push_back(run_portable);
  return ways;
}

const CopyList::Way CopyList::best_ = CopyList::ways().front();

}  // namespace vpci
