// What the device sides of split and packed rings have in common: where a ring lies, the addresses of its
// buffers, and the log of what is written. Trusts nothing the driver writes. Knows no ring format.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
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
  kMalformed,  // DeviceRing::cause() says why
};

class DeviceRing {
 public:
  struct Options {
    RingAddresses ring;
    uint16_t next_avail = 0;
    uint64_t features = 0;        // EVENT_IDX and INDIRECT are looked at
    bool writes_buffers = false;  // data buffers have to lie in writable mappings
  };

  uint32_t size() const { return size_; }
  // Why the ring is malformed; nullptr while it is not.
  const char* cause() const { return cause_; }
  AddressCache& addresses() { return cache_; }

  // -- dirty log --------------------------------------------------------------------------------------------
  // Between bursts only.
  void set_log(const DirtyLog* log) { log_ = log; }
  // The pages of what is written to memory of the ring's mapping, which go to `waiting`. There is a log.
  class Marks {
   public:
    Marks(const DeviceRing& ring, DirtyLog::Waiting& waiting)
        : batch_(*ring.log_, waiting, ring.log_base_) {}
    void add(Written kind, const void* data, uint64_t length) {
      if (is_logged(kind)) batch_.add(reinterpret_cast<uintptr_t>(data), length);
    }

   private:
    DirtyLog::Batch batch_;
  };
  DirtyLog::Waiting waiting() const { return DirtyLog::Waiting(*log_); }
  // Logs what was written.
  void mark(Written kind, const void* data, uint64_t length) const {
    DirtyLog::Waiting now = waiting();
    Marks(*this, now).add(kind, data, length);
  }

 protected:
  struct Area {
    uint64_t address;
    uint64_t bytes;
    uint64_t align;
    const char* name;
    uint8_t* data = nullptr;
  };
  // Finds the three areas of a ring. False, with the reason in `error`, when they cannot be there.
  bool place(std::shared_ptr<const RegionTable> table, const Options& options, std::initializer_list<Area*> areas,
             std::string* error);

  Walk malformed(const char* cause) {
    cause_ = cause;
    return Walk::kMalformed;
  }
  // One descriptor of a chain; `total` and `writable_seen` run through the chain.
  template <class Visit>
  Walk visit_buffer(const VirtqDesc& d, uint64_t& total, bool& writable_seen, Visit&& visit);
  // The entries of the table that `d` refers to; 0 with cause() set when there can be no such table.
  uint32_t indirect_entries(const VirtqDesc& d);
  bool fetch_indirect(uint64_t address, VirtqDesc* out);

  uint32_t size_ = 0;
  bool event_idx_ = false;
  bool indirect_ = false;
  AddressCache cache_;
  const char* cause_ = nullptr;
  const DirtyLog* log_ = nullptr;

 private:
  static uint8_t* find(const RegionTable& table, const Area& area, std::string* error);

  uint64_t log_base_ = 0;  // where the file begins here
  std::shared_ptr<const RegionTable> table_;
};

template <class Visit>
Walk DeviceRing::visit_buffer(const VirtqDesc& d, uint64_t& total, bool& writable_seen, Visit&& visit) {
  bool writable = d.flags & kDescWrite;
  if (d.len == 0) return malformed("descriptor of zero length");
  // VIRTIO 1.3, 2.7.4.2 and 2.8.17
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

}  // namespace vpci
