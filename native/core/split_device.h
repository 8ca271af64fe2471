// Device side of a split ring (VIRTIO 1.3, 2.7): which chains are available, what they consist of, giving
// them back, and both directions of notification suppression. Trusts nothing the driver writes: indices,
// heads and descriptors are fetched once, checked, then used. Knows no packet. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "device_ring.h"
#include "prefetch.h"

namespace vpci {

class SplitDevice : public DeviceRing {
 public:
  // False, with the reason in `error`, when the ring cannot be where the options say.
  bool init(std::shared_ptr<const RegionTable> table, const Options& options, std::string* error);

  uint16_t next_avail() const { return next_avail_; }
  uint16_t used_idx() const { return used_idx_; }
  // The available index as it was when last looked at.
  uint16_t seen_avail() const { return seen_avail_; }

  // -- available chains -------------------------------------------------------------------------------------
  static constexpr const char* kBadHead = "head is outside the ring";
  uint32_t known() const { return static_cast<uint16_t>(seen_avail_ - next_avail_); }
  // How many chains from next_avail on can be taken. Looks at the shared index only when fewer than `wanted`
  // are known. 0 with cause() set when the index is impossible.
  uint32_t available(uint32_t wanted) {
    const uint32_t seen = known();
    return seen >= wanted ? seen : look();
  }
  // How many chains may be looked at ahead of their turn.
  uint32_t ahead(uint32_t) const { return known(); }
  // Head of the chain `ahead` behind next_avail, not checked.
  uint16_t head(uint32_t ahead) const { return load_once16(&avail_->ring[(next_avail_ + ahead) & mask_]); }
  bool valid_head(uint16_t head) const { return head < size_; }
  void prefetch(uint16_t head) const { __builtin_prefetch(desc_ + head); }
  // Where the chain `ahead` behind next_avail will be given back: chains go back in order.
  void prefetch_used(uint32_t ahead) const {
    const uint32_t at = (next_avail_ + ahead) & mask_;
    if (at % (64 / sizeof(VirtqUsedElem)) == 0) prefetch_for_write(&used_->ring[at]);
  }
  // The first descriptor of a chain with a valid head.
  VirtqDesc first(uint16_t head) const { return fetch_desc(desc_ + head); }
  void advance(uint32_t n) { next_avail_ = static_cast<uint16_t>(next_avail_ + n); }
  // Gives the last n taken chains back unread.
  void rewind(uint32_t n) { next_avail_ = static_cast<uint16_t>(next_avail_ - n); }

  // Calls visit(uint8_t* data, uint32_t length, bool writable) -> bool for each piece of the chain that is
  // contiguous here; false ends the walk. Bounded by the ring's size plus the pieces that region borders add.
  template <class Visit>
  Walk walk(uint16_t head, Visit&& visit);

  // -- used ring --------------------------------------------------------------------------------------------
  // Writes the element `ahead` behind the used index; nobody sees it before publish.
  void put_used(uint32_t ahead, uint32_t id, uint32_t length) {
    store64(&used_->ring[(used_idx_ + ahead) & mask_], id | static_cast<uint64_t>(length) << 32);
  }
  void join(uint32_t, uint32_t) {}  // all elements become visible with the index
  // kLog: there is a log. It has the buffers already.
  template <bool kLog = false>
  void publish(uint32_t n);
  // Logs `n` elements from the one `ahead` behind the used index on. For those that are not going to be published.
  void mark_used(uint32_t ahead, uint32_t n) const;

  // -- notifications ----------------------------------------------------------------------------------------
  // True when the driver wants to hear of what was published since the last call (VIRTIO 1.3, 2.7.7.2).
  bool needs_signal();
  // Nothing was published since needs_signal.
  bool signal_settled() const { return signalled_ == used_idx_; }
  // Asks the driver not to kick. Cheap when that is so already: to be called once a burst.
  void suppress_kicks() {
    if (kicks_ == Kicks::kSuppressed && static_cast<uint16_t>(next_avail_ - suppressed_at_) <= kEventLag) return;
    write_suppression();
  }
  // Asks for a kick when the available index goes beyond `from`. False: it has, and no kick will tell.
  bool request_kicks(uint16_t from);

 private:
  enum class Kicks : uint8_t { kUnknown, kSuppressed, kWanted };

  uint32_t look();
  void write_suppression();
  uint16_t* used_event() const { return &avail_->ring[size_]; }
  uint16_t* avail_event() const { return reinterpret_cast<uint16_t*>(&used_->ring[size_]); }
  void write16(uint16_t* to, uint16_t value);
  template <class Visit>
  Walk walk_indirect(const VirtqDesc& table, uint32_t seen, uint64_t& total, bool& writable_seen,
                     Visit&& visit);

  const VirtqDesc* desc_ = nullptr;
  VirtqAvail* avail_ = nullptr;
  VirtqUsed* used_ = nullptr;
  uint16_t mask_ = 0;
  uint16_t next_avail_ = 0;
  uint16_t seen_avail_ = 0;
  uint16_t used_idx_ = 0;
  // The used index as it is in memory: as it was found, then as it was published.
  uint16_t published_ = 0;
  uint16_t signalled_ = 0;
  uint16_t suppressed_at_ = 0;
  bool signal_valid_ = false;
  Kicks kicks_ = Kicks::kUnknown;
};

template <class Visit>
Walk SplitDevice::walk_indirect(const VirtqDesc& table, uint32_t seen, uint64_t& total, bool& writable_seen,
                                Visit&& visit) {
  const uint32_t entries = indirect_entries(table);
  if (entries == 0) return Walk::kMalformed;
  uint32_t index = 0;
  for (uint32_t n = 1;; n++) {
    // A chain is at most as long as the ring, indirect or not; this bounds loops too.
    if (n > entries || seen + n > size_) return malformed("chain loops or is longer than the ring");
    VirtqDesc d;
    if (!fetch_indirect(table.addr + index * sizeof(VirtqDesc), &d))
      return malformed("indirect table is in no region");
    if (d.flags & kDescIndirect) return malformed("indirect table inside an indirect table");
    Walk w = visit_buffer(d, total, writable_seen, visit);
    if (w != Walk::kDone || !(d.flags & kDescNext)) return w;
    index = d.next;
    if (index >= entries) return malformed("next descriptor is outside the indirect table");
  }
}

template <class Visit>
Walk SplitDevice::walk(uint16_t head, Visit&& visit) {
  if (!valid_head(head)) return malformed(kBadHead);
  uint64_t total = 0;
  bool writable_seen = false;
  uint32_t index = head;
  for (uint32_t n = 1;; n++) {
    if (n > size_) return malformed("chain loops or is longer than the ring");
    VirtqDesc d = fetch_desc(desc_ + index);
    // WRITE on a descriptor that refers to a table is ignored (VIRTIO 1.3, 2.7.5.3.2).
    if (d.flags & kDescIndirect) return walk_indirect(d, n - 1, total, writable_seen, visit);
    Walk w = visit_buffer(d, total, writable_seen, visit);
    if (w != Walk::kDone || !(d.flags & kDescNext)) return w;
    index = d.next;
    if (index >= size_) return malformed("next descriptor is outside the ring");
  }
}

}  // namespace vpci
