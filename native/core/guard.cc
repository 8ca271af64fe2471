// SIGBUS handler. Only system calls and lock-free atomics: it runs in the middle of whatever thread met the
// hole.
#include "guard.h"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>

namespace vpci {
namespace {

// Each mapping of this process takes one; a device process has a few for each peer.
constexpr int kSlots = 4096;

// The range is valid while `mapping` is set. A thread that faults inside a mapping keeps it alive, so the
// slot that the handler looks for cannot change under it; other slots may, and then do not match.
struct Slot {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<Mapping*> mapping{nullptr};
};

Slot slots[kSlots];
std::atomic<int> slots_used{0};  // no slot at or behind this number was ever taken
std::mutex slots_mutex;          // for add and remove; the handler does not take it
bool installed = false;
struct sigaction previous;

void on_sigbus(int number, siginfo_t* info, void*) {
  int saved = errno;
  if (info->si_code > 0 && GuardSlots::cover(info->si_addr)) {
    errno = saved;
    return;
  }
  // Not ours. A fault comes again as soon as this returns, and then the previous handler has it; a signal
  // that somebody sent has to be sent again.
  ::sigaction(SIGBUS, &previous, nullptr);
  if (info->si_code <= 0) ::raise(number);
  errno = saved;
}

void install() {
  struct sigaction action = {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &previous);
  installed = true;
}

}  // namespace

bool GuardSlots::add(Mapping* mapping) {
  std::lock_guard lock(slots_mutex);
  if (!installed) install();
  for (int i = 0; i < kSlots; i++) {
    if (slots[i].mapping.load(std::memory_order_relaxed)) continue;
    uintptr_t begin = reinterpret_cast<uintptr_t>(mapping->data_);
    slots[i].begin.store(begin, std::memory_order_relaxed);
    slots[i].end.store(begin + mapping->mapped_, std::memory_order_relaxed);
    slots[i].mapping.store(mapping, std::memory_order_release);
    if (i >= slots_used.load(std::memory_order_relaxed)) slots_used.store(i + 1, std::memory_order_release);
    mapping->slot_ = i;
    return true;
  }
  return false;
}

void GuardSlots::remove(Mapping* mapping) {
  std::lock_guard lock(slots_mutex);
  if (mapping->slot_ < 0) return;
  slots[mapping->slot_].mapping.store(nullptr, std::memory_order_release);
  mapping->slot_ = -1;
}

bool GuardSlots::cover(const void* address) {
  uintptr_t at = reinterpret_cast<uintptr_t>(address);
  int used = slots_used.load(std::memory_order_acquire);
  for (int i = 0; i < used; i++) {
    Mapping* mapping = slots[i].mapping.load(std::memory_order_acquire);
    if (!mapping) continue;
    uintptr_t begin = slots[i].begin.load(std::memory_order_relaxed);
    uintptr_t end = slots[i].end.load(std::memory_order_relaxed);
    if (at < begin || at >= end) continue;
    // Two threads may get here for one mapping; the second puts fresh zero pages over the first's, which
    // loses nothing that is still worth anything.
    int protection = mapping->writable_ ? PROT_READ | PROT_WRITE : PROT_READ;
    void* zero = ::mmap(mapping->data_, mapping->mapped_, protection,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (zero == MAP_FAILED) return false;
    mapping->faulted_.store(true, std::memory_order_release);
    return true;
  }
  return false;
}

}  // namespace vpci
