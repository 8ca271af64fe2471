// The packet paths of a peer queue, over either format of rings: each is compiled by itself, so that no packet
// pays for the choice. The peer's memory is reached through its region table only.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "frame_copy.h"
#include "offload.h"
#include "packed_device.h"
#include "peer_queue.h"
#include "split_device.h"

namespace vpci {

template <class Ring>
class PeerRings final : public PeerQueue {
 public:
  PeerRings() = default;
  bool init(const PeerQueueOptions& options, std::string* error);

  uint32_t receive(Burst& burst) override;
  void release(Burst& burst, uint32_t n) override;
  uint32_t send(const Burst& burst) override;
  uint32_t room(iovec* pieces, uint32_t most, uint32_t bytes) override;
  void place(const NetHeader& header, uint32_t length) override;
  int wait_fd(bool for_send) override;
  bool arm(bool for_send) override;
  void disarm(bool for_send) override;
  void flush() override;
  void detached() override;

  void set_dirty_log(std::shared_ptr<const DirtyLog> log) override;
  void set_enabled(bool transmit, bool receive) override;
  void rewire(bool transmit, OwnFd kick, NotifyTarget notify) override;
  bool has(bool transmit) const override { return (transmit ? transmit_ : receive_).present; }
  uint16_t next_avail(bool transmit) const override {
    return (transmit ? transmit_ : receive_).position.load(std::memory_order_acquire);
  }

 private:
  // A chain that was looked at and not taken yet: its first descriptor, fetched and translated when it is a
  // buffer in one piece and in the queue's direction, else data is nullptr.
  struct Slot {
    uint8_t* data;
    uint32_t length;
    uint16_t head;
  };
  struct Side {
    Ring ring;
    OwnFd kick;
    NotifyTarget notify;
    bool present = false;
    bool enabled = false;
    bool armed = false;
    uint16_t kicked_at = 0;  // next_avail at the last kick
    uint32_t futile = 0;     // kicks since then that came with no buffer
    bool greeted = false;    // its driver was notified once
    std::atomic<uint16_t> position{0};  // chains completed, for other threads

    // Slots [next, end), modulo their number, are those of the chains from the ring's next_avail on. They are
    // filled ahead, so that a burst's cache misses are on their way while the burst before it is worked on.
    static constexpr uint32_t kSlots = Burst::kMax;
    Slot slots[kSlots];
    uint32_t next = 0, end = 0;
    uint32_t staged() const { return end - next; }
    Slot& slot(uint32_t i) { return slots[i % kSlots]; }
    void forget() { next = end = 0; }
  };
  enum class Sent : uint8_t { kTaken, kDropped, kNoRoom, kBroken };

  bool init_side(Side* side, const PeerRingOptions& options, bool transmit, std::string* error);
  Side& side(bool for_send) { return for_send ? receive_ : transmit_; }
  bool usable(bool for_send) { return side(for_send).present && broken(for_send) == nullptr; }
  bool memory_vanished();
  template <bool kTransmit>
  void stage(uint32_t known);

  // -- receive (peer_receive.cc) --
  uint32_t discard(uint32_t n);
  void accept(Burst& burst, Packet& packet, uint16_t head, HeaderWords words);
  void drop(uint16_t head, Drop cause);
  enum class Chain : uint8_t { kTaken, kLater, kBroken };
  Chain receive_chain(Burst& burst, uint16_t head);
  void complete(uint32_t entries);

  // -- send (peer_send.cc) --
  uint32_t refuse_all(const Burst& burst);
  template <bool kLog>
  uint32_t send_burst(const Burst& burst);
  // Not inlined: the short way would have fewer registers.
  template <bool kLog>
  [[gnu::noinline]] Sent send_chains(const Burst& burst, const Packet& packet, NetHeader header, uint32_t* used);
  template <bool kLog>
  void write_pieces(const Burst& burst, const Packet& packet, const NetHeader& header);
  template <bool kLog>
  void run_copies();
  template <bool kLog>
  bool publish_sent(uint32_t used);
  bool collect_chain(uint16_t head, uint32_t most, bool to_its_end, uint64_t* length);
  void mark_pieces(uint64_t bytes) const;

  std::shared_ptr<const RegionTable> table_;
  std::shared_ptr<const DirtyLog> log_;
  uint64_t features_ = 0;
  uint32_t header_bytes_ = 12;
  uint32_t max_frame_ = kDefaultMaxFrame;
  bool mergeable_ = false;

  Side transmit_, receive_;

  // Chains taken by receive and not completed: in ring order, packets and dropped ones mixed.
  struct Taken {
    uint16_t head;
    bool dropped;
  };
  Taken taken_[Burst::kMax];
  uint32_t taken_begin_ = 0, taken_end_ = 0;
  bool taken_drops_ = false;  // some of them were dropped

  CopyList copies_;              // of the burst that is being sent
  std::vector<Segment> pieces_;  // of the receive chains of one packet
  uint32_t piece_count_ = 0;
  uint32_t walk_budget_ = 0;     // pieces that this call may still look at

  // The room that was given last (peer_room.cc): its chains, whose pieces are pieces_, as they were when looked at.
  static constexpr uint32_t kRoomPieces = 64;
  struct RoomChain {
    uint16_t head;
    uint32_t length;  // no more than the room
  };
  RoomChain room_[kRoomPieces];
  uint32_t room_chains_ = 0;
  uint32_t room_bytes_ = 0;  // with the header

  OffloadFit offload_;
};

// Fills slots for the first of the `known` available chains. A head that is not valid ends the slots in front
// of it.
template <class Ring>
template <bool kTransmit>
void PeerRings<Ring>::stage(uint32_t known) {
  Side& side = kTransmit ? transmit_ : receive_;
  Ring& ring = side.ring;
  const uint32_t from = side.end;
  uint32_t to = side.next + std::min(known, Side::kSlots);
  for (uint32_t i = from; i != to; i++) {
    uint16_t head = ring.head(i - side.next);
    if (!ring.valid_head(head)) {
      to = i;
      break;
    }
    side.slot(i).head = head;
    ring.prefetch(head);
    ring.prefetch_used(i - side.next);
  }
  AddressCache& addresses = ring.addresses();
  constexpr uint16_t kPlain = kTransmit ? 0 : kDescWrite;
  for (uint32_t i = from; i != to; i++) {
    Slot& slot = side.slot(i);
    VirtqDesc d = ring.first(slot.head);
    slot.length = d.len;
    slot.data = nullptr;
    if (__builtin_expect((d.flags & (kDescNext | kDescWrite | kDescIndirect)) == kPlain && d.len > 0, 1))
      slot.data = addresses.translate(d.addr, d.len);
    if (slot.data) {
      if (kTransmit) {
        __builtin_prefetch(slot.data);
        __builtin_prefetch(slot.data + 64);
      } else {
        prefetch_for_write(slot.data);
        prefetch_for_write(slot.data + 64);
      }
    }
  }
  side.end = to;
}

}  // namespace vpci
