// The worker as a JavaScript object. A running worker keeps the process alive and is no garbage; its commands
// resolve on the JavaScript thread. An environment that ends stops its workers first.
#include "../core/worker.h"

#include <map>
#include <memory>
#include <set>

#include "../core/dirty_log.h"
#include "addon.h"
#include "memory.h"
#include "peer_queue_object.h"
#include "queues.h"
#include "rings.h"
#include "to_main.h"

namespace vpci::js {
namespace {

Worker::Mode to_mode(const Napi::Value& value) {
  const std::string mode = to_text(value, "mode");
  if (mode == "poll") return Worker::Mode::kPoll;
  if (mode == "interrupt") return Worker::Mode::kInterrupt;
  if (mode == "adaptive") return Worker::Mode::kAdaptive;
  throw_range(value.Env(), "mode has to be poll, interrupt or adaptive");
}

LanePolicy to_policy(const Napi::Value& value) {
  const std::string policy = to_text(value, "policy");
  if (policy == "hold") return LanePolicy::kHold;
  if (policy == "drop") return LanePolicy::kDrop;
  throw_range(value.Env(), "policy has to be hold or drop");
}

Napi::Error busy_error(Napi::Env env, const char* message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, "EBUSY"));
  return error;
}

class WorkerObject : public Napi::ObjectWrap<WorkerObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d776f72, 0x000000000000000a};
  static constexpr const char* kName = "Worker";

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, kName,
                       {
                           InstanceMethod<&WorkerObject::connect>("connect"),
                           InstanceMethod<&WorkerObject::detach>("detach"),
                           InstanceMethod<&WorkerObject::set_dirty_log>("setDirtyLog"),
                           InstanceMethod<&WorkerObject::set_enabled>("setEnabled"),
                           InstanceMethod<&WorkerObject::rewire>("rewire"),
                           InstanceMethod<&WorkerObject::on_event>("onEvent"),
                           InstanceMethod<&WorkerObject::stats>("stats"),
                           InstanceMethod<&WorkerObject::stop>("stop"),
                       });
  }

  explicit WorkerObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<WorkerObject>(info) {
    Napi::Env env = info.Env();
    tag<WorkerObject>(info);
    const Napi::Object given = to_object(info[0], "options");
    Worker::Options options;
    options.mode = to_mode(given.Get("mode"));
    const Napi::Value cpu = given.Get("cpu");
    if (!absent(cpu)) options.cpu = static_cast<int>(to_integer(cpu, "cpu", 1023));
    const Napi::Value spin = given.Get("spinMicroseconds");
    if (!absent(spin))
      options.spin_microseconds = static_cast<uint32_t>(to_integer(spin, "spinMicroseconds", 1000000));
    const Napi::Value name = given.Get("name");
    if (!absent(name)) {
      options.name = to_text(name, "name");
      if (options.name.size() > 15) throw_range(env, "name has more than 15 bytes");  // pthread_setname_np(3)
    }
    to_main_ = ToMain::create(env, "vhost-pci worker", true);
    // The thread speaks through `to_main_` alone, and never after it was joined.
    const int failed = worker_.start(options, [this](const Worker::Event& event) {
      to_main_->post([this, event](Napi::Env e) { tell(e, event); });
    });
    if (failed) throw_errno(env, failed, "pthread_create");
    at_exit_ = std::make_unique<AtExit>(env, [this] {
      worker_.stop({});
      worker_.join();
      to_main_->end();
    });
    Ref();
  }

  ~WorkerObject() override {
    worker_.stop({});
    worker_.join();
  }

 private:
  // A queue that this worker has, or will have when a command that is under way is done.
  struct Held {
    Napi::ObjectReference object;
    QueueHolder* holder;
    std::set<uint64_t> connects;
  };

  void hold(const Napi::Value& object, QueueHolder* holder, uint64_t connect) {
    auto [place, added] = held_.try_emplace(holder->queue().get());
    if (added) {
      place->second.object = Napi::Persistent(object.As<Napi::Object>());
      place->second.holder = holder;
      holder->users++;
    }
    place->second.connects.insert(connect);
  }

  // The connects from `first` to `last` hold the queue no more.
  void let_go(PortQueue* queue, uint64_t first, uint64_t last) {
    const auto place = held_.find(queue);
    if (place == held_.end()) return;
    auto& connects = place->second.connects;
    connects.erase(connects.lower_bound(first), connects.upper_bound(last));
    if (!connects.empty()) return;
    place->second.holder->users--;
    held_.erase(place);
  }

  // What resolves a command: `after` runs before, on the JavaScript thread.
  using After = std::function<Napi::Value(Napi::Env env, const char* error, uint32_t value)>;
  Worker::Done done(const Napi::Promise::Deferred& deferred, After after) {
    return [this, deferred, after = std::move(after)](const char* error, uint32_t value) {
      to_main_->post([deferred, after, error, value](Napi::Env env) {
        const Napi::Value result = after(env, error, value);
        if (error) {
          deferred.Reject(busy_error(env, error).Value());
        } else {
          deferred.Resolve(result);
        }
      });
    };
  }

  static Napi::Value nothing(Napi::Env env, const char*, uint32_t) { return env.Undefined(); }

  // A promise for a command that the worker took up, or a rejected one when it has been stopped.
  static Napi::Value promise(const Napi::Promise::Deferred& deferred, bool posted) {
    if (!posted) {
      Napi::Error error = Napi::Error::New(deferred.Env(), "the worker has been stopped");
      error.Set("code", Napi::String::New(deferred.Env(), "ESHUTDOWN"));
      deferred.Reject(error.Value());
    }
    return deferred.Promise();
  }

  Napi::Value connect(const Napi::CallbackInfo& info) {
    QueueHolder* const from = to_queue(info[0], "from");
    QueueHolder* const to = to_queue(info[1], "to");
    const LanePolicy policy = to_policy(info[2]);
    PortQueue* const from_queue = from->queue().get();
    PortQueue* const to_queue = to->queue().get();
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    const uint64_t number = ++commands_;
    const bool posted = worker_.connect(
        from->queue(), to->queue(), policy,
        done(deferred, [this, from_queue, to_queue, number](Napi::Env env, const char* error, uint32_t lane) {
          if (error) {
            let_go(from_queue, number, number);
            let_go(to_queue, number, number);
          }
          return Napi::Number::New(env, lane);
        }));
    if (posted) {
      hold(info[0], from, number);
      hold(info[1], to, number);
    }
    return promise(deferred, posted);
  }

  Napi::Value detach(const Napi::CallbackInfo& info) {
    const std::shared_ptr<PortQueue> queue = to_queue(info[0], "queue")->queue();
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    const bool posted = worker_.detach(queue, done(deferred, [this, key = queue.get(), last = commands_](
                                                                 Napi::Env env, const char*, uint32_t) {
                                         let_go(key, 0, last);
                                         return env.Undefined();
                                       }));
    // A stopped worker lets go of everything.
    return posted ? Napi::Value(deferred.Promise()) : stopped_.Value();
  }

  Napi::Value set_dirty_log(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const auto peer = unwrap<PeerQueueObject>(info[0], "queue")->core();
    std::shared_ptr<const DirtyLog> log;
    if (!absent(info[1])) {
      const Napi::Object given = to_object(info[1], "log");
      const uint64_t bytes = to_integer(given.Get("bytes"), "bytes", kMaxSafe, 1);
      const Place place = to_place(given.Get("mapping"), given.Get("offset"), bytes, 1, "log.mapping");
      std::string error;
      const Napi::Value given_alone = given.Get("alone");
      const bool alone = !absent(given_alone) && to_bool(given_alone, "log.alone");
      log = DirtyLog::create(place.mapping, place.offset, bytes, &error,
                             alone ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral);
      if (!log) throw_range(env, error);
    }
    const auto deferred = Napi::Promise::Deferred::New(env);
    return promise(deferred,
                   worker_.run(peer, [peer, log] { peer->set_dirty_log(log); }, done(deferred, nothing)));
  }

  Napi::Value set_enabled(const Napi::CallbackInfo& info) {
    const auto peer = unwrap<PeerQueueObject>(info[0], "queue")->core();
    const bool transmit = to_bool(info[1], "transmit");
    const bool receive = to_bool(info[2], "receive");
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    return promise(deferred, worker_.run(
                                 peer, [peer, transmit, receive] { peer->set_enabled(transmit, receive); },
                                 done(deferred, nothing)));
  }

  Napi::Value rewire(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const auto peer = unwrap<PeerQueueObject>(info[0], "queue")->core();
    struct Side {
      bool transmit;
      OwnFd kick;
      NotifyTarget notify;
    };
    const auto sides = std::make_shared<std::vector<Side>>();
    for (const bool transmit : {true, false}) {
      const char* const name = transmit ? "transmit" : "receive";
      const Napi::Object given = to_object(info[transmit ? 1 : 2], name);
      Side side{transmit, {}, {}};
      std::string error;
      if (!side.kick.duplicate(to_optional_fd(given.Get("kickFd"), "kickFd"), &error) ||
          !side.notify.init(to_notify(given.Get("notify")), &error))
        throw_range(env, error);
      sides->push_back(std::move(side));
    }
    const auto task = [peer, sides] {
      for (Side& side : *sides) peer->rewire(side.transmit, std::move(side.kick), std::move(side.notify));
    };
    const auto deferred = Napi::Promise::Deferred::New(env);
    return promise(deferred, worker_.run(peer, task, done(deferred, nothing)));
  }

  void on_event(const Napi::CallbackInfo& info) {
    callback_ = Napi::Persistent(to_function(info[0], "callback"));
  }

  void tell(Napi::Env env, const Worker::Event& event) {
    const auto place = held_.find(event.queue);
    if (callback_.IsEmpty() || place == held_.end()) return;
    Napi::Object out = Napi::Object::New(env);
    out.Set("queue", place->second.object.Value());
    out.Set("direction", Napi::String::New(env, event.send_side ? "send" : "receive"));
    out.Set("event", Napi::String::New(env, event.broken ? "broken" : "end"));
    out.Set("cause", Napi::String::New(env, event.broken ? event.broken : "the source reached its count"));
    callback_.Value().Call({out});
  }

  Napi::Value stats(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const Worker::Stats& stats = worker_.stats;
    Napi::Object out = Napi::Object::New(env);
    out.Set("wakeups", Napi::Number::New(env, static_cast<double>(stats.wakeups.get())));
    out.Set("busyRounds", Napi::Number::New(env, static_cast<double>(stats.busy_rounds.get())));
    out.Set("idleRounds", Napi::Number::New(env, static_cast<double>(stats.idle_rounds.get())));
    static constexpr const char* kStates[] = {"running", "sleeping", "stopped"};
    out.Set("state", Napi::String::New(
                         env, kStates[static_cast<size_t>(stats.state.load(std::memory_order_acquire))]));
    return out;
  }

  Napi::Value stop(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!stopped_.IsEmpty()) return stopped_.Value();
    const auto deferred = Napi::Promise::Deferred::New(env);
    stopped_ = Napi::Persistent(static_cast<Napi::Object>(deferred.Promise()));
    worker_.stop(done(deferred, [this](Napi::Env e, const char*, uint32_t) -> Napi::Value {
      worker_.join();
      for (auto& [queue, held] : held_) held.holder->users--;
      held_.clear();
      at_exit_.reset();
      to_main_->end();
      Unref();
      return e.Undefined();
    }));
    return deferred.Promise();
  }

  std::shared_ptr<ToMain> to_main_;
  Worker worker_;
  std::unique_ptr<AtExit> at_exit_;
  uint64_t commands_ = 0;
  std::map<PortQueue*, Held> held_;
  Napi::FunctionReference callback_;
  Napi::ObjectReference stopped_;
};

}  // namespace

void init_worker(Napi::Env env, Napi::Object exports) {
  exports.Set(WorkerObject::kName, WorkerObject::define(env));
}

}  // namespace vpci::js
