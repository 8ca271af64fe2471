// Receive: from the peer's transmitq into a burst. Heads and descriptors were fetched ahead
// (PeerRings::stage), so that the cache misses of many packets overlap; each value is fetched once, checked,
// then used.
#include "peer_rings.h"

namespace vpci {

template <class Ring>
uint32_t PeerRings<Ring>::receive(Burst& burst) {
  burst.clear();
  // One burst at a time: those taken earlier have to be released first.
  if (taken_begin_ != taken_end_ || !usable(false)) return 0;
  taken_begin_ = taken_end_ = 0;
  taken_drops_ = false;
  Ring& ring = transmit_.ring;
  if (!transmit_.armed) ring.suppress_kicks();
  uint32_t waiting = ring.available(Burst::kMax);
  receive_stats.fill.set(waiting);
  if (waiting == 0) {
    if (memory_vanished()) return 0;
    if (ring.cause()) set_broken(false, ring.cause());
    return 0;
  }
  if (!transmit_.enabled) return discard(std::min(waiting, Burst::kMax));

  stage<true>(waiting);
  const uint32_t n = transmit_.staged();
  const uint32_t header_bytes = header_bytes_;
  const char* cause = n == 0 ? Ring::kBadHead : nullptr;
  const uint64_t high_mask = 0xffff;  // num_buffers has no meaning here (VIRTIO 1.3, 5.1.6.2)
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < n; i++) {
    const Slot& slot = transmit_.slot(transmit_.next + i);
    if (__builtin_expect(slot.data != nullptr && slot.length > header_bytes, 1)) {
      const uint8_t* data = slot.data;
      HeaderWords words = {load_once64(data), 0};
      words.high = static_cast<uint32_t>(load_once16(data + 8) & high_mask);
      Packet& packet = burst.packets[burst.end];
      uint32_t length = slot.length - header_bytes;
      packet.first = {const_cast<uint8_t*>(data) + header_bytes, length};
      packet.length = length;
      packet.segments = 1;
      packet.more = 0;
      if (__builtin_expect((words.low | words.high) == 0 && length >= kMinFrame && length <= max_frame_, 1)) {
        packet.header = NetHeader{};
        taken_[taken_end_++] = {slot.head, false};
        burst.end++;
      } else {
        accept(burst, packet, slot.head, words);
      }
      continue;
    }
    Chain chain = receive_chain(burst, slot.head);
    if (chain == Chain::kTaken) continue;
    if (chain == Chain::kBroken) cause = ring.cause() ? ring.cause() : "writable descriptor in a transmitq";
    break;
  }
  if (memory_vanished()) {
    burst.clear();
    taken_end_ = 0;
    return 0;
  }
  ring.advance(taken_end_);
  transmit_.next += taken_end_;
  if (cause)
    set_broken(false, cause);
  else
    stage<true>(ring.ahead(Burst::kMax));
  if (burst.end == 0) {
    complete(taken_end_);
    return 0;
  }
  for (uint32_t i = 0; i < burst.end; i++) bytes += burst.packets[i].length;
  receive_stats.packets.add(burst.end);
  receive_stats.bytes.add(bytes);
  receive_stats.burst(burst.end);
  return burst.end;
}

// A ring that is started and not enabled is drained and its packets are discarded (vhost-user, ring states).
template <class Ring>
uint32_t PeerRings<Ring>::discard(uint32_t n) {
  Ring& ring = transmit_.ring;
  for (uint32_t i = 0; i < n; i++) {
    uint16_t head = ring.head(i);
    if (!ring.valid_head(head)) {
      set_broken(false, Ring::kBadHead);
      break;
    }
    drop(head, Drop::kDisabled);
  }
  ring.advance(taken_end_);
  transmit_.forget();
  complete(taken_end_);
  memory_vanished();
  return 0;
}

template <class Ring>
void PeerRings<Ring>::drop(uint16_t head, Drop cause) {
  taken_[taken_end_++] = {head, true};
  taken_drops_ = true;
  receive_stats.drop(cause);
}

// Takes the packet behind burst.end into the burst, or drops it.
template <class Ring>
void PeerRings<Ring>::accept(Burst& burst, Packet& packet, uint16_t head, HeaderWords words) {
  if (packet.length < kMinFrame) return drop(head, Drop::kTooShort);
  if (packet.length > max_frame_) return drop(head, Drop::kTooLong);
  packet.header = header_of(words);
  if (!check_from_driver(&packet.header, packet.length, features_)) return drop(head, Drop::kBadHeader);
  taken_[taken_end_++] = {head, false};
  burst.end++;
}

template <class Ring>
typename PeerRings<Ring>::Chain PeerRings<Ring>::receive_chain(Burst& burst, uint16_t head) {
  Packet& packet = burst.packets[burst.end];
  const uint32_t extra_before = burst.extra_used;
  uint8_t raw[12] = {};
  uint32_t raw_bytes = 0, segments = 0;
  uint64_t length = 0;
  bool writable_piece = false, full = false;
  Walk walk = transmit_.ring.walk(head, [&](uint8_t* data, uint32_t piece, bool writable) {
    if (writable) {
      writable_piece = true;
      return false;
    }
    if (raw_bytes < header_bytes_) {
      // The header may be split in any way (VIRTIO 1.3, 2.7.4).
      uint32_t part = std::min(piece, header_bytes_ - raw_bytes);
      std::memcpy(raw + raw_bytes, data, part);
      raw_bytes += part;
      data += part;
      piece -= part;
      if (piece == 0) return true;
    }
    if (segments == 0) {
      packet.first = {data, piece};
      packet.more = static_cast<uint16_t>(burst.extra_used);
    } else if (burst.extra_used == burst.extra.size() || burst.extra_used == UINT16_MAX) {
      full = true;
      return false;
    } else {
      burst.extra[burst.extra_used++] = {data, piece};
    }
    segments++;
    length += piece;
    return true;
  });
  if (walk == Walk::kMalformed || writable_piece) {
    burst.extra_used = extra_before;
    return Chain::kBroken;
  }
  if (full) {
    burst.extra_used = extra_before;
    if (extra_before != 0) return Chain::kLater;
    drop(head, Drop::kBadChain);
    return Chain::kTaken;
  }
  packet.length = static_cast<uint32_t>(std::min<uint64_t>(length, UINT32_MAX));
  packet.segments = static_cast<uint16_t>(segments);
  HeaderWords words = {load_once64(raw), load_once16(raw + 8)};
  uint32_t end_before = burst.end;
  accept(burst, packet, head, words);
  if (burst.end == end_before) burst.extra_used = extra_before;
  return Chain::kTaken;
}

template <class Ring>
void PeerRings<Ring>::release(Burst& burst, uint32_t n) {
  n = std::min(n, burst.count());
  burst.begin += n;
  uint32_t end = taken_begin_;
  if (__builtin_expect(!taken_drops_, 1)) {
    end = std::min(end + n, taken_end_);
  } else {
    while (end < taken_end_ && (taken_[end].dropped || n-- > 0)) end++;
  }
  complete(end - taken_begin_);
}

// Gives the first `entries` chains that were taken back to the driver.
template <class Ring>
void PeerRings<Ring>::complete(uint32_t entries) {
  Ring& ring = transmit_.ring;
  for (uint32_t i = 0; i < entries; i++) ring.put_used(i, taken_[taken_begin_ + i].head, 0);
  taken_begin_ += entries;
  log_ ? ring.template publish<true>(entries) : ring.template publish<false>(entries);
  transmit_.position.store(ring.used_idx(), std::memory_order_release);
}

template uint32_t PeerRings<SplitDevice>::receive(Burst&);
template void PeerRings<SplitDevice>::release(Burst&, uint32_t);
template uint32_t PeerRings<PackedDevice>::receive(Burst&);
template void PeerRings<PackedDevice>::release(Burst&, uint32_t);

}  // namespace vpci
