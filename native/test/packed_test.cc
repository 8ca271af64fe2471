// Device side of the packed ring against hand-written rings: laps of every size with the marks that a killed device
// leaves, requests of several buffers.
#include <thread>

#include "../core/net_header.h"
#include "packed_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::packed;

TEST("packed: laps of every size, with chains and tables, both directions, give every byte and id back in order") {
  check::Random r(77);
  for (uint32_t size : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 63u, 64u, 65u, 100u, 255u, 256u, 1000u, 4096u, 32767u, 32768u}) {
    for (bool transmit : {true, false}) {
      const uint64_t ring_bytes = RawPacked::bytes(size), data = kBase + ring_bytes, tables = data + (1 << 20);
      Memory m(ring_bytes + (2 << 20), kBase);
      RawPacked ring(m, kBase, size);
      // From anywhere, with either wrap counter.
      ring.start(static_cast<Position>(r.below(size) | (r.below(2) ? kPositionWrap : 0)));
      const uint64_t features = kPlain | kFeatureIndirect | (transmit ? 0 : uint64_t{kNetMrgRxbuf});
      auto q = queue_for(m, ring, transmit, features);
      const uint16_t w = transmit ? 0 : kDescWrite;
      Burst burst(256);
      // Several laps of small rings, a bit more than one of the big ones.
      const uint32_t descriptors = std::max(4 * size, 200u) > 40000 ? size + 500 : std::max(4 * size, 200u);
      uint32_t offered = 0, id = 0;
      uint32_t slots = size;
      struct Offered {
        uint16_t id;
        uint32_t slots, first, length;
      };
      std::vector<Offered> out;
      uint32_t at = 0;
      while (offered < descriptors && !check::failing()) {
        // A few chains, as many as there is room for.
        out.clear();
        at = 0;
        for (uint32_t k = 1 + static_cast<uint32_t>(r.below(40)); k > 0 && slots > 0; k--) {
          const bool table = r.below(4) == 0;
          const uint32_t pieces = 1 + static_cast<uint32_t>(r.below(std::min<uint32_t>(table ? size : slots, 5)));
          std::vector<VirtqDesc> chain;
          Offered o = {static_cast<uint16_t>(id++ * 31), table ? 1 : pieces, at, 0};
          for (uint32_t i = 0; i < pieces; i++) {
            const uint32_t length = 40 + static_cast<uint32_t>(r.below(100));
            chain.push_back({data + at, length, w, 0});
            at += length;
            o.length += length;
          }
          if (table) {
            const uint64_t place = tables + 16 * 8 * out.size();
            for (uint32_t i = 0; i < pieces; i++)  // with flags that have no meaning there
              (&m.ref<PackedDesc>(place))[i] = {
                  chain[i].addr, chain[i].len, 0xbad,
                  static_cast<uint16_t>(w | kDescNext | kDescIndirect | kDescUsed | (i == 0 ? kDescWrite : 0))};
            chain = {{place, 16 * pieces, static_cast<uint16_t>(kDescIndirect | (r.below(2) ? kDescWrite : 0)), 0}};
          }
          ring.offer(o.id, chain);
          slots -= o.slots;
          offered += o.slots;
          out.push_back(o);
        }
        uint32_t len = 0;
        uint16_t flags = 0;
        size_t back = 0;
        if (transmit) {
          fill(m.at(data), at, r.next());
          for (const Offered& o : out) std::memset(m.at(data + o.first), 0, 12);
          const std::vector<uint8_t> bytes(m.at(data), m.at(data) + at);
          for (size_t k = 0; k < out.size();) {
            const uint32_t n = q->receive(burst);
            CHECK(n > 0);
            for (uint32_t i = 0; i < n; i++, k++)
              CHECK(bytes_of(burst, burst.packets[i]) ==
                    std::vector<uint8_t>(bytes.begin() + out[k].first + 12,
                                         bytes.begin() + out[k].first + out[k].length));
            while (!burst.empty()) q->release(burst, 1 + static_cast<uint32_t>(r.below(burst.count())));
            if (n == 0) break;
          }
        } else {
          Frames frames;
          for (size_t k = 0; k < out.size();) {
            // Of one buffer, or of several that are merged.
            uint32_t room = out[k].length;
            size_t merged = 1;
            for (; k + merged < out.size() && merged < 4 && r.below(2); merged++) room += out[k + merged].length;
            frames.clear();
            frames.add(room - 12, r.next());
            CHECK_EQ(q->send(frames.burst), 1);
            std::vector<uint8_t> got;
            for (size_t i = 0; i < merged; i++, k++, back++) {
              CHECK_EQ(ring.take(&len, &flags), out[k].id);
              CHECK_EQ(len, out[k].length);
              CHECK(flags & kDescWrite);
              slots += out[k].slots;
              got.insert(got.end(), m.at(data + out[k].first), m.at(data + out[k].first) + len);
            }
            CHECK_EQ(got[10] | got[11] << 8, merged);
            got.erase(got.begin(), got.begin() + 12);
            CHECK(got == frames.bytes[0]);
          }
        }
        for (; back < out.size(); back++) {
          CHECK_EQ(ring.take(&len, &flags), out[back].id);
          CHECK_EQ(flags & kDescWrite, 0);
          slots += out[back].slots;
        }
        CHECK_EQ(ring.take(), 65536);
        CHECK_EQ(q->next_avail(transmit), ring.avail);
        CHECK(used_boundaries(ring) <= 1);
      }
      CHECK(q->broken(!transmit) == nullptr);
    }
  }
}

TEST("packed: of a request over several buffers the first one becomes visible last") {
  constexpr uint32_t kSize = 4096, kBuffers = 4000;  // so many that another thread sees a wrong order
  Memory m(RawPacked::bytes(kSize), kBase);
  RawPacked ring(m, kBase, kSize);
  PackedDevice device;
  DeviceRing::Options o;
  o.ring = ring.at;
  o.next_avail = kPackedStart;
  o.writes_buffers = true;
  std::string error;
  CHECK(device.init(m.table, o, &error));
  for (int round = 0; round < 100 && !check::failing(); round++) {
    const Position first = ring.avail;
    for (uint16_t i = 0; i < kBuffers; i++) ring.offer(i, {{kBase, 100, kDescWrite, 0}});
    CHECK_EQ(device.available(kBuffers), kBuffers);
    for (uint32_t i = 0; i < kBuffers; i++) device.put_used(i, device.head(i), 100);
    device.join(0, kBuffers);
    device.advance(kBuffers);
    std::thread publisher([&] { device.publish(kBuffers); });
    auto flags = [&](Position p) {
      return rest_of(load_acquire64(rest_at(&ring.desc(offset_of(p))))).flags;
    };
    while (!is_used(flags(first), wrap_of(first))) {
    }
    uint32_t missing = 0;
    for (uint32_t i = kBuffers; i-- > 1;) {
      const Position p = position_after(first, i, kSize);
      missing += !is_used(flags(p), wrap_of(p));
    }
    CHECK_EQ(missing, 0);
    publisher.join();
    for (uint16_t i = 0; i < kBuffers; i++) CHECK_EQ(ring.take(), i);
  }
}

TEST("packed: what the device has is not available again before it was given back, whatever its flags say") {
  Memory m(kBytes);
  RawPacked ring(m, kBase, 5);
  PackedDevice device;
  DeviceRing::Options o;
  o.ring = ring.at;
  o.next_avail = kPackedStart;
  std::string error;
  CHECK(device.init(m.table, o, &error));
  for (uint16_t i = 0; i < 5; i++) ring.offer(i, {{kData, 16, 0, 0}});
  CHECK_EQ(device.available(64), 5);
  device.advance(5);
  for (uint16_t i = 0; i < 5; i++) ring.offer(static_cast<uint16_t>(10 + i), {{kData, 16, 0, 0}});
  CHECK_EQ(device.available(64), 0);
  CHECK_EQ(device.seen_avail(), 0);
  device.put_used(0, 0, 0);
  device.publish(1);
  CHECK_EQ(ring.desc(0).id, 0);  // its own id, not the one that lies there now
  CHECK_EQ(device.available(64), 0);
  ring.desc(0).flags = ring.flags_at(0, 0);
  CHECK_EQ(device.available(64), 1);
}
