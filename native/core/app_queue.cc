#include "app_queue.h"

#include <sys/mman.h>

#include <algorithm>

#include "net_header.h"

namespace vpci {

namespace {
// How long the program's wake-up is put off, in nanoseconds: after the last packet, and in all.
constexpr uint64_t kPause = 5'000, kMost = 50'000;
}  // namespace

AppPool::AppPool(uint32_t slots, uint32_t stride, uint32_t burst)
    : size(static_cast<size_t>(slots) * stride),
      received(2 * static_cast<size_t>(burst)),
      to_send(received.size()) {
  void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory = at == MAP_FAILED ? nullptr : static_cast<uint8_t*>(at);
}

AppPool::~AppPool() {
  if (memory) munmap(memory, size);
}

std::shared_ptr<AppQueue> AppQueue::create(const Options& options, std::function<void()> wake) {
  std::shared_ptr<AppQueue> queue(new AppQueue);
  queue->stride_ = stride(options.slot_bytes);
  queue->slot_bytes_ = options.slot_bytes;
  queue->burst_ = options.burst;
  queue->wake_ = std::move(wake);
  queue->pool_ = std::make_shared<AppPool>(options.slots, queue->stride_, options.burst);
  if (!queue->pool_->memory || !queue->in_.event.valid() || !queue->out_.event.valid()) return nullptr;
  queue->in_.slots = (options.slots + 1) / 2;
  queue->out_.first = queue->in_.slots;
  queue->out_.slots = options.slots - queue->in_.slots;
  queue->in_.lengths.resize(queue->in_.slots);
  queue->out_.lengths.resize(queue->out_.slots);
  queue->headers_.resize(queue->in_.slots);
  return queue;
}

// After the side that the worker may sleep on has moved. The fence orders that move before the look at
// `armed`.
void AppQueue::Ring::wake_worker() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (armed.load(std::memory_order_relaxed) && armed.exchange(false, std::memory_order_acq_rel))
    event.signal();
}

// -- the program's side ------------------------------------------------------------------------------------

uint32_t AppQueue::take() {
  const uint64_t consumed = in_.consumed.load(std::memory_order_relaxed) + taken_;
  if (taken_ > 0) {
    in_.consumed.store(consumed, std::memory_order_release);
    in_.wake_worker();
  }
  const uint64_t waiting = in_.produced.load(std::memory_order_acquire) - consumed;
  taken_ = static_cast<uint32_t>(std::min<uint64_t>(waiting, burst_));
  uint32_t* out = pool_->received.data();
  for (uint32_t i = 0; i < taken_; i++) {
    *out++ = frame_offset(in_, take_position_);
    *out++ = in_.lengths[take_position_];
    take_position_ = in_.next(take_position_);
  }
  return taken_;
}

uint32_t AppQueue::reserve(uint32_t n) {
  const uint64_t produced = out_.produced.load(std::memory_order_relaxed);
  const uint64_t consumed = out_.consumed.load(std::memory_order_acquire);
  const uint64_t free = out_.slots - (produced - consumed);
  reserved_ = static_cast<uint32_t>(std::min<uint64_t>({n, burst_, free}));
  short_ = reserved_ < std::min(n, burst_);
  consumed_then_ = consumed;
  uint32_t* out = pool_->to_send.data();
  uint32_t position = reserve_position_;
  for (uint32_t i = 0; i < reserved_; i++) {
    const uint32_t offset = frame_offset(out_, position);
    memset(pool_->memory + offset - kHeaderBytes, 0, kHeaderBytes);
    *out++ = offset;
    *out++ = capacity();
    position = out_.next(position);
  }
  return reserved_;
}

bool AppQueue::give(uint32_t n) {
  if (n > reserved_) return false;
  const uint32_t* pairs = pool_->to_send.data();
  uint32_t position = reserve_position_;
  for (uint32_t i = 0; i < n; i++) {
    const uint32_t length = pairs[2 * i + 1];
    if (pairs[2 * i] != frame_offset(out_, position) || length < kMinFrame || length > capacity())
      return false;
    out_.lengths[position] = length;
    position = out_.next(position);
  }
  reserved_ = 0;
  reserve_position_ = position;
  if (n == 0) return true;
  out_.produced.store(out_.produced.load(std::memory_order_relaxed) + n, std::memory_order_release);
  out_.wake_worker();
  return true;
}

bool AppQueue::want() {
  wanted_.store(kPackets | (short_ ? kSpace : 0u), std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const bool packets =
      in_.produced.load(std::memory_order_acquire) != in_.consumed.load(std::memory_order_relaxed) + taken_;
  const bool space = short_ && out_.consumed.load(std::memory_order_acquire) != consumed_then_;
  if (!packets && !space) return false;
  // The worker may have been faster; then its wake is under way.
  return wanted_.exchange(0, std::memory_order_acq_rel) != 0;
}

// -- the worker's side -------------------------------------------------------------------------------------

uint32_t AppQueue::receive(Burst& burst) {
  burst.clear();
  uint64_t waiting = out_.produced.load(std::memory_order_acquire) - read_;
  receive_stats.fill.set(waiting);
  waiting = std::min<uint64_t>(waiting, Burst::kMax);
  uint64_t bytes = 0;
  uint16_t step = 0;
  for (uint64_t i = 0; i < waiting; i++) {
    step++;
    const uint32_t length = out_.lengths[read_position_];
    uint8_t* const frame = pool_->memory + frame_offset(out_, read_position_);
    read_position_ = out_.next(read_position_);
    Packet& packet = burst.packets[burst.end];
    memcpy(static_cast<void*>(&packet.header), frame - kHeaderBytes, kHeaderBytes);
    const HeaderWords words = header_words(packet.header);
    if ((words.low | words.high) != 0 && !check_from_device(&packet.header, length, ~uint64_t{0})) {
      receive_stats.drop(Drop::kBadHeader);
      continue;
    }
    packet.first = {frame, length};
    packet.length = length;
    packet.segments = 1;
    packet.more = 0;
    bytes += length;
    steps_[burst.end++] = step;
    step = 0;
  }
  read_ += waiting;
  if (burst.end > 0) {
    steps_[burst.end - 1] = static_cast<uint16_t>(steps_[burst.end - 1] + step);
  } else if (step > 0) {
    out_.consumed.store(read_, std::memory_order_release);
    release_position_ = read_position_;
    news_ |= kSpace;
  }
  receive_stats.packets.add(burst.end);
  receive_stats.bytes.add(bytes);
  receive_stats.burst(burst.end);
  return burst.end;
}

void AppQueue::release(Burst& burst, uint32_t n) {
  uint32_t entries = 0;
  for (uint32_t i = 0; i < n; i++) entries += steps_[burst.begin + i];
  burst.begin += n;
  out_.consumed.store(out_.consumed.load(std::memory_order_relaxed) + entries, std::memory_order_release);
  release_position_ += entries;
  if (release_position_ >= out_.slots) release_position_ %= out_.slots;
  news_ |= kSpace;
}

// What was received and not released goes back.
void AppQueue::detached() {
  read_ = out_.consumed.load(std::memory_order_relaxed);
  read_position_ = release_position_;
}

uint32_t AppQueue::send(const Burst& burst) {
  const uint64_t produced = in_.produced.load(std::memory_order_relaxed);
  const uint64_t used = produced - in_.consumed.load(std::memory_order_acquire);
  send_stats.fill.set(in_.slots - used);
  uint64_t free = in_.slots - used;
  uint64_t packets = 0;
  uint64_t bytes = 0;
  uint32_t i = burst.begin;
  for (; i < burst.end && free > 0; i++) {
    const Packet& packet = burst.packets[i];
    if (packet.length > capacity()) {
      send_stats.drop(Drop::kTooLong);
      continue;
    }
    uint8_t* const frame = pool_->memory + frame_offset(in_, write_position_);
    // Most headers are zero, and so is most often the slot's: then its line is not touched.
    const HeaderWords words = header_words(packet.header);
    const bool header = (words.low | words.high) != 0;
    if (header || headers_[write_position_]) {
      memcpy(frame - kHeaderBytes, &packet.header, kHeaderBytes);
      headers_[write_position_] = header;
    }
    if (packet.segments == 1)
      copies_.add(frame, packet.first.data, packet.length);
    else
      copy_packet(frame, burst, packet);
    in_.lengths[write_position_] = packet.length;
    write_position_ = in_.next(write_position_);
    free--;
    packets++;
    bytes += packet.length;
  }
  copies_.run();
  if (packets > 0) {
    in_.produced.store(produced + packets, std::memory_order_release);
    news_ |= kPackets;
  }
  send_stats.packets.add(packets);
  send_stats.bytes.add(bytes);
  send_stats.burst(i - burst.begin);
  return i - burst.begin;
}

// A wake-up of the program costs as much as some hundred packets, and two changes of thread where it shares the worker's
// CPU: it waits for three quarters of the slots, for a pause, or, in a stream without one, for some time.
void AppQueue::flush() {
  if (news_ == 0) return;
  const auto most_of = [](const Ring& ring, uint64_t n) { return n >= ring.slots - ring.slots / 4; };
  const uint64_t filled = in_.used(), emptied = out_.slots - out_.used();
  const bool space = news_ & wanted_.load(std::memory_order_relaxed) & kSpace;
  if (!most_of(in_, filled) && !(space && most_of(out_, emptied))) {
    const uint64_t now = now_ns();
    if (news_since_ == 0) news_since_ = pause_since_ = now;
    const uint64_t moved = in_.produced.load(std::memory_order_relaxed) + out_.consumed.load(std::memory_order_relaxed);
    if (moved != moved_then_) pause_since_ = now;
    moved_then_ = moved;
    if (now - pause_since_ < kPause && now - news_since_ < kMost) return;
  }
  tell();
}

void AppQueue::tell() {
  news_since_ = 0;
  if (news_ == 0) return;
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if ((wanted_.load(std::memory_order_relaxed) & news_) != 0 &&
      wanted_.exchange(0, std::memory_order_acq_rel) != 0) {
    (news_ & kPackets ? send_stats : receive_stats).notifications_sent.add(1);
    wake_();
  }
  news_ = 0;
}

bool AppQueue::arm(bool for_send) {
  Ring& ring = for_send ? in_ : out_;
  ring.armed.store(true, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!for_send) return ring.produced.load(std::memory_order_acquire) == read_;
  return ring.produced.load(std::memory_order_relaxed) - ring.consumed.load(std::memory_order_acquire) ==
         ring.slots;
}

void AppQueue::disarm(bool for_send) {
  Ring& ring = for_send ? in_ : out_;
  // Still armed: nobody has signalled, and no system call is needed.
  if (!ring.armed.exchange(false, std::memory_order_acq_rel)) ring.event.drain();
}

}  // namespace vpci
