// One chain at a time, copied in and out.
#include "control_queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace vpci {

namespace {
constexpr const char* kVanished = "queue memory vanished";
}

// -- device side --------------------------------------------------------------------------------------------

std::unique_ptr<ControlDevice> ControlDevice::create(std::shared_ptr<const RegionTable> table,
                                                     const RingAddresses& ring, uint32_t limit,
                                                     std::string* error) {
  if (limit == 0) {
    if (error) *error = "control queue limit is 0";
    return nullptr;
  }
  std::unique_ptr<ControlDevice> queue(new ControlDevice());
  SplitDevice::Options options;
  options.ring = ring;
  // Readable buffers may lie in read-only mappings, but then the ring may not: all areas are in one.
  options.writes_buffers = true;
  if (!queue->ring_.init(table, options, error)) return nullptr;
  queue->table_ = std::move(table);
  queue->where_ = ring;
  queue->limit_ = limit;
  queue->chains_.resize(ring.size);
  return queue;
}

ControlDevice::Pop ControlDevice::pop(uint16_t* head, std::vector<uint8_t>* readable, uint32_t* writable) {
  auto broken = [this](const char* cause) {
    broken_ = table_->faulted() ? kVanished : cause;
    return Pop::kBroken;
  };
  if (broken_) return Pop::kBroken;
  if (ring_.available(1) == 0) {
    if (ring_.cause() || table_->faulted()) return broken(ring_.cause());
    return Pop::kNone;
  }
  uint16_t h = ring_.head(0);
  if (!ring_.valid_head(h)) return broken("head is outside the ring");
  Chain& chain = chains_[h];
  if (chain.popped) return broken("chain is made available while the device has it");
  readable->clear();
  chain.pieces.clear();
  chain.writable = 0;
  uint64_t total = 0;
  bool too_long = false;
  Walk walk = ring_.walk(h, [&](uint8_t* data, uint32_t length, bool is_writable) {
    total += length;
    if (total > limit_) {
      too_long = true;
      return false;
    }
    if (is_writable) {
      chain.pieces.push_back({data, length});
      chain.writable += length;
    } else {
      size_t before = readable->size();
      readable->resize(before + length);
      std::memcpy(readable->data() + before, data, length);
    }
    return true;
  });
  if (too_long) return broken("chain is longer than the limit");
  if (walk == Walk::kMalformed || table_->faulted()) return broken(ring_.cause());
  ring_.advance(1);
  chain.popped = true;
  *head = h;
  *writable = chain.writable;
  return Pop::kChain;
}

ControlDevice::Push ControlDevice::push(uint16_t head, const uint8_t* data, size_t length) {
  if (broken_) return Push::kBroken;
  if (head >= chains_.size() || !chains_[head].popped) return Push::kNotPopped;
  Chain& chain = chains_[head];
  if (length > chain.writable) return Push::kTooLong;
  size_t left = length;
  for (const Segment& piece : chain.pieces) {
    size_t part = std::min<size_t>(left, piece.length);
    if (part == 0) break;
    std::memcpy(piece.data, data, part);
    data += part;
    left -= part;
  }
  if (table_->faulted()) {
    broken_ = kVanished;
    return Push::kBroken;
  }
  chain.popped = false;
  ring_.put_used(0, head, static_cast<uint32_t>(length));
  ring_.publish(1);
  return Push::kDone;
}

bool ControlDevice::set_table(std::shared_ptr<const RegionTable> table, std::string* error) {
  auto fail = [&](const char* cause) {
    if (!broken_) broken_ = cause;
    if (error && error->empty()) *error = broken_;
    return false;
  };
  if (error) error->clear();
  if (broken_) return fail(broken_);
  // Their buffers are pointers into the old table's memory.
  for (const Chain& chain : chains_)
    if (chain.popped) return fail("memory changed while the device had chains");
  SplitDevice ring;
  SplitDevice::Options options;
  options.ring = where_;
  // Nothing is popped: the used ring is as far as the available one.
  options.next_avail = ring_.next_avail();
  options.writes_buffers = true;
  if (!ring.init(table, options, error)) return fail("rings are not in the memory any more");
  interrupt_owed_ = interrupt_owed_ || !ring_.signal_settled();
  ring_ = std::move(ring);
  table_ = std::move(table);
  return true;
}

bool ControlDevice::needs_interrupt() {
  if (broken_) return false;
  bool owed = std::exchange(interrupt_owed_, false);
  return ring_.needs_signal() || owed;
}

// -- driver side --------------------------------------------------------------------------------------------

uint64_t ControlDriver::bytes(uint32_t size, uint32_t buffer_bytes) {
  if (!valid_ring_size(size) || buffer_bytes == 0 || buffer_bytes > 1u << 24) return 0;
  return SplitDriver::bytes(size) + static_cast<uint64_t>(size) * buffer_bytes;
}

std::unique_ptr<ControlDriver> ControlDriver::create(std::shared_ptr<Mapping> mapping, uint64_t offset,
                                                     uint64_t address, uint32_t size, uint32_t buffer_bytes,
                                                     std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return nullptr;
  };
  uint64_t bytes = ControlDriver::bytes(size, buffer_bytes);
  if (!valid_ring_size(size)) return fail("ring size is not a power of two from 1 to 32768");
  if (bytes == 0) return fail("buffer bytes are not from 1 to 16777216");
  if (!mapping || !mapping->writable()) return fail("control queue needs a writable mapping");
  if (offset % 64 || address % 64) return fail("offset and address have to be multiples of 64");
  if (offset > mapping->size() || bytes > mapping->size() - offset)
    return fail("control queue leaves its mapping");
  if (bytes - 1 > UINT64_MAX - address)
    return fail("control queue wraps around the end of the address space");
  std::unique_ptr<ControlDriver> queue(new ControlDriver());
  queue->ring_.init(mapping->data() + offset, address, size, 0);
  queue->buffers_ = mapping->data() + offset + SplitDriver::bytes(size);
  queue->buffers_address_ = address + SplitDriver::bytes(size);
  queue->buffer_bytes_ = buffer_bytes;
  for (uint32_t i = size; i-- > 0;) queue->free_.push_back(static_cast<uint16_t>(i));
  queue->writable_.resize(size);
  queue->mapping_ = std::move(mapping);
  return queue;
}

ControlDriver::Add ControlDriver::add(uint16_t i, uint32_t length, bool writable) {
  free_.pop_back();
  writable_[i] = writable;
  ring_.set_desc(i, buffer_address(i), length, writable ? kDescWrite : 0, 0);
  ring_.offer(i);
  ring_.publish();
  return Add::kDone;
}

ControlDriver::Add ControlDriver::add_readable(const uint8_t* data, size_t length) {
  if (broken_) return Add::kBroken;
  if (length == 0 || length > buffer_bytes_) return Add::kTooLong;
  if (free_.empty()) return Add::kFull;
  std::memcpy(buffer(free_.back()), data, length);
  return add(free_.back(), static_cast<uint32_t>(length), false);
}

ControlDriver::Add ControlDriver::add_writable() {
  if (broken_) return Add::kBroken;
  if (free_.empty()) return Add::kFull;
  return add(free_.back(), buffer_bytes_, true);
}

ControlDriver::Harvest ControlDriver::harvest(std::vector<uint8_t>* data) {
  data->clear();
  if (broken_) return Harvest::kBroken;
  if (ring_.used(1) != 0) {
    VirtqUsedElem e = ring_.peek(0);
    if (ring_.take(e.id)) {
      bool writable = writable_[e.id];
      if (writable && e.len > buffer_bytes_)
        broken_ = "used length is more than the buffer";
      else if (writable)
        data->assign(buffer(e.id), buffer(e.id) + e.len);
      free_.push_back(static_cast<uint16_t>(e.id));
    }
  } else if (!ring_.cause() && !mapping_->faulted()) {
    return Harvest::kNone;
  }
  if (ring_.cause()) broken_ = ring_.cause();
  if (mapping_->faulted()) broken_ = kVanished;
  return broken_ ? Harvest::kBroken : Harvest::kBuffer;
}

bool ControlDriver::needs_notify() { return !broken_ && ring_.needs_notify(); }

}  // namespace vpci
