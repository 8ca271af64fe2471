#include "worker.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>

namespace vpci {

namespace {
// Rounds with packets after which the other sides are told what they have got.
constexpr uint32_t kFlushEvery = 4;
}  // namespace

Worker::~Worker() {
  stop({});
  join();
}

int Worker::start(const Options& options, OnEvent on_event) {
  if (!wake_.valid()) return EMFILE;
  options_ = options;
  on_event_ = std::move(on_event);
  closed_ = false;
  const int failed = thread_.start(options.name, options.cpu, [this] { loop(); });
  if (failed) closed_ = true;
  return failed;
}

void Worker::join() {
  thread_.join();
  wake_.close();
}

// -- commands ----------------------------------------------------------------------------------------------

bool Worker::post(std::function<void()> command, bool last) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return false;
    commands_.push_back(std::move(command));
    closed_ = last;
    pending_.store(true, std::memory_order_release);
    // Under the lock: after the last command this object may go as soon as the thread has run it.
    wake_.signal();
  }
  return true;
}

bool Worker::connect(std::shared_ptr<PortQueue> from, std::shared_ptr<PortQueue> to, LanePolicy policy,
                     Done done) {
  return post([this, from = std::move(from), to = std::move(to), policy, done = std::move(done)]() mutable {
    const char* const error = do_connect(from, to, policy);
    from.reset();
    to.reset();
    done(error, error ? 0 : next_lane_++);
  });
}

bool Worker::detach(std::shared_ptr<PortQueue> queue, Done done) {
  return post([this, queue = std::move(queue), done = std::move(done)]() mutable {
    do_detach(queue.get());
    queue.reset();  // its owner may be the last to hold it from now on
    done(nullptr, 0);
  });
}

bool Worker::run(std::shared_ptr<PortQueue> queue, std::function<void()> task, Done done) {
  return post([this, queue = std::move(queue), task = std::move(task), done = std::move(done)]() mutable {
    const bool mine = queue->claim(this);
    if (mine) {
      task();
      if (!find(queue.get())) queue->unclaim();
    }
    task = nullptr;
    queue.reset();
    done(mine ? nullptr : "another worker has the queue", 0);
  });
}

bool Worker::stop(Done done) {
  return post(
      [this, done = std::move(done)] {
        while (!attached_.empty()) do_detach(attached_.back().queue.get());
        running_ = false;
        stats.state.store(State::kStopped, std::memory_order_release);
        if (done) done(nullptr, 0);
      },
      true);
}

void Worker::run_commands() {
  std::vector<std::function<void()>> commands;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    pending_.store(false, std::memory_order_relaxed);
    commands.swap(commands_);
    wake_.drain();
  }
  for (auto& command : commands) command();
}

Worker::Attached* Worker::find(const PortQueue* queue) {
  for (Attached& attached : attached_) {
    if (attached.queue.get() == queue) return &attached;
  }
  return nullptr;
}

void Worker::attach(const std::shared_ptr<PortQueue>& queue) {
  if (!find(queue.get())) attached_.push_back(Attached{queue});
}

const char* Worker::do_connect(const std::shared_ptr<PortQueue>& from, const std::shared_ptr<PortQueue>& to,
                               LanePolicy policy) {
  // release() completes in order, so that one source cannot feed two bursts at a time.
  for (const auto& lane : lanes_) {
    if (lane->from == from) return "a lane already receives from this queue";
  }
  if (!from->claim(this)) return "another worker has the queue to receive from";
  if (!to->claim(this)) {
    if (!find(from.get())) from->unclaim();
    return "another worker has the queue to send to";
  }
  attach(from);
  attach(to);
  lanes_.push_back(std::make_unique<Lane>(next_lane_, from, to, policy));
  return nullptr;
}

void Worker::do_detach(PortQueue* queue) {
  Attached* const attached = find(queue);
  if (!attached) return;
  const std::shared_ptr<PortQueue> keep = attached->queue;
  for (size_t i = 0; i < lanes_.size();) {
    Lane& lane = *lanes_[i];
    if (lane.from.get() != queue && lane.to.get() != queue) {
      i++;
      continue;
    }
    if (lane.from.get() == queue) {
      lane.burst.clear();  // detached() takes back what was received and not released
    } else {
      lane.drop_rest();
      lane.from->flush();
    }
    lanes_.erase(lanes_.begin() + static_cast<ptrdiff_t>(i));
  }
  queue->flush();
  queue->settle();
  queue->detached();
  report();
  attached_.erase(attached_.begin() + (find(queue) - attached_.data()));
  queue->unclaim();
}

// -- the thread --------------------------------------------------------------------------------------------

void Worker::loop() {
  bool moved = true;
  while (running_) {
    if (pending_.load(std::memory_order_acquire)) {
      run_commands();
      moved = true;
      continue;
    }
    const bool before = moved;
    moved = round();
    (moved ? stats.busy_rounds : stats.idle_rounds).add(1);
    if (!moved) moved = idle(before);
  }
}

bool Worker::round() {
  bool moved = false;
  for (const auto& lane : lanes_) moved |= lane->round();
  bool tell = !moved;
  // A flush waits for every store of the burst: while packets move it is done once in some rounds.
  const bool flushes = !moved || ++unflushed_ >= kFlushEvery;
  if (flushes) unflushed_ = 0;
  for (const Attached& attached : attached_) {
    if (flushes) attached.queue->flush();
    tell |= (attached.queue->broken(false) && !attached.told[0]) ||
            (attached.queue->broken(true) && !attached.told[1]);
  }
  if (tell) report();
  return moved;
}

// Events are told once a side.
void Worker::report() {
  for (Attached& attached : attached_) {
    for (const bool send_side : {false, true}) {
      const char* cause = attached.queue->broken(send_side);
      if (!cause || attached.told[send_side]) continue;
      attached.told[send_side] = true;
      on_event_({attached.queue.get(), send_side, cause});
    }
    if (attached.told_end || !attached.queue->ended()) continue;
    const bool waits = std::any_of(lanes_.begin(), lanes_.end(), [&](const auto& lane) {
      return lane->from == attached.queue && !lane->burst.empty();
    });
    if (waits) continue;  // what it made has to be delivered first
    attached.told_end = true;
    on_event_({attached.queue.get(), false, nullptr});
  }
}

// `first`: there was something to do in the round before this one. True when packets have moved meanwhile.
bool Worker::idle(bool first) {
  // With nothing that could ever give a packet, only a command can change that.
  const bool over =
      std::all_of(lanes_.begin(), lanes_.end(), [](const auto& lane) { return lane->idle_for_good(); });
  if (options_.mode == Mode::kInterrupt || over) return sleep();
  cpu_pause();
  if (options_.mode == Mode::kPoll) return false;
  if (first) {
    idle_since_ = now_ns();
    return false;
  }
  if (now_ns() - idle_since_ >= uint64_t{options_.spin_microseconds} * 1000) return sleep();
  sched_yield();  // what the packets wait for may be a thread on this CPU, such as JavaScript's
  return false;
}

// Arms every side that can bring work, sleeps if all of them agree, and makes the first round: true when it moved packets.
bool Worker::sleep() {
  for (const Attached& attached : attached_) attached.queue->settle();
  wait_.clear();
  armed_.clear();
  wait_.push_back({wake_.fd(), POLLIN, 0});
  int timeout_ms = -1;
  bool agreed = true;
  for (const auto& lane : lanes_) {
    if (lane->idle_for_good()) continue;
    const bool send_side = !lane->burst.empty();
    PortQueue* const queue = send_side ? lane->to.get() : lane->from.get();
    const int fd = queue->wait_fd(send_side);
    if (fd == PortQueue::kNever) continue;
    if (fd == PortQueue::kPolled) {
      timeout_ms = 1;
    } else {
      wait_.push_back({fd, POLLIN, 0});
    }
    armed_.push_back({queue, send_side});
    if (!queue->arm(send_side)) {
      agreed = false;
      break;
    }
  }
  bool moved = false;
  if (agreed && !pending_.load(std::memory_order_acquire)) {
    stats.state.store(State::kSleeping, std::memory_order_relaxed);
    poll(wait_.data(), wait_.size(), timeout_ms);
    stats.state.store(State::kRunning, std::memory_order_relaxed);
    stats.wakeups.add(1);
    // What woke this thread goes on its way, and the other side is told, before the rest of the tidying up: the rings are
    // looked at once more before the next sleep, so that no kick is lost that is drained behind it.
    unflushed_ = kFlushEvery;
    moved = round();
    if (moved) stats.busy_rounds.add(1);
  }
  for (const Armed& armed : armed_) armed.queue->disarm(armed.send_side);
  return moved;
}

}  // namespace vpci
