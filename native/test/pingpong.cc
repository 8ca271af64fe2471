// How far apart two CPUs are at this moment: the benchmarks put every sample between two of these. Reads words
// from stdin and answers each with a number on a line: "line" gives the nanoseconds of a cache line's way there
// and back, "wake" the microseconds of one wake-up of a sleeping process by eventfd. Usage: pingpong CPU CPU
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

using Clock = std::chrono::steady_clock;
int cpus[2];

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) {
    std::perror("sched_setaffinity");
    std::exit(1);
  }
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs `other` in a child on the second CPU and `mine` here on the first: two processes, as device and driver
// are.
template <class Mine, class Other>
double with_other(Mine&& mine, Other&& other) {
  const pid_t child = fork();
  if (child < 0) {
    std::perror("fork");
    std::exit(1);
  }
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(cpus[1]);
    other();
    _exit(0);
  }
  pin(cpus[0]);
  const double result = mine();
  waitpid(child, nullptr, 0);
  return result;
}

struct alignas(128) Ball {
  std::atomic<uint32_t> v;
};

// The best of ten parts: what else runs on the CPUs makes a part longer, never shorter.
double line_round_trip(Ball* ball) {
  constexpr uint32_t kParts = 10, kRounds = 2000;
  ball->v = 0;
  auto mine = [ball] {
    double best = 1e9;
    for (uint32_t part = 0, i = 0; part < kParts; part++) {
      const auto start = Clock::now();
      for (uint32_t n = 0; n < kRounds; n++, i++) {
        ball->v.store(2 * i + 1, std::memory_order_release);
        while (ball->v.load(std::memory_order_acquire) != 2 * i + 2) {
        }
      }
      best = std::min(best, seconds_since(start) / kRounds * 1e9);
    }
    return best;
  };
  return with_other(mine, [ball] {
    for (uint32_t i = 0; i < kParts * kRounds; i++) {
      while (ball->v.load(std::memory_order_acquire) != 2 * i + 1) {
      }
      ball->v.store(2 * i + 2, std::memory_order_release);
    }
  });
}

void wait_for(int fd) {
  pollfd p = {fd, POLLIN, 0};
  uint64_t count;
  if (poll(&p, 1, -1) < 0 || read(fd, &count, sizeof count) < 0) std::exit(1);
}
void wake(int fd) {
  const uint64_t one = 1;
  if (write(fd, &one, sizeof one) < 0) std::exit(1);
}

// Both ends sleep in poll() and read the counter, as a worker does.
double wake_up() {
  constexpr uint32_t kRounds = 4000;
  const int there = eventfd(0, EFD_NONBLOCK), back = eventfd(0, EFD_NONBLOCK);
  auto mine = [&] {
    const auto start = Clock::now();
    for (uint32_t i = 0; i < kRounds; i++) {
      wake(there);
      wait_for(back);
    }
    return seconds_since(start) / kRounds / 2 * 1e6;
  };
  const double result = with_other(mine, [&] {
    for (uint32_t i = 0; i < kRounds; i++) {
      wait_for(there);
      wake(back);
    }
  });
  close(there);
  close(back);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "Usage: pingpong CPU CPU\n");
    return 2;
  }
  cpus[0] = std::atoi(argv[1]);
  cpus[1] = std::atoi(argv[2]);
  void* shared = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 1;
  char word[16];
  while (std::scanf("%15s", word) == 1) {
    const bool wakes = std::strcmp(word, "wake") == 0;
    std::printf("%.1f\n", wakes ? wake_up() : line_round_trip(static_cast<Ball*>(shared)));
    std::fflush(stdout);
  }
}
