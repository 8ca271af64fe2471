// Packets a second between a driver queue and a peer queue on two threads, for looking at the hot loops. Not
// a test and not a benchmark to quote: both ends are ours. Usage: ring_bench [samples] [frame bytes …] Every
// sample stands between two round trips of a cache line; samples whose two differ by more than a fifth,
// because the cores moved under a virtual machine, are thrown away, and so are those in which a thread waited
// for its core for more than a fiftieth of the time; the rest is grouped by round trip.
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <thread>

#include "../core/frame_copy.h"
#include "fixture.h"

using namespace vpci;
using namespace vpci::test;

namespace {

constexpr uint64_t kFeatures = kFeatureVersion1 | kFeatureIndirect;
std::atomic<bool> stop;

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

// Sends one template frame for ever.
void source(PortQueue& queue, uint32_t bytes) {
  Burst burst(64);
  std::vector<uint8_t> frame(bytes, 0x5a);
  for (Packet& p : burst.packets) p = {{frame.data(), bytes}, bytes, 1, 0, {}};
  while (!stop.load(std::memory_order_relaxed)) {
    burst.begin = 0;
    burst.end = Burst::kMax;
    uint32_t n = queue.send(burst);
    queue.flush();
    if (n == 0) __builtin_ia32_pause();
  }
}

// Copies every frame once.
void sink(PortQueue& queue) {
  Burst burst(1024);
  std::vector<uint8_t> buffer(65536 * 2);
  uint32_t at = 0;
  while (!stop.load(std::memory_order_relaxed)) {
    uint32_t n = queue.receive(burst);
    if (n == 0) {
      __builtin_ia32_pause();
      continue;
    }
    for (uint32_t i = 0; i < n; i++) {
      copy_packet(buffer.data() + at, burst, burst.packets[i]);
      at = (at + burst.packets[i].length) & 0xffff;
    }
    queue.release(burst, n);
    queue.flush();
  }
}

alignas(128) std::atomic<uint32_t> ball;

// Nanoseconds of a cache line's way there and back.
double round_trip() {
  constexpr uint32_t kRounds = 20000, kPart = 2000;
  double best = 1e9;
  ball = 0;
  std::thread other([] {
    pin(1);
    for (uint32_t i = 0; i < kRounds; i++) {
      while (ball.load(std::memory_order_acquire) != 2 * i + 1) {
      }
      ball.store(2 * i + 2, std::memory_order_release);
    }
  });
  pin(0);
  auto start = std::chrono::steady_clock::now();
  for (uint32_t i = 0; i < kRounds; i++) {
    ball.store(2 * i + 1, std::memory_order_release);
    while (ball.load(std::memory_order_acquire) != 2 * i + 2) {
    }
    if (i % kPart != kPart - 1) continue;
    auto now = std::chrono::steady_clock::now();
    best = std::min(best, std::chrono::duration<double>(now - start).count() / kPart * 1e9);
    start = now;
  }
  other.join();
  return best;
}

// Nanoseconds that the calling thread was ready and did not run.
uint64_t run_delay() {
  unsigned long long ran = 0, waited = 0;
  if (FILE* f = std::fopen("/proc/thread-self/schedstat", "r")) {
    if (std::fscanf(f, "%llu %llu", &ran, &waited) != 2) waited = 0;
    std::fclose(f);
  }
  return waited;
}
std::atomic<uint64_t> delayed;

double measure(PortQueue& from, PortQueue& to, uint32_t bytes) {
  stop = false;
  delayed = 0;
  std::thread a([&] {
    pin(0);
    uint64_t waited = run_delay();
    source(from, bytes);
    delayed += run_delay() - waited;
  });
  std::thread b([&] {
    pin(1);
    uint64_t waited = run_delay();
    sink(to);
    delayed += run_delay() - waited;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  uint64_t before = to.receive_stats.packets.get();
  auto start = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(80));
  uint64_t after = to.receive_stats.packets.get();
  double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  stop = true;
  a.join();
  b.join();
  return static_cast<double>(after - before) / took / 1e6;
}

}  // namespace

int main(int argc, char** argv) {
  int samples = argc > 1 ? std::atoi(argv[1]) : 20;
  std::vector<uint32_t> sizes;
  for (int i = 2; i < argc; i++) sizes.push_back(static_cast<uint32_t>(std::atoi(argv[i])));
  if (sizes.empty()) sizes = {64, 1518};
  for (uint64_t features : {kFeatures, kFeatures | kNetMrgRxbuf | kFeatureEventIdx}) {
    for (uint32_t bytes : sizes) {
      for (bool up : {true, false}) {
        std::map<int, std::vector<double>> by_distance;
        for (int i = 0; i < samples; i++) {
          Pair pair(256, 2048, features);
          double before = round_trip();
          double mpps =
              up ? measure(*pair.driver, *pair.peer, bytes) : measure(*pair.peer, *pair.driver, bytes);
          double after = round_trip();
          if (after < before * 0.8 || after > before * 1.2 || delayed > 2000000) continue;
          int near = before < 80    ? 50
                     : before < 170 ? 110
                     : before < 225 ? 200
                     : before < 300 ? 260
                     : before < 400 ? 350
                     : before < 700 ? 500
                                    : 1000;
          by_distance[near].push_back(mpps);
        }
        std::printf("%s %5u bytes, %s:", features & kNetMrgRxbuf ? "mrg+event" : "plain    ", bytes,
                    up ? "peer to us" : "us to peer");
        for (auto& [near, values] : by_distance) {
          std::sort(values.begin(), values.end());
          std::printf("  [~%d ns] %.1f median, %.1f best of %zu", near, values[values.size() / 2],
                      values.back(), values.size());
        }
        std::printf(" Mpps\n");
        std::fflush(stdout);
      }
    }
  }
}
