// Room in the peer's receiveq for a frame that its source writes there by itself. What the peer says of the chains is
// read by room() alone; place() goes by what room() noted. No chain is taken before there is a frame in it.
#include "peer_rings.h"

namespace vpci {

template <class Ring>
uint32_t PeerRings<Ring>::room(iovec* pieces, uint32_t most, uint32_t bytes) {
  room_chains_ = 0;
  // Without GUEST_CSUM a checksum may have to be completed, in memory where nobody changes what is summed: see send.
  if (!usable(true) || !receive_.enabled || !(features_ & kNetGuestCsum) || bytes == 0) return 0;
  Ring& ring = receive_.ring;
  if (!receive_.armed) ring.suppress_kicks();
  // What was looked at ahead is looked at anew.
  receive_.forget();
  piece_count_ = 0;
  most = std::min(most, kRoomPieces);
  const uint64_t need = static_cast<uint64_t>(header_bytes_) + bytes;
  uint64_t got = 0;
  uint32_t chains = 0;
  // No more than `most` pieces and one are looked at: who has nothing to give costs the other lanes no more than that.
  while (got < need) {
    if (chains != 0 && !mergeable_) return 0;
    const uint32_t available = ring.available(chains + 1);
    if (ring.cause()) set_broken(true, ring.cause());
    if (available <= chains) return 0;
    const uint16_t head = ring.head(chains);
    uint64_t length = 0;
    if (!collect_chain(head, most + 1, false, &length) || piece_count_ > most) return 0;
    if (chains == 0 && length < header_bytes_) return 0;  // send gives it back
    room_[chains++] = {head, static_cast<uint32_t>(std::min(length, need))};
    got += length;
  }
  room_chains_ = chains;
  room_bytes_ = static_cast<uint32_t>(need);

  uint32_t skip = header_bytes_, left = bytes, count = 0;
  for (const Segment* piece = pieces_.data(); left > 0; piece++) {
    const uint32_t begin = std::min(skip, piece->length);
    skip -= begin;
    const uint32_t part = std::min(left, piece->length - begin);
    if (part == 0) continue;
    pieces[count++] = {piece->data + begin, part};
    left -= part;
  }
  return count;
}

template <class Ring>
void PeerRings<Ring>::place(const NetHeader& header, uint32_t length) {
  if (room_chains_ == 0) return;
  room_chains_ = 0;
  NetHeader fitted = header;
  bool none = length == 0;
  if (fit_for_driver(&fitted, features_) != Offload::kPass) {
    send_stats.drop(Drop::kOffload);
    none = true;
  } else if (length > max_frame_) {
    send_stats.drop(Drop::kTooLong);
    none = true;
  }
  if (none) {
    // The chains stay available, but bytes of theirs may have been written.
    if (log_) mark_pieces(room_bytes_);
    return;
  }

  Ring& ring = receive_.ring;
  const uint32_t need = header_bytes_ + length;
  uint32_t used = 0;
  for (uint32_t left = need; left > 0; used++) {
    const uint32_t part = std::min(left, room_[used].length);
    ring.put_used(used, room_[used].head, part);
    left -= part;
  }
  // VIRTIO 1.3, 5.1.6.4.1: num_buffers is 1 without merging too.
  fitted.num_buffers = static_cast<uint16_t>(used);
  const uint8_t* from = reinterpret_cast<const uint8_t*>(&fitted);
  const Segment* piece = pieces_.data();
  for (uint32_t left = header_bytes_; left > 0; piece++) {
    const uint32_t part = std::min(left, piece->length);
    copy_bytes(piece->data, from, part);
    from += part;
    left -= part;
  }
  if (log_) mark_pieces(need);
  if (used > 1) ring.join(0, used);
  ring.advance(used);
  if (memory_vanished()) return;
  log_ ? ring.template publish<true>(used) : ring.template publish<false>(used);
  receive_.position.store(ring.used_idx(), std::memory_order_release);
  send_stats.fill.set(ring.ahead(Burst::kMax));
  send_stats.packets.add(1);
  send_stats.bytes.add(length);
  send_stats.burst(1);
}

template uint32_t PeerRings<SplitDevice>::room(iovec*, uint32_t, uint32_t);
template uint32_t PeerRings<PackedDevice>::room(iovec*, uint32_t, uint32_t);
template void PeerRings<SplitDevice>::place(const NetHeader&, uint32_t);
template void PeerRings<PackedDevice>::place(const NetHeader&, uint32_t);

}  // namespace vpci
