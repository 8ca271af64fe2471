#include "thread.h"

#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace vpci {

int Thread::start(const std::string& name, int cpu, std::function<void()> body) {
  pthread_attr_t attributes;
  int failed = pthread_attr_init(&attributes);
  if (failed) return failed;
  if (cpu >= CPU_SETSIZE) failed = EINVAL;
  if (!failed && cpu >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    failed = pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
  }
  // The thread inherits this mask. A fault's signal must stay open: a blocked one ends the process.
  sigset_t all, before;
  sigfillset(&all);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  body_ = std::move(body);
  if (!failed) failed = pthread_create(&thread_, &attributes, entry, this);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (failed) return failed;
  joinable_ = true;
  pthread_setname_np(thread_, name.substr(0, 15).c_str());
  return 0;
}

void Thread::join() {
  if (!joinable_) return;
  pthread_join(thread_, nullptr);
  joinable_ = false;
}

void* Thread::entry(void* self) {
  static_cast<Thread*>(self)->body_();
  return nullptr;
}

WakeFd::WakeFd() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

WakeFd::~WakeFd() { close(); }

void WakeFd::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void WakeFd::signal() {
  const uint64_t one = 1;
  // A full counter is as good as one more.
  [[maybe_unused]] const ssize_t done = write(fd_, &one, sizeof one);
}

void WakeFd::drain() {
  uint64_t count;
  [[maybe_unused]] const ssize_t done = read(fd_, &count, sizeof count);
}

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

}  // namespace vpci
