// A native thread that moves bursts along lanes, polling, sleeping, or polling a little before it sleeps.
// Everything else reaches it as commands, which it runs between two rounds. Knows no kind of queue.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <poll.h>

#include "lane.h"
#include "thread.h"

namespace vpci {

class Worker {
 public:
  enum class Mode : uint8_t { kPoll, kInterrupt, kAdaptive };
  enum class State : uint8_t { kRunning, kSleeping, kStopped };

  struct Options {
    Mode mode = Mode::kPoll;
    int cpu = -1;
    uint32_t spin_microseconds = 50;
    std::string name = "vhost-pci";
  };
  struct Event {
    PortQueue* queue;  // a queue that is connected to this worker
    bool send_side;
    const char* broken;  // the cause, or nullptr for the end of a source
  };
  struct Stats {
    Counter wakeups;
    Counter busy_rounds;
    Counter idle_rounds;
    std::atomic<State> state{State::kRunning};
  };
  // Called on the worker's thread: `error` is nullptr or a static text.
  using Done = std::function<void(const char* error, uint32_t value)>;
  using OnEvent = std::function<void(const Event&)>;

  Worker() = default;
  ~Worker();  // stops and joins
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // 0 or errno.
  int start(const Options& options, OnEvent on_event);

  // The commands return false, and never call `done`, after stop.
  // `value` is the lane's number. The queues stay with this worker until they are detached.
  bool connect(std::shared_ptr<PortQueue> from, std::shared_ptr<PortQueue> to, LanePolicy policy, Done done);
  // Ends the queue's lanes. Packets that wait in them go back unread when the queue is their source, and are
  // dropped when it is their destination. After `done` no thread touches the queue.
  bool detach(std::shared_ptr<PortQueue> queue, Done done);
  // Runs `task` at a burst boundary, while no other worker has the queue.
  bool run(std::shared_ptr<PortQueue> queue, std::function<void()> task, Done done);
  // Detaches everything and ends the thread; `done` is the last that it does.
  bool stop(Done done);
  void join();

  Stats stats;

 private:
  struct Attached {
    std::shared_ptr<PortQueue> queue;
    bool told[2] = {false, false};
    bool told_end = false;
  };

  bool post(std::function<void()> command, bool last = false);
  void loop();
  bool round();
  void run_commands();
  void report();
  bool idle(bool first);
  bool sleep();

  Attached* find(const PortQueue* queue);
  void attach(const std::shared_ptr<PortQueue>& queue);
  const char* do_connect(const std::shared_ptr<PortQueue>& from, const std::shared_ptr<PortQueue>& to,
                         LanePolicy policy);
  void do_detach(PortQueue* queue);

  Options options_;
  OnEvent on_event_;
  WakeFd wake_;
  Thread thread_;

  std::mutex mutex_;  // of the two below
  std::vector<std::function<void()>> commands_;
  bool closed_ = true;
  std::atomic<bool> pending_{false};

  // The thread's own.
  struct Armed {
    PortQueue* queue;
    bool send_side;
  };
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Attached> attached_;
  std::vector<pollfd> wait_;
  std::vector<Armed> armed_;
  uint32_t next_lane_ = 0;
  uint64_t idle_since_ = 0;
  uint32_t unflushed_ = 0;  // rounds with packets since the last flush
  bool running_ = true;
};

}  // namespace vpci
