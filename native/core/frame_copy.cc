// A burst's copies in vectors of 64, 32 or 16 bytes, chosen at run time: the binary runs on every CPU of its
// architecture.
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
// Beyond this the lines of a frame far ahead are asked for while one is copied: the CPU itself looks no further than
// the end of a frame, and a line of another CPU takes longer than a frame.
constexpr uint32_t kManyLines = 256, kAhead = 2;

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

// All loads come before the stores: a load waits for an earlier store whose address has the same low bits.
VPCI_TARGET("avx512f") inline void move256(uint8_t* to, const uint8_t* from) {
  const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + 64);
  const __m512i c = _mm512_loadu_si512(from + 128), d = _mm512_loadu_si512(from + 192);
  _mm512_storeu_si512(to, a);
  _mm512_storeu_si512(to + 64, b);
  _mm512_storeu_si512(to + 128, c);
  _mm512_storeu_si512(to + 192, d);
}

// What is left behind the last whole vector goes through a mask: no store touches a line twice.
VPCI_TARGET("avx512f,avx512bw") void run_avx512(const CopyList::Copy* copies, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    const CopyList::Copy c = copies[i];
    if (c.bytes > kLong) {
      std::memcpy(c.to, c.from, c.bytes);
      continue;
    }
    uint32_t at = 0;
    for (; at + 256 <= c.bytes; at += 256) move256(c.to + at, c.from + at);
    for (; at + 64 <= c.bytes; at += 64) _mm512_storeu_si512(c.to + at, _mm512_loadu_si512(c.from + at));
    const __mmask64 rest = (1ull << (c.bytes - at)) - 1;
    if (rest) _mm512_mask_storeu_epi8(c.to + at, rest, _mm512_maskz_loadu_epi8(rest, c.from + at));
  }
}
#endif

}  // namespace

std::vector<CopyList::Way> CopyList::ways() {
  std::vector<Way> ways;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) ways.push_back(run_avx512);
  if (__builtin_cpu_supports("avx2")) ways.push_back(run_avx2);
#endif
  ways.push_back(run_portable);
  return ways;
}

const CopyList::Way CopyList::best_ = CopyList::ways().front();

}  // namespace vpci
