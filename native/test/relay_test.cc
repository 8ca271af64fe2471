// The relay: signals from eventfd to eventfd and from doorbell words, and when its thread spins and sleeps.
#include "../core/relay.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "../core/notify.h"
#include "../core/thread.h"
#include "check.h"
#include "readable.h"

namespace vpci::test {
namespace {

// The shared page of a device with one doorbell.
struct Doorbells {
  int fd = memfd_create("page", MFD_CLOEXEC);
  std::shared_ptr<Mapping> mapping;
  uint32_t *sleep, *bell;

  Doorbells() {
    CHECK_EQ(ftruncate(fd, 8192), 0);
    mapping = Mapping::create(fd, 0, 8192, true);
    sleep = reinterpret_cast<uint32_t*>(mapping->data());
    bell = reinterpret_cast<uint32_t*>(mapping->data() + 4096);
  }
  ~Doorbells() { close(fd); }
};

}  // namespace

TEST("relay: forwards come and go while signals fly, and none is forwarded after remove") {
  Relay relay;
  CHECK_EQ(relay.start(), 0);
  std::atomic<bool> run{true};
  const int from = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::thread ringer([&] {
    const uint64_t one = 1;
    while (run) {
      [[maybe_unused]] const ssize_t n = write(from, &one, sizeof one);
    }
  });
  uint64_t count;
  for (int turn = 0; turn < 200; turn++) {
    const int to = eventfd(0, EFD_CLOEXEC);  // a blocking one must not stop the relay
    const int64_t id = relay.add(from, to);
    CHECK(id > 0);
    CHECK(readable(to, 5000));
    CHECK(relay.remove(id));
    CHECK_EQ(read(to, &count, sizeof count), sizeof count);
    CHECK(!readable(to, turn % 20 == 0 ? 2 : 0));
    CHECK(!relay.remove(id));
    close(to);
  }
  run = false;
  ringer.join();
  close(from);
}

TEST("relay: a signal that comes while the one before it is passed on is not lost, nor is that of a shared source") {
  Relay relay;
  CHECK_EQ(relay.start(), 0);
  const int from = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  const int to[] = {eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  for (const int fd : to) CHECK(relay.add(from, fd) > 0);
  const uint64_t one = 1;
  uint64_t count;
  // The answer to a signal comes within a microsecond. On a machine where each turn takes long there are fewer of them.
  const uint64_t end = now_ns() + 2'000'000'000;
  bool heard = true;
  for (int turn = 0; turn < 20000 && heard && now_ns() < end; turn++) {
    CHECK_EQ(write(from, &one, sizeof one), sizeof one);
    for (const int fd : to) {
      const uint64_t last = now_ns() + 5'000'000'000;
      while (!(heard = read(fd, &count, sizeof count) > 0) && now_ns() < last) {
      }
      CHECK(heard);
    }
  }
  relay.stop();
  for (const int fd : {from, to[0], to[1]}) close(fd);
}

TEST("relay: a semaphore whose counter was set high is one signal, and the next write is another") {
  Relay relay;
  CHECK_EQ(relay.start(), 0);
  const int from = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
  const int to = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  CHECK(relay.add(from, to) > 0);
  uint64_t count = uint64_t{1} << 62;
  for (uint64_t signals = 1; signals <= 3; signals++) {
    CHECK_EQ(write(from, &count, sizeof count), sizeof count);
    count = 1;
    CHECK(readable(to, 5000));
    usleep(20000);
    CHECK_EQ(relay.stats.forwarded.get(), signals);
    uint64_t got;
    CHECK_EQ(read(to, &got, sizeof got), sizeof got);
  }
  relay.stop();
  close(from);
  close(to);
}

TEST("relay: no doorbell is lost between looking and sleeping") {
  const Doorbells page;
  Relay relay;
  CHECK_EQ(relay.start(), 0);
  const int to = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), trap = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  const int nobody = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  CHECK(relay.add(trap, nobody) > 0);
  CHECK(relay.add_doorbell(page.mapping, page.bell, to) > 0);
  relay.set_sleep_word(page.mapping, page.sleep);
  NotifyOptions options;
  options.fd = trap;
  options.doorbell = page.mapping;
  options.doorbell_offset = 4096;
  options.sleep_offset = 0;
  NotifyTarget target;
  std::string error;
  CHECK(target.init(options, &error));
  check::Random random(11);
  uint64_t count;
  for (int turn = 0; turn < 3000; turn++) {
    target.signal();
    CHECK(readable(to, 5000));
    CHECK_EQ(read(to, &count, sizeof count), sizeof count);
    for (uint64_t spin = random.below(4000); spin > 0; spin--) cpu_pause();
  }
  CHECK_EQ(relay.stats.doorbells.get(), 3000);
  relay.stop();
  CHECK_EQ(__atomic_load_n(page.sleep, __ATOMIC_ACQUIRE) & 1, 1);
  for (const int open : {to, trap, nobody}) close(open);
}

TEST("relay: it spins after wake-ups where drivers ring, in any way, and not where they do not") {
  const Doorbells page;
  Relay relay;
  CHECK_EQ(relay.start(), 0);
  const int kick = eventfd(0, EFD_CLOEXEC), bell_fd = eventfd(0, EFD_CLOEXEC), to = eventfd(0, EFD_CLOEXEC);
  CHECK(relay.add(kick, to) > 0);
  const int64_t id = relay.add_doorbell(page.mapping, page.bell, to, bell_fd);
  CHECK(id > 0);
  relay.set_sleep_word(page.mapping, page.sleep);
  const auto wait = [](auto&& done) {
    const uint64_t until = now_ns() + 5'000'000'000;
    while (!done() && now_ns() < until) cpu_pause();
    CHECK(done());
  };
  // The spins so far, once the thread has passed on a signal and sleeps again.
  const auto signal = [&](int from) {
    const uint64_t forwarded = relay.stats.forwarded.get(), one = 1;
    CHECK_EQ(write(from, &one, sizeof one), sizeof one);
    wait([&] { return relay.stats.forwarded.get() == forwarded + 1; });
    std::atomic_thread_fence(std::memory_order_acquire);
    wait([&] { return (__atomic_load_n(page.sleep, __ATOMIC_ACQUIRE) & 1) != 0; });
    return relay.stats.spins.get();
  };
  signal(kick);  // the calls above wake the thread as well, up to here
  const uint64_t spins = signal(kick);
  CHECK_EQ(signal(kick), spins);
  __atomic_fetch_add(page.bell, 1, __ATOMIC_RELEASE);  // seen at the next wake-up
  signal(kick);
  CHECK_EQ(relay.stats.doorbells.get(), 1);
  CHECK_EQ(signal(kick), spins + 1);
  CHECK_EQ(signal(kick), spins + 1);
  CHECK_EQ(signal(bell_fd), spins + 2);
  CHECK_EQ(signal(kick), spins + 2);
  CHECK(relay.ring(id));  // the trapped register, on this thread
  CHECK_EQ(signal(kick), spins + 3);
  CHECK_EQ(signal(kick), spins + 3);
  relay.stop();
  for (const int open : {kick, bell_fd, to}) close(open);
}

}  // namespace vpci::test
