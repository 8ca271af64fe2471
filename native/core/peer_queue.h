// Device side of one queue pair of a virtio-net peer (VIRTIO 1.3, 5.1), whatever the format of its rings:
// receive takes from the peer's transmitq, send fills the peer's receiveq. peer_rings.h does it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "dirty_log.h"
#include "net_header.h"
#include "notify.h"
#include "port.h"
#include "region_table.h"
#include "split_layout.h"

namespace vpci {

struct PeerRingOptions {
  RingAddresses ring;
  uint16_t next_avail = 0;  // with RING_PACKED a Position
  bool enabled = true;
  int kick_fd = -1;  // duplicated; -1: the ring has to be polled
  NotifyOptions notify;
};

struct PeerQueueOptions {
  std::shared_ptr<const RegionTable> table;
  uint64_t features = 0;
  std::optional<PeerRingOptions> transmit;
  std::optional<PeerRingOptions> receive;
  uint32_t max_frame = kDefaultMaxFrame;
};

class PeerQueue : public PortQueue {
 public:
  // nullptr, with the reason in `error`, for options that cannot be served. Touches no peer memory.
  static std::shared_ptr<PeerQueue> create(const PeerQueueOptions& options, std::string* error);

  // The worker calls these between bursts. Every write after set_dirty_log returned is logged.
  virtual void set_dirty_log(std::shared_ptr<const DirtyLog> log) = 0;
  virtual void set_enabled(bool transmit, bool receive) = 0;
  // Another eventfd to wait on and another target, for a ring that is there. Signals the target once: what went to the
  // one before may have been lost.
  virtual void rewire(bool transmit, OwnFd kick, NotifyTarget notify) = 0;

  virtual bool has(bool transmit) const = 0;
  // Where whoever serves the ring next goes on from: an available index, or a Position in a packed ring. Any
  // thread; exact once no worker has the queue.
  virtual uint16_t next_avail(bool transmit) const = 0;
};

}  // namespace vpci
