// Device side of a packed ring (VIRTIO 1.3, 2.8): which chains are available, what they consist of, giving
// them back in order, and both directions of notification suppression. Trusts nothing the driver writes: what
// a chain is (its place, length and id) is fetched once, when it is first seen. Knows no packet. One thread.
//
// The words are those of SplitDevice. A head is the running number of a chain here, and an index is a Position.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device_ring.h"
#include "packed_layout.h"

namespace vpci {

class PackedDevice : public DeviceRing {
 public:
  // False, with the reason in `error`, when the ring cannot be where the options say.
  bool init(std::shared_ptr<const RegionTable> table, const Options& options, std::string* error);

  // Where the chain after those taken starts; where the next used descriptor goes; where nothing was seen yet.
  Position next_avail() const { return known() ? chain(next_).at : seen_avail_; }
  Position used_idx() const { return used_at_; }
  Position seen_avail() const { return seen_avail_; }

  // -- available chains -------------------------------------------------------------------------------------
  static constexpr const char* kBadHead = "chain is longer than the ring has room";
  uint32_t known() const { return static_cast<uint16_t>(end_ - next_); }
  // How many chains can be taken; looks for more when fewer than `wanted` are known.
  uint32_t available(uint32_t wanted) { return known() >= wanted ? known() : look(wanted); }
  // How many chains, of the next `wanted`, may be looked at ahead of their turn.
  uint32_t ahead(uint32_t wanted) { return available(wanted); }
  uint16_t head(uint32_t ahead) const { return static_cast<uint16_t>(next_ + ahead); }
  bool valid_head(uint16_t head) const { return chain(head).length != 0; }
  // Neighbours, which the CPU fetches by itself, and which are written where they were read.
  void prefetch(uint16_t) const {}
  void prefetch_used(uint32_t) const {}
  // The first descriptor of a chain with a valid head.
  VirtqDesc first(uint16_t head) const { return fetch(offset_of(chain(head).at)); }
  void advance(uint32_t n) { next_ = static_cast<uint16_t>(next_ + n); }
  void rewind(uint32_t n) { next_ = static_cast<uint16_t>(next_ - n); }

  // As in SplitDevice. Goes by the length that the chain had when it was first seen.
  template <class Visit>
  Walk walk(uint16_t head, Visit&& visit);

  // -- used descriptors -------------------------------------------------------------------------------------
  // Chains are given back in the order in which they were taken: `ahead` alone says which one it is.
  void put_used(uint32_t ahead, uint32_t, uint32_t length) { chain(used_ + ahead).used_length = length; }
  // The `n` chains from `ahead` on are one request (VIRTIO 1.3, 2.8.9).
  void join(uint32_t ahead, uint32_t n) { chain(used_ + ahead).joined = static_cast<uint16_t>(n - 1); }
  template <bool kLog = false>
  void publish(uint32_t n);
  void mark_used(uint32_t, uint32_t) const {}  // nothing is written before publish

  // -- notifications ----------------------------------------------------------------------------------------
  // True when the driver wants to hear of what was published since the last call (VIRTIO 1.3, 2.8.10).
  bool needs_signal();
  // Nothing was published since needs_signal.
  bool signal_settled() const { return unsignalled_ == 0; }
  void suppress_kicks() {
    if (kicks_ == Kicks::kSuppressed) return;
    kicks_ = Kicks::kSuppressed;
    write_event(event_word(0, kEventDisable));
  }
  // Asks for a kick when the descriptor at `from` becomes available. False: it is, and no kick will tell.
  bool request_kicks(Position from);

 private:
  enum class Kicks : uint8_t { kUnknown, kSuppressed, kWanted };
  struct Chain {
    Position at;
    uint16_t length;  // descriptors; 0: malformed
    uint16_t id;
    uint16_t joined;  // chains behind this one that become visible with it
    uint32_t used_length;
  };

  uint32_t look(uint32_t wanted);
  bool measure(Chain* chain, PackedRest rest, uint32_t room) const;
  void write_used(const Chain& chain);
  bool write_used_singles(uint32_t n);
  void log_used(uint32_t n) const;
  void write_event(uint32_t word);
  template <class Visit>
  Walk walk_indirect(const VirtqDesc& table, Visit&& visit);

  const Chain& chain(uint32_t number) const { return chains_[number & mask_]; }
  Chain& chain(uint32_t number) { return chains_[number & mask_]; }
  VirtqDesc fetch(uint32_t offset) const {
    VirtqDesc d = fetch_desc(desc_ + offset);
    d.flags = d.next;  // behind the id, which a split ring has behind the flags
    d.next = 0;
    return d;
  }

  PackedDesc* desc_ = nullptr;
  const uint32_t* driver_event_ = nullptr;
  uint32_t* device_event_ = nullptr;
  uint16_t written_ = 0;  // WRITE when buffers of this ring are written to, else 0

  // Chains by their running number: used up to used_, taken up to next_, seen up to end_. There are at most
  // as many as descriptors.
  std::vector<Chain> chains_;
  uint16_t mask_ = 0;
  uint16_t used_ = 0, next_ = 0, end_ = 0;
  uint32_t outstanding_ = 0;  // descriptors from used_at_ to seen_avail_
  Position used_at_ = 0, seen_avail_ = 0;

  uint64_t unsignalled_ = 0;  // descriptors used since needs_signal
  bool signal_valid_ = false;
  Kicks kicks_ = Kicks::kUnknown;
};

template <class Visit>
Walk PackedDevice::walk_indirect(const VirtqDesc& table, Visit&& visit) {
  const uint32_t entries = indirect_entries(table);
  if (entries == 0) return Walk::kMalformed;
  if (entries > size_) return malformed("chain is longer than the ring");
  uint64_t total = 0;
  bool writable_seen = false;
  for (uint32_t i = 0; i < entries; i++) {
    VirtqDesc d;
    if (!fetch_indirect(table.addr + i * sizeof(VirtqDesc), &d))
      return malformed("indirect table is in no region");
    // VIRTIO 1.3, 2.8.7: of the flags only WRITE counts, and all entries belong to the chain. Where nothing is
    // written, not even that: DPDK's virtio_user has WRITE at the header of what it sends.
    d.flags = d.next & written_;
    Walk w = visit_buffer(d, total, writable_seen, visit);
    if (w != Walk::kDone) return w;
  }
  return Walk::kDone;
}

template <class Visit>
Walk PackedDevice::walk(uint16_t head, Visit&& visit) {
  const Chain c = chain(head);
  if (c.length == 0) return malformed(kBadHead);
  uint64_t total = 0;
  bool writable_seen = false;
  for (uint32_t i = 0; i < c.length; i++) {
    VirtqDesc d = fetch(offset_of(position_after(c.at, i, size_)));
    if (d.flags & kDescIndirect) {
      // VIRTIO 1.3, 2.8.5: a list has descriptors of one kind.
      if (c.length > 1) return malformed("indirect descriptor with NEXT");
      return walk_indirect(d, visit);
    }
    Walk w = visit_buffer(d, total, writable_seen, visit);
    if (w != Walk::kDone) return w;
  }
  return Walk::kDone;
}

}  // namespace vpci
