// Send: from a burst into the peer's receiveq. Buffers are looked at ahead of the copies (PeerRings::stage),
// so that their cache misses overlap; a frame that fits one buffer in one piece takes the short way,
// everything else (chains, merged buffers, completed checksums) goes through send_chains.
#include "frame_copy.h"
#include "peer_rings.h"

namespace vpci {

namespace {
// Pieces of receive chains that one call may look at before it ends early: a peer that offers endless tiny
// pieces must not hold up the other queues of the worker.
constexpr uint32_t kWalkBudget = 16384;
// Used elements after which they are published, when packets take many buffers each.
constexpr uint32_t kPublishEvery = 64;
}  // namespace

template <class Ring>
uint32_t PeerRings<Ring>::send(const Burst& burst) {
  if (!usable(true) || !receive_.enabled) return refuse_all(burst);
  return log_ ? send_burst<true>(burst) : send_burst<false>(burst);
}

// No packet goes into a ring that is not enabled, and none waits for one that will not come back.
template <class Ring>
uint32_t PeerRings<Ring>::refuse_all(const Burst& burst) {
  send_stats.drop(Drop::kDisabled, burst.count());
  return burst.count();
}

template <class Ring>
template <bool kLog>
uint32_t PeerRings<Ring>::send_burst(const Burst& burst) {
  Ring& ring = receive_.ring;
  if (!receive_.armed) ring.suppress_kicks();
  const uint32_t total = burst.count();
  const uint32_t header_bytes = header_bytes_;
  const uint32_t num_buffers_one = header_bytes == 12 ? 1u << 16 : 0;
  uint32_t taken = 0, used = 0, packets = 0;
  uint64_t bytes = 0;
  walk_budget_ = kWalkBudget;

  while (taken < total) {
    const Packet* packet = &burst.packets[burst.begin + taken];
    HeaderWords words = header_words(packet->header);
    Packet replaced;
    if (__builtin_expect(words.low != 0, 0)) {
      NetHeader header = packet->header;
      Offload offload = offload_.fit(burst, *packet, &header, &replaced);
      if (offload == Offload::kRefuse) {
        send_stats.drop(Drop::kOffload);
        taken++;
        continue;
      }
      if (offload == Offload::kChecksum) packet = &replaced;
      words = header_words(header);
    }
    if (__builtin_expect(packet->length > max_frame_, 0)) {
      send_stats.drop(Drop::kTooLong);
      taken++;
      continue;
    }
    if (receive_.staged() == 0) {
      uint32_t available = ring.available(total - taken);
      if (ring.cause()) set_broken(true, ring.cause());
      if (available == 0) break;
      stage<false>(available);
      if (receive_.staged() == 0) {
        set_broken(true, Ring::kBadHead);
        break;
      }
    }

    const Slot& slot = receive_.slot(receive_.next);
    const uint32_t need = header_bytes + packet->length;
    if (__builtin_expect(slot.data != nullptr && slot.length >= need && packet->segments == 1, 1)) {
      // VIRTIO 1.3, 5.1.6.4.1: num_buffers is 1 without merging too.
      store64(slot.data, words.low);
      if (header_bytes == 12)
        store32(slot.data + 8, (words.high & 0xffff) | num_buffers_one);
      else
        store16(slot.data + 8, static_cast<uint16_t>(words.high));
      copies_.add(slot.data + header_bytes, packet->first.data, packet->length);
      // The memory of `replaced` is used again at once, and the bits of long frames do not all find room.
      if (__builtin_expect(packet == &replaced || (kLog && need > DirtyLog::kByteOf), 0)) run_copies<kLog>();
      ring.put_used(used++, slot.head, need);
      ring.advance(1);
      receive_.next++;
    } else {
      Sent sent = send_chains<kLog>(burst, *packet, header_of(words), &used);
      if (sent == Sent::kNoRoom || sent == Sent::kBroken) break;
      if (sent == Sent::kDropped) {
        taken++;
        continue;
      }
    }
    packets++;
    bytes += packet->length;
    taken++;
    if (__builtin_expect(used > kPublishEvery, 0)) {
      if (!publish_sent<kLog>(used)) return taken;
      used = 0;
    }
  }

  if (!publish_sent<kLog>(used)) return taken;
  receive_.position.store(ring.used_idx(), std::memory_order_release);
  const uint32_t known = ring.ahead(Burst::kMax);
  send_stats.fill.set(known);
  stage<false>(known);
  if (packets) {
    send_stats.packets.add(packets);
    send_stats.bytes.add(bytes);
    send_stats.burst(packets);
  }
  return taken;
}

// A page is logged after it was written and before the used index that publishes it. Which pages is found out
// first, while the first lines are on their way: the copies drive the list of them out of the CPU's cache.
template <class Ring>
template <bool kLog>
void PeerRings<Ring>::run_copies() {
  if (!kLog) return copies_.run();
  copies_.ask();
  DirtyLog::Waiting waiting = receive_.ring.waiting();
  {
    typename Ring::Marks marks(receive_.ring, waiting);
    const uint64_t header_bytes = header_bytes_;
    for (const CopyList::Copy& c : copies_.pending())
      marks.add(Written::kBuffer, c.to - header_bytes, header_bytes + c.bytes);
  }
  copies_.run();
}

// The driver sees `used` elements from here on. False: the memory went away.
template <class Ring>
template <bool kLog>
bool PeerRings<Ring>::publish_sent(uint32_t used) {
  run_copies<kLog>();
  if (memory_vanished()) return false;
  receive_.ring.template publish<kLog>(used);
  return true;
}

// Collects as many receive chains as the packet needs, or leaves the ring as it was. `used` elements are
// written and not published.
template <class Ring>
template <bool kLog>
typename PeerRings<Ring>::Sent PeerRings<Ring>::send_chains(const Burst& burst, const Packet& packet,
                                                            NetHeader header, uint32_t* used) {
  Ring& ring = receive_.ring;
  // What was looked at ahead is looked at anew after this packet.
  receive_.forget();
  const uint64_t need = static_cast<uint64_t>(header_bytes_) + packet.length;
  uint64_t got = 0, last_length = 0;
  uint32_t chains = 0;
  uint16_t last_head = 0;
  piece_count_ = 0;
  // Elements of a packet that does not go are written and not published: the log has them all the same.
  auto give_up = [&](Sent result) {
    if (kLog && chains != 0) ring.mark_used(*used, chains);
    return result;
  };
  while (got < need) {
    uint32_t available = ring.available(chains + 1);
    if (ring.cause()) {
      set_broken(true, ring.cause());
      return give_up(Sent::kBroken);
    }
    if (available <= chains) {
      if (chains < ring.size()) return give_up(Sent::kNoRoom);
      send_stats.drop(Drop::kTooLong);  // all the buffers that there can ever be do not hold it
      return give_up(Sent::kDropped);
    }
    if (walk_budget_ == 0) return give_up(Sent::kNoRoom);
    last_head = ring.head(chains);
    if (!collect_chain(last_head, static_cast<uint32_t>(pieces_.size()), true, &last_length))
      return give_up(Sent::kBroken);
    if (chains == 0 && last_length < header_bytes_) {
      // VIRTIO 1.3, 5.1.6.3.1: no buffer is that short. It goes back empty.
      ring.put_used((*used)++, last_head, 0);
      ring.advance(1);
      send_stats.drop(Drop::kBadChain);
      piece_count_ = 0;
      continue;
    }
    got += last_length;
    chains++;
    if (got >= need) break;
    if (!mergeable_ || piece_count_ == pieces_.size()) {
      send_stats.drop(Drop::kTooLong);
      return give_up(Sent::kDropped);
    }
    ring.put_used(*used + chains - 1, last_head, static_cast<uint32_t>(last_length));
  }
  ring.put_used(*used + chains - 1, last_head, static_cast<uint32_t>(need - (got - last_length)));
  header.num_buffers = static_cast<uint16_t>(chains);
  write_pieces<kLog>(burst, packet, header);
  if (chains > 1) ring.join(*used, chains);
  *used += chains;
  ring.advance(chains);
  return Sent::kTaken;
}

// Puts the pieces of a chain behind those that are there, until there are `most`; *length is what they hold. The rest
// of the chain is looked at if it is to be checked to its end. False: the ring is broken.
template <class Ring>
bool PeerRings<Ring>::collect_chain(uint16_t head, uint32_t most, bool to_its_end, uint64_t* length) {
  uint64_t bytes = 0;
  bool readable_piece = false;
  Walk walk = receive_.ring.walk(head, [&](uint8_t* data, uint32_t piece, bool writable) {
    if (!writable) {
      readable_piece = true;
      return false;
    }
    if (walk_budget_) walk_budget_--;
    if (piece_count_ == most) return to_its_end;
    pieces_[piece_count_++] = {data, piece};
    bytes += piece;
    return true;
  });
  *length = bytes;
  if (walk != Walk::kMalformed && !readable_piece) return true;
  const char* const cause = receive_.ring.cause();
  set_broken(true, cause ? cause : "readable descriptor in a receiveq");
  return false;
}

// The header and the frame, across pieces that are long enough in all.
template <class Ring>
template <bool kLog>
void PeerRings<Ring>::write_pieces(const Burst& burst, const Packet& packet, const NetHeader& header) {
  uint32_t index = 0, at = 0;
  auto put = [&](const uint8_t* from, uint32_t length) {
    while (length) {
      const Segment& piece = pieces_[index];
      uint32_t part = std::min(length, piece.length - at);
      copy_bytes(piece.data + at, from, part);
      from += part;
      length -= part;
      at += part;
      if (at == piece.length) {
        index++;
        at = 0;
      }
    }
  };
  put(reinterpret_cast<const uint8_t*>(&header), header_bytes_);
  put(packet.first.data, packet.first.length);
  for (uint32_t i = 1; i < packet.segments; i++) {
    const Segment& s = burst.extra[packet.more + i - 1];
    put(s.data, s.length);
  }
  if (kLog) mark_pieces(static_cast<uint64_t>(header_bytes_) + packet.length);
}

// Logs the first `bytes` bytes of the pieces, which were written. There is a log.
template <class Ring>
void PeerRings<Ring>::mark_pieces(uint64_t bytes) const {
  DirtyLog::Waiting waiting = receive_.ring.waiting();
  typename Ring::Marks marks(receive_.ring, waiting);
  for (const Segment* piece = pieces_.data(); bytes > 0; piece++) {
    const uint64_t part = std::min<uint64_t>(bytes, piece->length);
    marks.add(Written::kBuffer, piece->data, part);
    bytes -= part;
  }
}

template uint32_t PeerRings<SplitDevice>::send(const Burst&);
template uint32_t PeerRings<PackedDevice>::send(const Burst&);
template bool PeerRings<SplitDevice>::collect_chain(uint16_t, uint32_t, bool, uint64_t*);
template bool PeerRings<PackedDevice>::collect_chain(uint16_t, uint32_t, bool, uint64_t*);
template void PeerRings<SplitDevice>::mark_pieces(uint64_t) const;
template void PeerRings<PackedDevice>::mark_pieces(uint64_t) const;

}  // namespace vpci
