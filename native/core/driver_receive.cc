// Receive: frames that the device put into the buffers of the receiveq, which are offered again on release.
// What the device says of ids, lengths and counts is checked.
#include <algorithm>

#include "driver_queue.h"

namespace vpci {

uint32_t DriverQueue::receive(Burst& burst) {
  burst.clear();
  if (frame_begin_ != frame_end_ || broken(false)) return 0;
  frame_begin_ = frame_end_ = held_begin_ = held_end_ = 0;
  SplitDriver& ring = receive_.ring;
  if (!receive_.armed) ring.suppress_interrupts();
  uint32_t waiting = ring.used(Burst::kMax);
  receive_stats.fill.set(waiting);
  if (waiting == 0) {
    if (!memory_vanished() && ring.cause()) set_broken(false, ring.cause());
    return 0;
  }
  uint32_t ahead = std::min(waiting, Burst::kMax);
  for (uint32_t i = 0; i < ahead; i++) {
    uint32_t id = ring.peek(i).id;
    if (id >= ring.size()) break;
    __builtin_prefetch(buffer(receive_, id));
    __builtin_prefetch(buffer(receive_, id) + 64);
  }
  bool later = false;
  uint32_t tries = 0;
  while (burst.end < Burst::kMax && tries < Burst::kMax && !later) {
    uint32_t left = waiting - held_end_;
    if (left == 0) break;
    tries++;
    if (!take_frame(burst, left, &later)) break;
  }
  if (memory_vanished()) {
    burst.clear();
    frame_end_ = held_end_ = 0;
    return 0;
  }
  if (ring.cause()) set_broken(false, ring.cause());
  if (burst.end == 0) {
    give_back(frame_end_);
    return 0;
  }
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < burst.end; i++) bytes += burst.packets[i].length;
  receive_stats.packets.add(burst.end);
  receive_stats.bytes.add(bytes);
  receive_stats.burst(burst.end);
  return burst.end;
}

// One frame from the next used elements: into the burst, or noted as dropped. False when the ring is broken;
// *later when the frame is not complete yet, or the burst has no room for its pieces.
bool DriverQueue::take_frame(Burst& burst, uint32_t waiting, bool* later) {
  SplitDriver& ring = receive_.ring;
  VirtqUsedElem first = ring.peek(0);
  if (first.id >= ring.size()) return ring.take(first.id);
  uint8_t* data = buffer(receive_, first.id);
  HeaderWords words = {load_once64(data), load_once32(data + 8)};
  uint32_t buffers = 1;
  if (mergeable_) {
    buffers = words.high >> 16;
    // A device uses all buffers of a packet at once (VIRTIO 1.3, 5.1.6.4.1); one that has not is waited for.
    if (buffers > waiting && buffers <= ring.size() - held_end_) {
      if (ring.used(buffers) < buffers) *later = true;
      if (*later || ring.cause()) return ring.cause() == nullptr;
    }
  }
  Drop cause = Drop::kCount;
  if (buffers == 0 || buffers > ring.size() - held_end_) {
    cause = Drop::kBadHeader;
    buffers = 1;
  } else if (buffers > 1 && buffers - 1 > burst.extra.size() - burst.extra_used) {
    if (burst.extra_used != 0) {
      *later = true;
      return true;
    }
    cause = Drop::kBadChain;
  }
  Packet& packet = burst.packets[burst.end];
  packet.first = {data + header_bytes_, 0};
  packet.segments = 1;
  packet.more = static_cast<uint16_t>(burst.extra_used);
  packet.length = 0;
  uint32_t extra_before = burst.extra_used;
  for (uint32_t i = 0; i < buffers; i++) {
    VirtqUsedElem e = i == 0 ? first : ring.peek(0);
    if (!ring.take(e.id)) {
      burst.extra_used = extra_before;
      return false;
    }
    held_[held_end_++] = static_cast<uint16_t>(e.id);
    uint32_t skip = i == 0 ? header_bytes_ : 0;
    if (e.len > buffer_bytes_ || e.len <= skip) {
      if (cause == Drop::kCount) cause = e.len > buffer_bytes_ ? Drop::kTooLong : Drop::kTooShort;
      continue;
    }
    if (cause != Drop::kCount) continue;
    uint32_t length = e.len - skip;
    packet.length += length;
    if (i == 0) {
      packet.first.length = length;
    } else {
      burst.extra[burst.extra_used++] = {buffer(receive_, e.id), length};
      packet.segments++;
    }
  }
  if (cause == Drop::kCount && packet.length < kMinFrame) cause = Drop::kTooShort;
  if (cause == Drop::kCount) {
    if (__builtin_expect(words.low == 0, 1)) {
      packet.header = NetHeader{};
    } else {
      packet.header = header_of(words);
      if (!check_from_device(&packet.header, packet.length, features_)) cause = Drop::kBadHeader;
    }
  }
  bool dropped = cause != Drop::kCount;
  frames_[frame_end_++] = {static_cast<uint16_t>(buffers), dropped};
  if (dropped) {
    burst.extra_used = extra_before;
    receive_stats.drop(cause);
  } else {
    burst.end++;
  }
  return true;
}

void DriverQueue::release(Burst& burst, uint32_t n) {
  n = std::min(n, burst.count());
  burst.begin += n;
  uint32_t end = frame_begin_;
  while (end < frame_end_ && (frames_[end].dropped || n-- > 0)) end++;
  give_back(end - frame_begin_);
}

// Offers the buffers of the first `frames` frames again.
void DriverQueue::give_back(uint32_t frames) {
  SplitDriver& ring = receive_.ring;
  for (uint32_t i = 0; i < frames; i++)
    for (uint32_t k = frames_[frame_begin_++].buffers; k > 0; k--) ring.offer(held_[held_begin_++]);
  if (frames) ring.publish();
}

}  // namespace vpci
