// A native thread with a name and a CPU, on which no signal handler of the process runs (but those of
// faults).
#pragma once

#include <pthread.h>

#include <functional>
#include <string>

namespace vpci {

class Thread {
 public:
  Thread() = default;
  ~Thread() { join(); }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  // 0, or the errno of what failed: EINVAL for a CPU that is not there. `cpu` -1: any.
  int start(const std::string& name, int cpu, std::function<void()> body);
  // Returns once the body has returned. Idempotent.
  void join();

 private:
  static void* entry(void* self);

  pthread_t thread_{};
  bool joinable_ = false;
  std::function<void()> body_;
};

// What a thread sleeps on: an eventfd of its own that others signal.
class WakeFd {
 public:
  WakeFd();
  ~WakeFd();
  WakeFd(const WakeFd&) = delete;
  WakeFd& operator=(const WakeFd&) = delete;

  bool valid() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  void signal();
  void drain();
  // Early; nobody uses it any more.
  void close();

 private:
  int fd_;
};

// Tells the CPU that this is a spinning loop.
inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Monotonic nanoseconds.
uint64_t now_ns();

}  // namespace vpci
