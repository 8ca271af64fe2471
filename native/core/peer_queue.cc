// Set-up, notifications and the end of a peer queue. The packet paths are in peer_receive.cc, peer_send.cc and
// peer_room.cc.
#include "peer_rings.h"

namespace vpci {

namespace {
// Pieces that the receive buffers of one packet may have; what a chain has beyond them is not written to.
constexpr uint32_t kMaxPieces = 2048;
// So many kicks in a row for nothing: more than a ring has buffers, each of which may be too small for a packet.
constexpr uint32_t kFutileKicks = 0x10000;
}  // namespace

template <class Ring>
static std::shared_ptr<PeerQueue> create_with(const PeerQueueOptions& options, std::string* error) {
  auto queue = std::make_shared<PeerRings<Ring>>();
  return queue->init(options, error) ? queue : nullptr;
}

std::shared_ptr<PeerQueue> PeerQueue::create(const PeerQueueOptions& options, std::string* error) {
  auto fail = [error](const char* why) {
    if (error) *error = why;
    return nullptr;
  };
  if (!options.table) return fail("peer queue has no region table");
  if (!options.transmit && !options.receive) return fail("peer queue has no ring");
  constexpr uint32_t kMost = 0xfffff;
  static_assert(kMost + sizeof(NetHeader) <= DirtyLog::kLongestPacket);
  if (options.max_frame < kMinFrame || options.max_frame > kMost)
    return fail("maxFrame is not from 14 to 1048575");
  return options.features & kFeaturePacked ? create_with<PackedDevice>(options, error)
                                           : create_with<SplitDevice>(options, error);
}

template <class Ring>
bool PeerRings<Ring>::init(const PeerQueueOptions& options, std::string* error) {
  table_ = options.table;
  features_ = options.features;
  header_bytes_ = net_header_bytes(options.features);
  max_frame_ = options.max_frame;
  mergeable_ = options.features & kNetMrgRxbuf;
  if (options.transmit && !init_side(&transmit_, *options.transmit, true, error)) return false;
  if (options.receive && !init_side(&receive_, *options.receive, false, error)) return false;
  pieces_.resize(kMaxPieces);
  offload_.init(fit_for_driver, options.features, options.max_frame);
  return true;
}

template <class Ring>
bool PeerRings<Ring>::init_side(Side* side, const PeerRingOptions& options, bool transmit, std::string* error) {
  DeviceRing::Options ring;
  ring.ring = options.ring;
  ring.next_avail = options.next_avail;
  ring.features = features_;
  ring.writes_buffers = !transmit;
  std::string why;
  if (!side->ring.init(table_, ring, &why) || !side->kick.duplicate(options.kick_fd, &why) ||
      !side->notify.init(options.notify, &why)) {
    if (error) *error = (transmit ? "transmitq: " : "receiveq: ") + why;
    return false;
  }
  side->present = true;
  side->enabled = options.enabled;
  side->position.store(options.next_avail, std::memory_order_release);
  return true;
}

template <class Ring>
bool PeerRings<Ring>::memory_vanished() {
  if (__builtin_expect(!table_->faulted(), 1)) return false;
  set_broken(false, "peer memory vanished");
  set_broken(true, "peer memory vanished");
  return true;
}

template <class Ring>
int PeerRings<Ring>::wait_fd(bool for_send) {
  Side& s = side(for_send);
  if (!s.present) return kNever;
  return s.kick.get() >= 0 ? s.kick.get() : kPolled;
}

template <class Ring>
bool PeerRings<Ring>::arm(bool for_send) {
  if (!usable(for_send)) return true;
  Side& s = side(for_send);
  // Buffers that are there already were not enough, so only further ones are a reason to wake.
  bool quiet = s.ring.request_kicks(for_send ? s.ring.seen_avail() : s.ring.next_avail());
  if (memory_vanished()) return true;
  s.armed = quiet;
  return quiet;
}

template <class Ring>
void PeerRings<Ring>::disarm(bool for_send) {
  Side& s = side(for_send);
  s.armed = false;
  const uint16_t at = s.ring.next_avail();
  const bool kicked = s.kick.drain();
  if (!kicked || at != s.kicked_at) s.futile = 0;
  s.kicked_at = at;
  // A semaphore that was set high, in the peer's own eventfd, would keep this thread awake for ever: poll such a ring.
  if (kicked && ++s.futile >= kFutileKicks) s.kick = OwnFd();
  if (usable(for_send)) s.ring.suppress_kicks();
}

template <class Ring>
void PeerRings<Ring>::flush() {
  for (bool for_send : {false, true}) {
    Side& s = side(for_send);
    if (!s.present || (s.greeted && s.ring.signal_settled())) continue;
    // Whoever served the ring before may have gone between a used index and its notification (VIRTIO 1.3, 2.7.7.2: the
    // driver copes with one too many). Without this both sides could wait for each other.
    bool wanted = s.ring.needs_signal() || !s.greeted;
    s.greeted = true;
    if (memory_vanished()) return;
    RingStats& stats = for_send ? send_stats : receive_stats;
    if (wanted && s.notify.present()) {
      s.notify.signal();
      stats.notifications_sent.add(1);
    } else {
      stats.notifications_suppressed.add(1);
    }
  }
}

template <class Ring>
void PeerRings<Ring>::detached() {
  if (transmit_.present) {
    transmit_.ring.rewind(taken_end_ - taken_begin_);
    taken_begin_ = taken_end_ = 0;
    transmit_.position.store(transmit_.ring.next_avail(), std::memory_order_release);
  }
  transmit_.forget();
  receive_.forget();
  flush();
  // Whoever serves the rings next is kicked as if the ring were new.
  for (bool for_send : {false, true}) {
    Side& s = side(for_send);
    s.armed = false;
    if (usable(for_send) && !memory_vanished()) s.ring.request_kicks(s.ring.next_avail());
  }
}

template <class Ring>
void PeerRings<Ring>::set_dirty_log(std::shared_ptr<const DirtyLog> log) {
  transmit_.ring.set_log(log.get());
  receive_.ring.set_log(log.get());
  log_ = std::move(log);
}

template <class Ring>
void PeerRings<Ring>::set_enabled(bool transmit, bool receive) {
  transmit_.enabled = transmit;
  receive_.enabled = receive;
}

template <class Ring>
void PeerRings<Ring>::rewire(bool transmit, OwnFd kick, NotifyTarget notify) {
  Side& s = side(!transmit);
  if (!s.present) return;
  s.kick = std::move(kick);
  s.futile = 0;
  s.notify = std::move(notify);
  if (s.notify.present()) s.notify.signal();
}

template bool PeerRings<SplitDevice>::memory_vanished();
template bool PeerRings<PackedDevice>::memory_vanished();

}  // namespace vpci
