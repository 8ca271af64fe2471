// A port queue: one queue of a port, with a receiving and a sending side. All methods but the statistics belong
// to the one worker thread that has the queue; the worker guarantees that nobody else calls them.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>

#include "packet.h"
#include "stats.h"

namespace vpci {

class PortQueue {
 public:
  virtual ~PortQueue() = default;

  // -- receive side ------------------------------------------------------------------------------------------
  // Fills an empty burst. The packets' bytes stay valid until they are released. Returns burst.count().
  virtual uint32_t receive(Burst& burst) = 0;
  // The first `n` packets of the burst are done with (delivered or dropped): advances burst.begin by n and gives
  // their buffers back. Packets that are never released go back unread when the queue is detached.
  virtual void release(Burst& burst, uint32_t n) = 0;

  // -- send side ---------------------------------------------------------------------------------------------
  // Takes packets from the front of the burst, copying them; does not change the burst. Returns how many were
  // taken: delivered, or dropped here with their cause counted. Fewer than burst.count() means no room now.
  virtual uint32_t send(const Burst& burst) = 0;

  // -- straight from a source into a destination's buffers ---------------------------------------------------
  enum class Straight : uint8_t {
    kNo,       // not now: the packets take the way over a burst
    kNothing,  // there is nothing to receive
    kMoved,
  };
  // Receives frames into `to`'s room, without a copy in between, when that pays and there is room.
  virtual Straight receive_into(PortQueue&) { return Straight::kNo; }
  // Where the next frame may be written: fills up to `most` pieces, of `bytes` bytes in all, and returns how many. 0
  // when there is no room for such a frame now, or when frames have to come by send. Takes nothing: the room may be
  // left as it is, and is the caller's until the next call of room, place, send or detached.
  virtual uint32_t room(iovec* /*pieces*/, uint32_t /*most*/, uint32_t /*bytes*/) { return 0; }
  // After a room that was not 0. What was written into it: a frame of `length` bytes whose header was checked, which is delivered, or dropped
  // here with its cause counted; or, with 0 bytes, nothing that counts, anywhere in the room.
  virtual void place(const NetHeader& /*header*/, uint32_t /*length*/) {}

  // -- sleeping ----------------------------------------------------------------------------------------------
  // fd that becomes readable when there may be packets to receive (for_send: room to send), or -1 when that side
  // cannot wake anybody and has to be polled (kPolled) or never has anything (kNever).
  static constexpr int kPolled = -1;
  static constexpr int kNever = -2;
  virtual int wait_fd(bool for_send) = 0;
  // Asks to be woken through wait_fd. Returns false when there is work already: do not sleep.
  virtual bool arm(bool for_send) = 0;
  // Takes the request back and drains wait_fd's counter.
  virtual void disarm(bool for_send) = 0;
  // After the lanes' round, or some rounds while packets move: sends what notifications have become due.
  virtual void flush() {}
  // Sends what flush has put off: the worker is going to sleep.
  virtual void settle() {}
  // True when receive will never give a packet again (a source that reached its count).
  virtual bool ended() const { return false; }

  // -- end ---------------------------------------------------------------------------------------------------
  // The worker lets go: no packet of this queue is in any burst; after this returns the queue may be taken apart.
  virtual void detached() {}

  // A side that was given up: a static text with the cause, set once by the worker thread.
  const char* broken(bool send_side) const { return broken_[send_side].load(std::memory_order_acquire); }

  // A queue belongs to at most one worker. False when another one has it; `who` may claim again what it has.
  bool claim(const void* who) {
    const void* none = nullptr;
    return owner_.compare_exchange_strong(none, who, std::memory_order_acq_rel) || none == who;
  }
  void unclaim() { owner_.store(nullptr, std::memory_order_release); }
  bool claimed() const { return owner_.load(std::memory_order_acquire) != nullptr; }

  RingStats receive_stats;
  RingStats send_stats;

 protected:
  void set_broken(bool send_side, const char* cause) {
    const char* none = nullptr;
    broken_[send_side].compare_exchange_strong(none, cause, std::memory_order_release);
  }

 private:
  std::atomic<const char*> broken_[2] = {nullptr, nullptr};
  std::atomic<const void*> owner_{nullptr};
};

}  // namespace vpci
