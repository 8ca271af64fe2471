// A fixed number of packets along one path of the device side, for counting instructions: they do not depend
// on the machine's mood. One thread takes both sides in turns; callgrind collects in device_side() only. See
// count.sh.
// Usage: count_bench sink|source|echo FRAME_BYTES PACKETS [mergeable] [event] [log] [packed]
#include <cstdlib>
#include <cstring>

#include "../core/lane.h"
#include "../core/sink_queue.h"
#include "../core/source_queue.h"
#include "packed_fixture.h"

using namespace vpci;
using namespace vpci::test;

// What a worker does in a round: the lane, then the queue's notifications.
__attribute__((noinline)) void device_side(Lane& lane, PortQueue& peer) {
  lane.round();
  peer.flush();
}

namespace {

// A driver by hand for packed rings, of which the package has the device side only. Not counted.
struct PackedPeer {
  static constexpr uint32_t kSize = 256, kBuffer = 2048;
  static constexpr uint64_t kBase = 0x40000000, kRing = 0x10000, kData = kBase + 2 * kRing;
  Memory m{2 * kRing + 2ull * kSize * kBuffer, kBase};
  RawPacked tx{m, kBase, kSize}, rx{m, kBase + kRing, kSize};
  std::shared_ptr<PeerQueue> queue;
  uint32_t frame;

  PackedPeer(uint64_t features, uint32_t bytes, bool transmits) : frame(bytes) {
    PeerQueueOptions o = packed::options_for(m, tx, true, features | kFeaturePacked);
    o.receive.emplace();
    o.receive->ring = rx.at;
    o.receive->next_avail = rx.used;
    std::string error;
    queue = PeerQueue::create(o, &error);
    for (uint16_t i = 0; i < kSize; i++) {
      give(i);
      if (transmits) send(i);
    }
  }
  void give(uint16_t i) { rx.offer(i, {{kData + uint64_t{i} * kBuffer, kBuffer, kDescWrite, 0}}); }
  void send(uint16_t i) { tx.offer(i, {{kData + uint64_t{kSize + i} * kBuffer, 12 + frame, 0, 0}}); }
  void turn() {
    for (uint32_t id; (id = rx.take()) < kSize;) give(static_cast<uint16_t>(id));
    for (uint32_t id; (id = tx.take()) < kSize;) send(static_cast<uint16_t>(id));
  }
};

}  // namespace

int main(int argc, char** argv) {
  auto has = [&](const char* word) {
    for (int i = 4; i < argc; i++)
      if (std::strcmp(argv[i], word) == 0) return true;
    return false;
  };
  if (argc < 4) return 2;
  const std::string path = argv[1];
  const uint32_t bytes = static_cast<uint32_t>(std::atoi(argv[2]));
  const uint64_t packets = std::strtoull(argv[3], nullptr, 10);
  uint64_t features = kFeatureVersion1 | kFeatureIndirect;
  if (has("mergeable")) features |= kNetMrgRxbuf;
  if (has("event")) features |= kFeatureEventIdx;

  Pair pair(256, 2048, features);
  std::unique_ptr<PackedPeer> packed;
  if (has("packed")) packed = std::make_unique<PackedPeer>(features, bytes, path != "source");
  const std::shared_ptr<PeerQueue> peer = packed ? packed->queue : pair.peer;
  Memory bitmap(1 << 20, 0);
  if (has("log")) peer->set_dirty_log(DirtyLog::create(bitmap.mapping, 0, 1 << 20, nullptr, DirtyLog::Writers::kOne));
  SourceQueue::Options frames;
  frames.bytes = bytes;
  const std::shared_ptr<PortQueue> source = SourceQueue::create(frames);
  const auto sink = std::make_shared<SinkQueue>(SinkQueue::Options{});
  if (!source) return 2;
  // The driver's side, not counted: fills the transmitq, empties the receiveq.
  Lane offer(0, source, pair.driver, LanePolicy::kHold), take(1, pair.driver, sink, LanePolicy::kHold);
  const std::shared_ptr<PortQueue> from = path == "source" ? source : peer;
  const std::shared_ptr<PortQueue> to = path == "sink" ? std::shared_ptr<PortQueue>(sink) : peer;
  Lane lane(2, from, to, LanePolicy::kHold);
  auto done = [&] { return (path == "sink" ? peer->receive_stats : peer->send_stats).packets.get(); };
  for (uint64_t rounds = 0; done() < packets && rounds < packets; rounds++) {
    if (packed) packed->turn();
    if (!packed && path != "source") offer.round();
    device_side(lane, *peer);
    if (!packed && path != "sink") take.round();
    pair.driver->flush();
  }
  std::printf("%llu\n", static_cast<unsigned long long>(done()));
  return done() >= packets ? 0 : 1;
}
