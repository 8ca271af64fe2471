// How far apart two CPUs are at this moment: the benchmarks put every sample between two of these. Reads words
// from stdin and answers each with a number on a line: "line" gives the nanoseconds of a cache line's way there
// and back; "wake" the microseconds from the signal of an eventfd on the first CPU to the wake-up of a process that sleeps on it
// on the second; "ring BYTES AVAILABLE USED" those from the kick of a ring to the return of a packet, where fd 3 is the ring's
// memory, with its indices at these offsets, and fd 4 its kick. Usage: pingpong CPU CPU
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
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

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
  if (std::isnan(result)) kill(child, SIGKILL);  // it waits for what does not come
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

constexpr uint32_t kWakeUps = 1000;

// The median time from `kick` to `answered`, in microseconds, on the clock of the end that makes both, or NAN when one is not
// answered. Before each the other end is `asleep`, as far as one can tell, and the pause lets all fall asleep that is between the
// two: a relay looks around for 20 µs. That this end stays awake keeps its own wake-up out.
template <class Asleep, class Kick, class Answered>
double wake_up(Asleep&& asleep, Kick&& kick, Answered&& answered) {
  constexpr double kPauseSeconds = 60e-6, kMostSeconds = 2;
  std::vector<double> times;
  while (times.size() < kWakeUps) {
    for (const auto start = Clock::now(); seconds_since(start) < kPauseSeconds || !asleep();) {
      if (seconds_since(start) > kMostSeconds) return NAN;
    }
    const auto start = Clock::now();
    kick();
    while (!answered()) {
      if (seconds_since(start) > kMostSeconds) return NAN;
    }
    times.push_back(seconds_since(start) * 1e6);
  }
  std::nth_element(times.begin(), times.begin() + kWakeUps / 2, times.end());
  return times[kWakeUps / 2];
}

void signal(int fd) {
  const uint64_t one = 1;
  if (write(fd, &one, sizeof one) < 0) std::exit(1);
}

// A process that sleeps in poll(), as a worker does, and answers in memory before it reads the counter. A semaphore: when the
// next signal comes before that, it is another one all the same.
double bare_wake_up(Ball* ball) {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE);
  uint32_t sent = 0;
  ball->v = 0;
  auto mine = [&] {
    return wake_up([] { return true; }, [&] { sent++, signal(fd); },
                   [&] { return ball->v.load(std::memory_order_acquire) == sent; });
  };
  const double result = with_other(mine, [&] {
    for (uint32_t i = 1; i <= kWakeUps; i++) {
      pollfd p = {fd, POLLIN, 0};
      if (poll(&p, 1, -1) < 0) std::exit(1);
      ball->v.store(i, std::memory_order_release);
      uint64_t count;
      if (read(fd, &count, sizeof count) < 0) std::exit(1);
    }
  });
  close(fd);
  return result;
}

// A driver that sleeps on a split ring, whose entries are ready to be made available once more. The flags of the used ring, in
// front of its index, say whether the driver asks for kicks.
double ring_wake_up(size_t bytes, size_t available, size_t used) {
  constexpr int kMemory = 3, kKick = 4;
  pin(cpus[0]);
  auto* const memory =
      static_cast<uint8_t*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, kMemory, 0));
  if (memory == MAP_FAILED) std::exit(1);
  using Word = std::atomic<uint16_t>;
  auto* const available_index = reinterpret_cast<Word*>(memory + available);
  auto* const used_index = reinterpret_cast<Word*>(memory + used);
  auto* const used_flags = used_index - 1;
  uint16_t sent = used_index->load();
  const double result = wake_up([&] { return used_flags->load() == 0; },
                                [&] {
                                  available_index->store(++sent, std::memory_order_release);
                                  signal(kKick);
                                },
                                [&] { return used_index->load(std::memory_order_acquire) == sent; });
  munmap(memory, bytes);
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
  auto* const ball = static_cast<Ball*>(shared);
  char line[80];
  while (std::fgets(line, sizeof line, stdin)) {
    size_t bytes, available, used;
    double answer;
    if (std::sscanf(line, "ring %zu %zu %zu", &bytes, &available, &used) == 3) {
      answer = ring_wake_up(bytes, available, used);
    } else if (std::strcmp(line, "wake\n") == 0) {
      answer = bare_wake_up(ball);
    } else if (std::strcmp(line, "line\n") == 0) {
      answer = line_round_trip(ball);
    } else {
      std::fprintf(stderr, "pingpong: no such word: %s", line);
      return 2;
    }
    std::printf("%.2f\n", answer);
    std::fflush(stdout);
  }
}
