// Eventfds whose other owner does its worst: blocking ones that are full or empty, semaphores, and what is no eventfd.
#include "../core/foreign_eventfd.h"

#include <fcntl.h>
#include <sys/eventfd.h>

#include "peer_fixture.h"
#include "readable.h"

namespace vpci::test {
namespace {

constexpr uint64_t kFull = UINT64_MAX - 1;

uint64_t counter(int fd) {
  uint64_t count = 0;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  (void)!::read(fd, &count, sizeof count);
  return count;
}

bool write_count(int fd, uint64_t count) { return ::write(fd, &count, sizeof count) == sizeof count; }

TEST("a foreign eventfd is signalled, once for each signal, more often than there is room for results") {
  CHECK(foreign_eventfds_supported());
  const int fd = ::eventfd(0, 0);
  constexpr uint64_t kSignals = 1000;
  for (uint64_t i = 0; i < kSignals; i++) CHECK(signal_foreign_eventfd(fd));
  CHECK_EQ(counter(fd), kSignals);
  ::close(fd);
}

// Either of the two would wait for ever with write(2) and read(2).
TEST("a blocking eventfd that is full is signalled without waiting, and an empty one is read without") {
  const int fd = ::eventfd(0, 0);
  CHECK(write_count(fd, kFull));
  CHECK(signal_foreign_eventfd(fd));
  CHECK(signal_foreign_eventfd(fd));
  CHECK(take_eventfd(fd));
  CHECK(!take_eventfd(fd));
  OwnFd own;
  CHECK(own.duplicate(fd, nullptr));
  CHECK(!own.drain());
  CHECK(write_count(fd, kFull));
  own.signal();
  CHECK(own.drain());
  ::close(fd);
}

TEST("what is no eventfd is neither signalled nor read again") {
  int pipe[2];
  CHECK(::pipe(pipe) == 0);
  CHECK(!signal_foreign_eventfd(pipe[1]));
  ::close(pipe[1]);
  CHECK(!take_eventfd(pipe[0]));
  ::close(pipe[0]);
  CHECK(!signal_foreign_eventfd(-1));
  CHECK(!take_eventfd(-1));
}

struct Wired {
  peer::Peer peer{peer::kAllFeatures};
  int kick = ::eventfd(0, 0), call = ::eventfd(0, 0);
  Wired() { rewire(kick, call); }
  ~Wired() {
    ::close(kick);
    ::close(call);
  }
  void rewire(int kick_fd, int call_fd) {
    OwnFd waits;
    NotifyTarget notify;
    NotifyOptions options;
    options.fd = call_fd;
    CHECK(waits.duplicate(kick_fd, nullptr) && notify.init(options, nullptr));
    peer.q->rewire(true, std::move(waits), std::move(notify));
  }
  bool kicked() { return readable(peer.q->wait_fd(false)); }
};

TEST("a rewired ring waits on the new eventfd, and its new target hears of what the old one may have missed") {
  Wired w;
  CHECK_EQ(counter(w.call), 1);
  const int kick = ::eventfd(0, 0), call = ::eventfd(0, 0);
  w.rewire(kick, call);
  CHECK_EQ(counter(call), 1);
  CHECK(write_count(w.kick, 1));
  CHECK(!w.kicked());
  CHECK(write_count(kick, 1));
  CHECK(w.kicked());
  w.peer.q->disarm(false);
  CHECK(!w.kicked());
  w.peer.transmit(0, NetHeader{}, 100);
  CHECK_EQ(w.peer.q->receive(w.peer.burst), 1);
  w.peer.q->release(w.peer.burst, 1);
  w.peer.q->flush();
  CHECK_EQ(counter(call), 1);
  CHECK_EQ(counter(w.call), 0);
  ::close(kick);
  ::close(call);
}

TEST("a kick that never ends, a semaphore set high, makes its ring a polled one") {
  Wired w;
  const int kick = ::eventfd(0, EFD_SEMAPHORE);
  CHECK(write_count(kick, kFull));
  w.rewire(kick, w.call);
  uint32_t rounds = 0;
  while (w.peer.q->wait_fd(false) != PortQueue::kPolled && rounds < 0x20000) {
    CHECK(w.peer.q->arm(false));
    w.peer.q->disarm(false);
    rounds++;
  }
  CHECK_EQ(rounds, 0x10000);
  ::close(kick);
}

TEST("kicks with a buffer each are no such thing, however many") {
  Wired w;
  for (uint32_t i = 0; i < 0x10100 && !check::failing(); i++) {
    w.peer.transmit(0, NetHeader{}, 100);
    CHECK(write_count(w.kick, 1));
    w.peer.q->disarm(false);
    CHECK_EQ(w.peer.q->receive(w.peer.burst), 1);
    w.peer.q->release(w.peer.burst, 1);
  }
  CHECK(w.peer.q->wait_fd(false) != PortQueue::kPolled);
}

}  // namespace
}  // namespace vpci::test
