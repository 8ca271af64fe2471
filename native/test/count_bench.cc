// A fixed number of packets along one path of the device side, for counting instructions: they do not depend
// on the machine's mood. One thread takes both sides in turns; callgrind collects in device_side() only. See
// count.sh.
// Usage: count_bench sink|source|echo FRAME_BYTES PACKETS [mergeable] [event] [log]
#include <cstdlib>
#include <cstring>

#include "../core/lane.h"
#include "../core/sink_queue.h"
#include "../core/source_queue.h"
#include "fixture.h"

using namespace vpci;
using namespace vpci::test;

// What a worker does in a round: the lane, then the queue's notifications.
__attribute__((noinline)) void device_side(Lane& lane, PortQueue& peer) {
  lane.round();
  peer.flush();
}

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
  Memory bitmap(1 << 20, 0);
  if (has("log")) pair.peer->set_dirty_log(DirtyLog::create(bitmap.mapping, 0, 1 << 20, nullptr));
  SourceQueue::Options frames;
  frames.bytes = bytes;
  const std::shared_ptr<PortQueue> source = SourceQueue::create(frames);
  const auto sink = std::make_shared<SinkQueue>(SinkQueue::Options{});
  if (!source) return 2;
  // The driver's side, not counted: fills the transmitq, empties the receiveq.
  Lane offer(0, source, pair.driver, LanePolicy::kHold), take(1, pair.driver, sink, LanePolicy::kHold);
  const std::shared_ptr<PortQueue> from = path == "source" ? source : pair.peer;
  const std::shared_ptr<PortQueue> to = path == "sink" ? std::shared_ptr<PortQueue>(sink) : pair.peer;
  Lane lane(2, from, to, LanePolicy::kHold);
  auto done = [&] { return (path == "sink" ? pair.peer->receive_stats : pair.peer->send_stats).packets.get(); };
  for (uint64_t rounds = 0; done() < packets && rounds < packets; rounds++) {
    if (path != "source") offer.round();
    device_side(lane, *pair.peer);
    if (path != "sink") take.round();
    pair.driver->flush();
  }
  std::printf("%llu\n", static_cast<unsigned long long>(done()));
  return done() >= packets ? 0 : 1;
}
