// Send: frames into free buffers of the transmitq; sent ones are taken back when they are needed.
#include <algorithm>

#include "driver_queue.h"
#include "frame_copy.h"

namespace vpci {

// Takes sent buffers back until `wanted` descriptors are free or the device has given all it has.
uint32_t DriverQueue::collect_sent(uint32_t wanted) {
  SplitDriver& ring = transmit_.ring;
  const uint32_t mask = ring.size() - 1;
  uint32_t waiting = ring.used(wanted);
  for (uint32_t i = 0; i < waiting; i++) {
    uint32_t id = ring.peek(0).id;
    if (!ring.take(id)) break;
    // The device only says the head; which descriptors belong to it is known here.
    uint32_t member = id;
    for (uint32_t k = chain_length_[id]; k > 0; k--) {
      free_[free_tail_++ & mask] = static_cast<uint16_t>(member);
      member = chain_next_[member];
    }
  }
  if (ring.cause()) set_broken(true, ring.cause());
  return free_tail_ - free_head_;
}

uint32_t DriverQueue::send(const Burst& burst) {
  const uint32_t total = burst.count();
  if (broken(true)) {
    send_stats.drop(Drop::kDisabled, total);
    return total;
  }
  SplitDriver& ring = transmit_.ring;
  if (!transmit_.armed) ring.suppress_interrupts();
  const uint32_t mask = ring.size() - 1;
  uint32_t free = free_tail_ - free_head_;
  if (free < total) free = collect_sent(total);
  for (uint32_t i = 0, n = std::min(free, total); i < n; i++) {
    uint8_t* data = buffer(transmit_, free_[(free_head_ + i) & mask]);
    prefetch_for_write(data);
    prefetch_for_write(data + 64);
  }

  uint32_t taken = 0, packets = 0;
  uint64_t bytes = 0;
  for (; taken < total; taken++) {
    const Packet* packet = &burst.packets[burst.begin + taken];
    HeaderWords words = header_words(packet->header);
    Packet replaced;
    if (__builtin_expect(words.low != 0, 0)) {
      NetHeader header = packet->header;
      Offload offload = offload_.fit(burst, *packet, &header, &replaced);
      if (offload == Offload::kRefuse) {
        send_stats.drop(Drop::kOffload);
        continue;
      }
      if (offload == Offload::kChecksum) packet = &replaced;
      words = header_words(header);
    }
    words.high &= 0xffff;  // VIRTIO 1.3, 5.1.6.2.1: num_buffers is 0
    const uint64_t need = static_cast<uint64_t>(header_bytes_) + packet->length;
    const uint64_t count = (need + buffer_bytes_ - 1) / buffer_bytes_;
    if (__builtin_expect(count > ring.size(), 0)) {
      send_stats.drop(Drop::kTooLong);
      continue;
    }
    if (free < count && (free = collect_sent(static_cast<uint32_t>(count))) < count) break;

    const uint16_t head = free_[free_head_ & mask];
    if (__builtin_expect(count == 1 && packet->segments == 1, 1)) {
      uint8_t* data = buffer(transmit_, head);
      store64(data, words.low);
      store32(data + 8, words.high);  // bytes 10 and 11 are the frame's when there is no num_buffers
      copy_bytes(data + header_bytes_, packet->first.data, packet->length);
      ring.set_desc(head, buffer_address(transmit_, head), static_cast<uint32_t>(need), 0, 0);
      chain_length_[head] = 1;
    } else {
      send_chain(burst, *packet, header_of(words), static_cast<uint32_t>(count));
    }
    ring.offer(head);
    free_head_ += static_cast<uint32_t>(count);
    free -= static_cast<uint32_t>(count);
    packets++;
    bytes += packet->length;
  }
  if (memory_vanished()) return taken;
  if (packets) {
    ring.publish();
    send_stats.packets.add(packets);
    send_stats.bytes.add(bytes);
    send_stats.burst(packets);
  }
  send_stats.fill.set(ring.size() - free);
  return taken;
}

// The packet over the buffers of the next `count` free descriptors.
void DriverQueue::send_chain(const Burst& burst, const Packet& packet, const NetHeader& header,
                             uint32_t count) {
  uint32_t index = 0, at = 0;
  auto put = [&](const uint8_t* from, uint32_t length) {
    while (length) {
      if (at == buffer_bytes_) {
        index++;
        at = 0;
      }
      uint32_t part = std::min(length, buffer_bytes_ - at);
      copy_bytes(free_buffer(index) + at, from, part);
      from += part;
      length -= part;
      at += part;
    }
  };
  put(reinterpret_cast<const uint8_t*>(&header), header_bytes_);
  put(packet.first.data, packet.first.length);
  for (uint32_t i = 1; i < packet.segments; i++) {
    const Segment& s = burst.extra[packet.more + i - 1];
    put(s.data, s.length);
  }
  link_chain(count, at);
}

// The next `count` free descriptors become a chain of full buffers, the last of which has `last_bytes`.
void DriverQueue::link_chain(uint32_t count, uint32_t last_bytes) {
  SplitDriver& ring = transmit_.ring;
  const uint32_t mask = ring.size() - 1;
  // From the last to the first, so that each knows its successor.
  uint16_t next = 0;
  for (uint32_t i = count; i-- > 0;) {
    uint16_t d = free_[(free_head_ + i) & mask];
    bool last = i == count - 1;
    ring.set_desc(d, buffer_address(transmit_, d), last ? last_bytes : buffer_bytes_, last ? 0 : kDescNext,
                  next);
    chain_next_[d] = next;
    next = d;
  }
  chain_length_[next] = static_cast<uint16_t>(count);
}

uint32_t DriverQueue::room(iovec* pieces, uint32_t most, uint32_t bytes) {
  SplitDriver& ring = transmit_.ring;
  const uint32_t count = buffers_of(bytes);
  // Without CSUM a checksum may have to be completed: see send.
  if (broken(true) || !(features_ & kNetCsum) || bytes == 0 || count > most || count > ring.size()) return 0;
  if (!transmit_.armed) ring.suppress_interrupts();
  if (free_tail_ - free_head_ < count && collect_sent(count) < count) return 0;
  if (broken(true)) return 0;
  uint32_t skip = header_bytes_;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t part = std::min(bytes, buffer_bytes_ - skip);
    pieces[i] = {free_buffer(i) + skip, part};
    bytes -= part;
    skip = 0;
  }
  return count;
}

void DriverQueue::place(const NetHeader& header, uint32_t length) {
  if (length == 0) return;
  NetHeader fitted = header;
  if (fit_for_device(&fitted, features_) != Offload::kPass) {
    send_stats.drop(Drop::kOffload);
    return;
  }
  fitted.num_buffers = 0;  // VIRTIO 1.3, 5.1.6.2.1
  const uint32_t count = buffers_of(length);
  const uint16_t head = free_[free_head_ & (transmit_.ring.size() - 1)];
  std::memcpy(free_buffer(0), &fitted, header_bytes_);
  link_chain(count, header_bytes_ + length - (count - 1) * buffer_bytes_);
  transmit_.ring.offer(head);
  free_head_ += count;
  if (memory_vanished()) return;
  transmit_.ring.publish();
  send_stats.packets.add(1);
  send_stats.bytes.add(length);
  send_stats.burst(1);
  send_stats.fill.set(transmit_.ring.size() - (free_tail_ - free_head_));
}

}  // namespace vpci
