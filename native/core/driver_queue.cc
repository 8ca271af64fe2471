// Set-up, notifications and the end of a driver queue. The packet paths are in driver_receive.cc and
// driver_send.cc.
#include "driver_queue.h"

namespace vpci {

namespace {
constexpr uint32_t kMinBuffer = 64, kMaxBuffer = 1 << 20;

// Distance of one buffer from the next: an odd number of cache lines, so that the first lines of all buffers,
// which every packet touches, do not fall into a few sets of the caches.
constexpr uint32_t stride_of(uint32_t buffer_bytes) { return ((buffer_bytes + 63) / 64 | 1) * 64; }
}  // namespace

uint64_t DriverQueue::bytes(uint32_t size, uint32_t buffer_bytes) {
  if (!valid_ring_size(size) || buffer_bytes < kMinBuffer || buffer_bytes > kMaxBuffer) return 0;
  return 2 * SplitDriver::bytes(size) + 2ull * size * stride_of(buffer_bytes);
}

std::shared_ptr<DriverQueue> DriverQueue::create(const DriverQueueOptions& options, std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return nullptr;
  };
  uint64_t bytes = DriverQueue::bytes(options.size, options.buffer_bytes);
  if (!valid_ring_size(options.size)) return fail("ring size is not a power of two from 1 to 32768");
  if (bytes == 0) return fail("buffer bytes are not from 64 to 1048576");
  if (!options.mapping || !options.mapping->writable()) return fail("driver queue needs a writable mapping");
  if (options.offset % 64 || options.address % 64)
    return fail("offset and address have to be multiples of 64");
  const Mapping& m = *options.mapping;
  if (options.offset > m.size() || bytes > m.size() - options.offset)
    return fail("driver queue leaves its mapping");
  if (bytes - 1 > UINT64_MAX - options.address)
    return fail("driver queue wraps around the end of the address space");

  std::shared_ptr<DriverQueue> q(new DriverQueue());
  if (!q->receive_.call.duplicate(options.receive_call_fd, error) ||
      !q->receive_.kick.duplicate(options.receive_kick_fd, error) ||
      !q->transmit_.call.duplicate(options.transmit_call_fd, error) ||
      !q->transmit_.kick.duplicate(options.transmit_kick_fd, error))
    return nullptr;
  q->mapping_ = options.mapping;
  q->features_ = options.features;
  q->buffer_bytes_ = options.buffer_bytes;
  q->stride_ = stride_of(options.buffer_bytes);
  q->header_bytes_ = net_header_bytes(options.features);
  q->mergeable_ = options.features & kNetMrgRxbuf;

  uint8_t* base = m.data() + options.offset;
  uint64_t at = 0, ring_bytes = SplitDriver::bytes(options.size);
  for (Side* side : {&q->receive_, &q->transmit_}) {
    side->ring.init(base + at, options.address + at, options.size, options.features);
    at += ring_bytes;
  }
  for (Side* side : {&q->receive_, &q->transmit_}) {
    side->buffers = base + at;
    side->address = options.address + at;
    at += static_cast<uint64_t>(options.size) * q->stride_;
  }
  for (uint32_t i = 0; i < options.size; i++) {
    q->receive_.ring.set_desc(static_cast<uint16_t>(i), q->buffer_address(q->receive_, i),
                              options.buffer_bytes, kDescWrite, 0);
    q->receive_.ring.offer(static_cast<uint16_t>(i));
    q->free_.push_back(static_cast<uint16_t>(i));
  }
  q->receive_.ring.publish();
  q->free_tail_ = options.size;
  q->held_.resize(options.size);
  q->frames_.resize(options.size);
  q->chain_length_.resize(options.size);
  q->chain_next_.resize(options.size);
  q->offload_.init(fit_for_device, options.features, kDefaultMaxFrame);
  if (m.faulted()) return fail("driver queue's memory vanished");
  return q;
}

void DriverQueue::break_both(const char* cause) {
  set_broken(false, cause);
  set_broken(true, cause);
}

bool DriverQueue::memory_vanished() {
  if (__builtin_expect(!mapping_->faulted(), 1)) return false;
  break_both("queue memory vanished");
  return true;
}

// -- sleeping -----------------------------------------------------------------------------------------------

int DriverQueue::wait_fd(bool for_send) {
  const OwnFd& fd = side(for_send).call;
  return fd.get() >= 0 ? fd.get() : kPolled;
}

bool DriverQueue::arm(bool for_send) {
  if (broken(for_send)) return true;
  Side& s = side(for_send);
  s.armed = s.ring.request_interrupts();
  return memory_vanished() || s.armed;
}

void DriverQueue::disarm(bool for_send) {
  Side& s = side(for_send);
  s.armed = false;
  s.call.drain();
  if (!broken(for_send)) s.ring.suppress_interrupts();
}

void DriverQueue::flush() {
  for (bool for_send : {false, true}) {
    Side& s = side(for_send);
    if (broken(for_send) || s.ring.notify_settled()) continue;
    RingStats& stats = for_send ? send_stats : receive_stats;
    if (s.ring.needs_notify() && s.kick.get() >= 0) {
      s.kick.signal();
      stats.notifications_sent.add(1);
    } else {
      stats.notifications_suppressed.add(1);
    }
  }
}

void DriverQueue::detached() {
  if (!broken(false)) give_back(frame_end_ - frame_begin_);
  frame_begin_ = frame_end_ = 0;
  flush();
  receive_.armed = transmit_.armed = false;
}

}  // namespace vpci
