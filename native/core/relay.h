// A thread that carries signals: from eventfd to eventfd, and from doorbell words in shared memory to
// eventfds (docs/protocol.md, P6). While nothing happens it sleeps, and says so in the sleep word.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "mapping.h"
#include "notify.h"
#include "stats.h"
#include "thread.h"

namespace vpci {

class Relay {
 public:
  struct Stats {
    Counter wakeups;
    Counter spins;  // wake-ups after which the doorbell words were looked at for a while
    Counter forwarded;  // signals of eventfds
    Counter doorbells;  // changes of doorbell words
  };

  Relay() = default;
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  // 0 or errno.
  int start();
  // A number above 0, or -errno. The fds are duplicated; `from` has to be an eventfd. Its counter is never read, as Linux's own
  // vhost does not read that of a kick: what it holds when it is added, also from an earlier time, is a signal.
  int64_t add(int from, int to);
  // `word` is inside `mapping`, which is kept. Signals of the eventfd `from` (or -1) count as changes of the word: one that
  // comes with a change is the same event.
  int64_t add_doorbell(std::shared_ptr<Mapping> mapping, uint32_t* word, int to, int from = -1);
  // What a signal of the doorbell's eventfd does, on the calling thread. False for a number that is no doorbell's.
  bool ring(int64_t id);
  void set_sleep_word(std::shared_ptr<Mapping> mapping, uint32_t* word);
  // Nothing is forwarded once this has returned. False for a number that is not there.
  bool remove(int64_t id);
  // Ends the thread; the sleep word stays set, so that drivers use the trapped way.
  void stop();

  Stats stats;

 private:
  struct Forward {
    OwnFd from, to;
  };
  struct Doorbell {
    std::shared_ptr<Mapping> mapping;
    uint32_t* word;
    uint32_t last;
    OwnFd from, to;
  };

  int watch(int64_t id, const OwnFd& from);
  void loop();
  bool scan_doorbells();
  void take(const epoll_event* events, int n);
  void forward(int64_t id);
  bool take_rung();
  void unwatch(const OwnFd& from);
  void set_sleeping(bool sleeping);

  WakeFd wake_;
  int epoll_ = -1;
  Thread thread_;
  std::atomic<bool> running_{false};

  // Held while anything is forwarded, never while the thread sleeps.
  std::mutex mutex_;
  int64_t next_id_ = 1;
  std::map<int64_t, Forward> forwards_;
  std::map<int64_t, Doorbell> doorbells_;
  bool rung_ = false;  // a doorbell, in any of its ways, since the last wake-up
  std::shared_ptr<Mapping> sleep_mapping_;
  uint32_t* sleep_word_ = nullptr;
};

}  // namespace vpci
