// Asking for cache lines ahead of their use.
#pragma once

namespace vpci {

// Takes a line away from the CPU that has it, ahead of a store. For a CPU that may be any x86-64 the compiler's builtin
// is a read prefetch, which leaves the line shared; a CPU that does not know PREFETCHW takes it for a NOP.
inline void prefetch_for_write(const void* p) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(p)));
#else
  __builtin_prefetch(p, 1);
#endif
}

}  // namespace vpci
