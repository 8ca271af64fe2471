#include "relay.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace vpci {
namespace {

constexpr uint64_t kSpinNs = 20000;  // a sleep costs about as much
constexpr int kEvents = 64;

// Another process may have left a target blocking, and this thread serves many peers.
void set_nonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags >= 0 && !(flags & O_NONBLOCK)) fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

}  // namespace

Relay::~Relay() {
  stop();
  if (epoll_ >= 0) close(epoll_);  // of a start that failed
}

int Relay::start() {
  if (!wake_.valid()) return EMFILE;
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return errno;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_.fd(), &event) != 0) return errno;
  running_.store(true);
  const int failed = thread_.start("vhost-pci relay", -1, [this] { loop(); });
  if (failed) running_.store(false);
  return failed;
}

int64_t Relay::add(int from, int to) {
  Forward forward;
  if (!forward.from.duplicate(from, nullptr) || !forward.to.duplicate(to, nullptr)) return -errno;
  set_nonblocking(forward.to.get());
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t id = next_id_++;
  const int failed = watch(id, forward.from);
  if (failed) return -failed;
  forwards_.emplace(id, std::move(forward));
  return id;
}

int64_t Relay::add_doorbell(std::shared_ptr<Mapping> mapping, uint32_t* word, int to, int from) {
  Doorbell doorbell{std::move(mapping), word, __atomic_load_n(word, __ATOMIC_ACQUIRE), {}, {}};
  if (!doorbell.from.duplicate(from, nullptr) || !doorbell.to.duplicate(to, nullptr)) return -errno;
  set_nonblocking(doorbell.to.get());
  int64_t id;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    id = next_id_++;
    const int failed = from >= 0 ? watch(id, doorbell.from) : 0;
    if (failed) return -failed;
    doorbells_.emplace(id, std::move(doorbell));
  }
  wake_.signal();  // the thread sleeps on the words that it knew
  return id;
}

bool Relay::ring(int64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto place = doorbells_.find(id);
  if (place == doorbells_.end()) return false;
  place->second.last = __atomic_load_n(place->second.word, __ATOMIC_ACQUIRE);
  place->second.to.signal();
  rung_ = true;
  return true;
}

// 0 or errno.
int Relay::watch(int64_t id, const OwnFd& from) {
  epoll_event event{};
  // Edge-triggered: each write of an eventfd is one event, whatever its counter is. Reading it would cost a system call for each
  // signal, and behind the signal it would swallow what was written in between.
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = static_cast<uint64_t>(id);
  return epoll_ctl(epoll_, EPOLL_CTL_ADD, from.get(), &event) == 0 ? 0 : errno;
}

void Relay::unwatch(const OwnFd& from) {
  if (from.get() >= 0) epoll_ctl(epoll_, EPOLL_CTL_DEL, from.get(), nullptr);
}

void Relay::set_sleep_word(std::shared_ptr<Mapping> mapping, uint32_t* word) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    sleep_mapping_ = std::move(mapping);
    sleep_word_ = word;
  }
  wake_.signal();
}

bool Relay::remove(int64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto place = forwards_.find(id); place != forwards_.end()) {
    unwatch(place->second.from);
    forwards_.erase(place);
    return true;
  }
  const auto place = doorbells_.find(id);
  if (place == doorbells_.end()) return false;
  unwatch(place->second.from);
  doorbells_.erase(place);
  return true;
}

void Relay::stop() {
  if (!running_.exchange(false)) return;
  wake_.signal();
  thread_.join();
  forwards_.clear();
  doorbells_.clear();
  sleep_mapping_.reset();
  sleep_word_ = nullptr;
  wake_.close();
  close(epoll_);
  epoll_ = -1;
}

void Relay::loop() {
  epoll_event events[kEvents];
  uint64_t last_change = 0;
  // Look at the words for a while: a driver that rings again needs no system call then. Where none rings, this would only take
  // a CPU, perhaps that of whoever waits for the answer.
  bool spin = false;
  while (running_.load(std::memory_order_acquire)) {
    bool rang = scan_doorbells();
    if (!rang && !spin) {
      set_sleeping(true);
      rang = scan_doorbells();  // P6: once more, behind the fence
      if (!rang) {
        const int n = epoll_wait(epoll_, events, kEvents, -1);
        stats.wakeups.add(1);
        set_sleeping(false);
        take(events, n);
        last_change = now_ns();
        spin = take_rung();
        if (spin) stats.spins.add(1);
        continue;
      }
      set_sleeping(false);
    }
    if (rang) {
      spin = true;
      last_change = now_ns();
    } else if (now_ns() - last_change >= kSpinNs) {
      spin = false;
    }
    take(events, epoll_wait(epoll_, events, kEvents, 0));
    for (int i = 0; i < 16; i++) cpu_pause();
  }
  set_sleeping(true);
}

void Relay::take(const epoll_event* events, int n) {
  for (int i = 0; i < n; i++) {
    if (events[i].data.u64 == 0) {
      wake_.drain();
    } else {
      forward(static_cast<int64_t>(events[i].data.u64));
    }
  }
}

bool Relay::scan_doorbells() {
  const std::lock_guard<std::mutex> lock(mutex_);
  bool changed = false;
  for (auto& [id, doorbell] : doorbells_) {
    const uint32_t now = __atomic_load_n(doorbell.word, __ATOMIC_ACQUIRE);
    if (now == doorbell.last) continue;
    doorbell.last = now;
    stats.doorbells.add(1);  // before the signal: whoever hears it may look
    doorbell.to.signal();
    changed = true;
  }
  rung_ |= changed;
  return changed;
}

bool Relay::take_rung() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(rung_, false);
}

void Relay::forward(int64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto forward = forwards_.find(id);
  const auto doorbell = doorbells_.find(id);
  if (forward == forwards_.end() && doorbell == doorbells_.end()) return;
  stats.forwarded.add(1);  // before the signal: whoever hears it may look
  if (forward != forwards_.end()) {
    forward->second.to.signal();
    return;
  }
  // Whoever finds us asleep changes the word and then signals the eventfd: its peer is to hear of it once.
  doorbell->second.last = __atomic_load_n(doorbell->second.word, __ATOMIC_ACQUIRE);
  doorbell->second.to.signal();
  rung_ = true;
}

// P6. Sequentially consistent, so that either this thread sees a word that changed or the driver sees the
// bit.
void Relay::set_sleeping(bool sleeping) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (sleep_word_ && sleeping) __atomic_fetch_or(sleep_word_, 1u, __ATOMIC_SEQ_CST);
    if (sleep_word_ && !sleeping) __atomic_fetch_and(sleep_word_, ~1u, __ATOMIC_SEQ_CST);
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

}  // namespace vpci
