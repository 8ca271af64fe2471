// Device side of a split ring (VIRTIO 1.3, 2.7): which chains are available, what they consist of, giving
// them back, and both directions of notification suppression. Trusts nothing the driver writes: indices,
// heads and descriptors are fetched once, checked, then used. Knows no packet. One thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "address_cache.h"
#include "dirty_log.h"
#include "region_table.h"
#include "split_layout.h"

namespace vpci {

// What the walk over a chain came to.
enum class Walk : uint8_t {
  kDone,
  kStopped,    // the visitor had enough
  kMalformed,  // SplitDevice::cause() says why
};

class SplitDevice {
 public:
  struct Options {
    RingAddresses ring;
    uint16_t next_avail = 0;
    uint64_t features = 0;        // EVENT_IDX and INDIRECT are looked at
    bool writes_buffers = false;  // data buffers have to lie in writable mappings
  };
  // False, with the reason in `error`, when the ring cannot be where the options say.
  bool init(std::shared_ptr<const RegionTable> table, const Options& options, std::string* error);

  uint32_t size() const { return size_; }
  uint16_t next_avail() const { return next_avail_; }
  uint16_t used_idx() const { return used_idx_; }
  // The available index as it was when last looked at.
  uint16_t seen_avail() const { return seen_avail_; }
  // Why the ring is malformed; nullptr while it is not.
  const char* cause() const { return cause_; }

  // -- available chains -------------------------------------------------------------------------------------
  // How many chains from next_avail on can be taken. Looks at the shared index only when fewer than `wanted`
  // are known. 0 with cause() set when the index is impossible.
  uint32_t available(uint32_t wanted) {
    uint16_t known = static_cast<uint16_t>(seen_avail_ - next_avail_);
    return known >= wanted ? known : look();
  }
  // Head of the chain `ahead` behind next_avail, not checked.
  uint16_t head(uint32_t ahead) const { return load_once16(&avail_->ring[(next_avail_ + ahead) & mask_]); }
  bool valid_head(uint16_t head) const { return head < size_; }
  const VirtqDesc* desc(uint16_t index) const { return desc_ + index; }
  void advance(uint32_t n) { next_avail_ = static_cast<uint16_t>(next_avail_ + n); }
  // Gives the last n taken chains back unread.
  void rewind(uint32_t n) { next_avail_ = static_cast<uint16_t>(next_avail_ - n); }
  AddressCache& addresses() { return cache_; }

  // Calls visit(uint8_t* data, uint32_t length, bool writable) -> bool for each piece of the chain that is
  // contiguous here; false ends the walk. Bounded by the ring's size plus the pieces that region borders add.
  template <class Visit>
  Walk walk(uint16_t head, Visit&& visit);

  // -- used ring --------------------------------------------------------------------------------------------
  // Writes the element `ahead` behind the used index; nobody sees it before publish.
  void put_used(uint32_t ahead, uint32_t id, uint32_t length) {
    store64(&used_->ring[(used_idx_ + ahead) & mask_], id | static_cast<uint64_t>(length) << 32);
  }
  uint64_t used_word(uint32_t ahead) const { return load_once64(&used_->ring[(used_idx_ + ahead) & mask_]); }
  void put_used_word(uint32_t ahead, uint64_t word) {
    store64(&used_->ring[(used_idx_ + ahead) & mask_], word);
  }
  void prefetch_used(uint32_t ahead) const {
    __builtin_prefetch(&used_->ring[(used_idx_ + ahead) & mask_], 1);
  }
  void publish(uint32_t n);

  // -- notifications ----------------------------------------------------------------------------------------
  // True when the driver wants to hear of what was published since the last call (VIRTIO 1.3, 2.7.7.2).
  bool needs_signal();
  // Nothing was published since needs_signal, and nothing waits to be logged.
  bool signal_settled() const { return signalled_ == used_idx_ && pending_ == 0; }
  // Asks the driver not to kick. Cheap when that is so already: to be called once a burst.
  void suppress_kicks() {
    if (kicks_ == Kicks::kSuppressed && static_cast<uint16_t>(next_avail_ - event_) <= kEventLag) return;
    write_suppression();
  }
  // Asks for a kick when the available index goes beyond `from`; returns the index after a full fence: when
  // it differs from `from`, there is work that no kick will tell of.
  uint16_t request_kicks(uint16_t from);

  // -- dirty log --------------------------------------------------------------------------------------------
  // Between bursts only, while the old log is still there: what was written until then is in it.
  void set_log(const DirtyLog* log) {
    log_pending();
    log_ = log;
  }
  const DirtyLog* log() const { return log_; }
  // `length` bytes of a buffer are written at `data`, which lies in the mapping of the ring. publish logs them:
  // they have to be there by then, or now already when can_mark says no.
  void mark(const uint8_t* data, uint64_t length) {
    if (is_logged(Written::kBuffer)) mark_later(data, length);
  }
  // True while the pages of `length` bytes can wait for the publish; else mark may log all that wait.
  bool can_mark(uint64_t length) const {
    return pending_ + (length >> DirtyLog::kPageShift) + 2 <= kPendingPages;
  }
  // `n` elements from the one `ahead` behind the used index on were written. For those that are not going to
  // be published; publish itself marks the others.
  void mark_used(uint32_t ahead, uint32_t n);

 private:
  enum class Kicks : uint8_t { kUnknown, kSuppressed, kWanted };
  // After this many chains the stale avail_event is moved along, long before the index comes round to it.
  static constexpr uint16_t kEventLag = 0x4000;

  uint32_t look();
  void write_suppression();
  uint8_t* area(const RegionTable& table, uint64_t address, uint64_t bytes, uint64_t align,
                std::string* error, const char* name);
  uint16_t* used_event() const { return &avail_->ring[size_]; }
  uint16_t* avail_event() const { return reinterpret_cast<uint16_t*>(&used_->ring[size_]); }
  void write16(uint16_t* to, uint16_t value);
  // Pages wait here for the publish, so that one fence serves all of them; a page that comes again was
  // written before that fence too. The page of the used index waits for the next fence: the next publish's, or
  // that of needs_signal.
  void mark_later(const uint8_t* data, uint64_t length) {
    uint64_t at = static_cast<uint64_t>(data - log_base_);
    if (length == 0 || at >= log_limit_) return;
    for (uint64_t page = at >> DirtyLog::kPageShift; page <= (at + length - 1) >> DirtyLog::kPageShift;
         page++) {
      if (pending_ != 0 && pending_pages_[pending_ - 1] == page) continue;
      if (pending_ == kPendingPages) log_pending();
      pending_pages_[pending_++] = page;
    }
  }
  void log_pending() {
    if (pending_ == 0) return;
    full_fence();
    log_fenced();
  }
  void log_fenced() {
    if (pending_ != 0) log_->mark_fenced(pending_pages_, pending_);
    pending_ = 0;
  }
  void mark_now(const void* data, uint64_t length) const {
    log_->mark(static_cast<uint64_t>(static_cast<const uint8_t*>(data) - log_base_), length);
  }
  Walk malformed(const char* cause) {
    cause_ = cause;
    return Walk::kMalformed;
  }
  template <class Visit>
  Walk visit_buffer(const VirtqDesc& d, uint64_t& total, bool& writable_seen, Visit&& visit);
  template <class Visit>
  Walk walk_indirect(const VirtqDesc& table, uint32_t seen, uint64_t& total, bool& writable_seen,
                     Visit&& visit);
  bool fetch_indirect(uint64_t address, VirtqDesc* out);

  const VirtqDesc* desc_ = nullptr;
  VirtqAvail* avail_ = nullptr;
  VirtqUsed* used_ = nullptr;
  uint32_t size_ = 0;
  uint16_t mask_ = 0;
  uint16_t next_avail_ = 0;
  uint16_t seen_avail_ = 0;
  uint16_t used_idx_ = 0;
  uint16_t signalled_ = 0;
  uint16_t event_ = 0;
  bool signal_valid_ = false;
  bool event_idx_ = false;
  bool indirect_ = false;
  Kicks kicks_ = Kicks::kUnknown;
  AddressCache cache_;
  const char* cause_ = nullptr;
  const DirtyLog* log_ = nullptr;
  const uint8_t* log_base_ = nullptr;
  uint64_t log_limit_ = 0;
  // Two pages for each packet of a burst, and what the used ring needs.
  static constexpr uint32_t kPendingPages = 160;
  uint64_t pending_pages_[kPendingPages];
  uint32_t pending_ = 0;
  std::shared_ptr<const RegionTable> table_;
};

template <class Visit>
Walk SplitDevice::visit_buffer(const VirtqDesc& d, uint64_t& total, bool& writable_seen, Visit&& visit) {
  bool writable = d.flags & kDescWrite;
  if (d.len == 0) return malformed("descriptor of zero length");
  // VIRTIO 1.3, 2.7.4.2
  if (writable_seen && !writable) return malformed("readable descriptor behind a writable one");
  writable_seen = writable;
  // VIRTIO 1.3, 2.7.5.2
  total += d.len;
  if (total > 1ull << 32) return malformed("chain of more than 2^32 bytes");
  uint64_t address = d.addr;
  uint32_t left = d.len;
  if (left - 1 > UINT64_MAX - address) return malformed("buffer wraps around the end of the address space");
  // Usually one round; a buffer that goes on in the next region takes another.
  while (true) {
    RegionTable::Span s = cache_.span(address);
    if (!s.data) return malformed("buffer address is in no region");
    uint32_t piece = static_cast<uint32_t>(std::min<uint64_t>(left, s.length));
    if (!visit(s.data, piece, writable)) return Walk::kStopped;
    left -= piece;
    if (left == 0) return Walk::kDone;
    address += piece;
  }
}

template <class Visit>
Walk SplitDevice::walk_indirect(const VirtqDesc& table, uint32_t seen, uint64_t& total, bool& writable_seen,
                                Visit&& visit) {
  // VIRTIO 1.3, 2.7.5.3
  if (!indirect_) return malformed("indirect descriptor without the feature");
  if (table.flags & kDescNext) return malformed("indirect descriptor with NEXT");
  if (table.len == 0 || table.len % sizeof(VirtqDesc))
    return malformed("indirect table is empty or not a multiple of 16");
  uint32_t entries = table.len / sizeof(VirtqDesc);
  if (entries > kMaxRingSize) return malformed("indirect table is too big");
  if (table.len - 1 > UINT64_MAX - table.addr)
    return malformed("indirect table wraps around the end of the address space");
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
  if (!valid_head(head)) return malformed("head is outside the ring");
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
