// The mover of dirty bits as a JavaScript object. Its thread does not keep the process alive; an environment that ends
// stops it.
#include "../core/log_mover.h"

#include <cmath>
#include <memory>

#include "addon.h"
#include "memory.h"
#include "to_main.h"

namespace vpci::js {
namespace {

constexpr uint32_t kMaxRanges = 4096;
constexpr uint64_t kMaxPeriod = 60'000;

int64_t to_shift(Napi::Value value) {
  if (!value.IsNumber()) throw_type(value.Env(), "shift has to be a number");
  const double shift = value.As<Napi::Number>().DoubleValue();
  if (!(std::abs(shift) <= static_cast<double>(kMaxSafe)) || shift != std::trunc(shift))
    throw_range(value.Env(), "shift has to be a safe integer");
  return static_cast<int64_t>(shift);
}

LogMover::Bitmap to_bitmap(Napi::Value value, const char* name) {
  const Napi::Object object = to_object(value, name);
  const uint64_t bytes = to_integer(object.Get("bytes"), "bytes");
  const Place place = to_place(object.Get("mapping"), object.Get("offset"), bytes, 1, name);
  if (!place.mapping->writable()) throw_errno(value.Env(), EACCES, "write", name);
  return {place.mapping, place.offset, bytes};
}

class LogMoverObject : public Napi::ObjectWrap<LogMoverObject> {
 public:
  static constexpr napi_type_tag kTag = {0x766863692d6c6f67, 0x000000000000000e};
  static constexpr const char* kName = "LogMover";

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, kName,
                       {
                           InstanceAccessor<&LogMoverObject::moved>("moved"),
                           InstanceMethod<&LogMoverObject::move>("move"),
                           InstanceMethod<&LogMoverObject::mark_all>("markAll"),
                           InstanceMethod<&LogMoverObject::signal_to>("signalTo"),
                           InstanceMethod<&LogMoverObject::close>("close"),
                       });
  }

  explicit LogMoverObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<LogMoverObject>(info) {
    const Napi::Env env = info.Env();
    tag<LogMoverObject>(info);
    const Napi::Object options = to_object(info[0], "options");
    const LogMover::Bitmap from = to_bitmap(options.Get("from"), "from");
    const LogMover::Bitmap to = to_bitmap(options.Get("to"), "to");
    const Napi::Array list = to_array(options.Get("ranges"), "ranges", kMaxRanges);
    std::vector<LogMover::Range> ranges;
    for (uint32_t i = 0; i < list.Length(); i++) {
      const Napi::Object range = to_object(list.Get(i), "range");
      ranges.push_back({to_integer(range.Get("first"), "first"), to_integer(range.Get("count"), "count"),
                        to_shift(range.Get("shift"))});
    }
    mover_ = std::make_unique<LogMover>(from, to, std::move(ranges));
    if (const Napi::Value thread = options.Get("thread"); !absent(thread)) start(to_object(thread, "thread"));
  }

  ~LogMoverObject() override { end(); }

 private:
  void start(Napi::Object thread) {
    const Napi::Env env = thread.Env();
    const auto period_ms = static_cast<uint32_t>(to_integer(thread.Get("periodMs"), "periodMs", kMaxPeriod, 1));
    failed_ = Napi::Persistent(to_function(thread.Get("failed"), "failed"));
    to_main_ = ToMain::create(env, kName, false);
    at_exit_ = std::make_unique<AtExit>(env, [this] { mover_->stop(); });
    const int failed = mover_->start(period_ms, [this] {
      to_main_->post([this](Napi::Env main) {
        if (mover_) call_in(main, [this] { failed_.Call({}); });
      });
    });
    if (failed) throw_errno(env, failed, "pthread_create");
  }

  Napi::Value moved(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(open().moved.get()));
  }

  void check(bool done) {
    if (!done) throw_errno(Env(), EFAULT, "write", "the mapped file has shrunk");
  }
  void move(const Napi::CallbackInfo&) { check(open().move()); }
  void mark_all(const Napi::CallbackInfo&) { check(open().mark_all()); }

  void signal_to(const Napi::CallbackInfo& info) {
    LogMover& mover = open();
    OwnFd eventfd;
    if (!eventfd.duplicate(to_fd(info[0], "eventfd"), nullptr)) throw_errno(info.Env(), errno, "dup");
    mover.signal_to(std::move(eventfd));
  }

  void close(const Napi::CallbackInfo&) { end(); }

  // The thread sleeps or is in a pass, which takes a few milliseconds for terabytes.
  void end() {
    if (mover_) mover_->stop();
    mover_.reset();
    if (to_main_) to_main_->end();
    to_main_.reset();
    at_exit_.reset();
    failed_.Reset();
  }

  LogMover& open() {
    if (!mover_) throw_errno(Env(), EBADF, "access to a closed mover");
    return *mover_;
  }

  std::unique_ptr<LogMover> mover_;
  std::shared_ptr<ToMain> to_main_;
  std::unique_ptr<AtExit> at_exit_;
  Napi::FunctionReference failed_;
};

}  // namespace

void init_log_mover(Napi::Env env, Napi::Object exports) {
  exports.Set(LogMoverObject::kName, LogMoverObject::define(env));
}

}  // namespace vpci::js
