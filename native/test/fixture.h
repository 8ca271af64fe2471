// Memory of a peer and a hand-driven split ring in it, for tests: writes whatever it is told, sound or not.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "../core/driver_queue.h"
#include "../core/mapping.h"
#include "../core/peer_queue.h"
#include "../core/region_table.h"
#include "../core/split_device.h"
#include "check.h"

namespace vpci::test {

struct Memory {
  int fd = -1;
  std::shared_ptr<Mapping> mapping;
  std::shared_ptr<const RegionTable> table;
  uint64_t base;

  // One region of `bytes` at `base`, unless regions are given as {address, size, offset}.
  explicit Memory(uint64_t bytes, uint64_t base_address = 0x40000000,
                  std::vector<std::array<uint64_t, 3>> windows = {})
      : base(base_address) {
    fd = ::memfd_create("vpci-test", MFD_CLOEXEC);
    CHECK(::ftruncate(fd, static_cast<off_t>(bytes)) == 0);
    mapping = Mapping::create(fd, 0, bytes, true);
    if (windows.empty()) windows.push_back({base, bytes, 0});
    std::vector<Region> regions;
    for (auto& w : windows) regions.push_back({w[0], w[1], mapping, w[2]});
    std::string error;
    table = RegionTable::create(regions, &error);
    CHECK(table != nullptr);
  }
  ~Memory() { ::close(fd); }
  uint8_t* at(uint64_t address) const { return table->translate(address).data; }
  template <class T>
  T& ref(uint64_t address) const {
    return *reinterpret_cast<T*>(at(address));
  }
};

// Areas in pages of their own, in the order desc, avail, used.
struct RawRing {
  const Memory& memory;
  RingAddresses at;
  uint16_t avail_idx = 0;

  RawRing(const Memory& m, uint64_t address, uint32_t size) : memory(m) {
    auto up = [](uint64_t n) { return (n + 4095) & ~4095ull; };
    at.size = size;
    at.desc = address;
    at.driver = at.desc + up(desc_bytes(size));
    at.device = at.driver + up(avail_bytes(size));
  }
  static uint64_t bytes(uint32_t size) {
    return ((desc_bytes(size) + 4095) & ~4095ull) + ((avail_bytes(size) + 4095) & ~4095ull) +
           ((used_bytes(size) + 4095) & ~4095ull);
  }
  VirtqDesc& desc(uint32_t i) const { return reinterpret_cast<VirtqDesc*>(memory.at(at.desc))[i]; }
  VirtqAvail& avail() const { return memory.ref<VirtqAvail>(at.driver); }
  VirtqUsed& used() const { return memory.ref<VirtqUsed>(at.device); }
  uint16_t& used_event() const { return avail().ring[at.size]; }
  uint16_t& avail_event() const { return memory.ref<uint16_t>(at.device + 4 + 8ull * at.size); }
  // Starts at an index other than 0.
  void start(uint16_t index) {
    avail_idx = index;
    avail().idx = index;
    used().idx = index;
  }
  void offer(uint16_t head) {
    avail().ring[avail_idx % at.size] = head;
    avail_idx++;
    store_release16(&avail().idx, avail_idx);
  }
  VirtqUsedElem used_at(uint16_t index) const { return used().ring[index % at.size]; }
};

// Memory of one region, as most tests of rings have it, and where their chains point.
namespace region {
constexpr uint64_t kBase = 0x40000000, kBytes = 1 << 20, kData = kBase + 0x40000;
}

// For a queue that serves one ring.
inline PeerQueueOptions options_for(const Memory& m, const RingAddresses& ring, bool transmit, uint64_t features) {
  PeerQueueOptions o;
  o.table = m.table;
  o.features = features;
  auto& side = transmit ? o.transmit : o.receive;
  side.emplace();
  side->ring = ring;
  return o;
}

inline void fill(uint8_t* to, uint32_t n, uint64_t seed) {
  check::Random r(seed);
  for (uint32_t i = 0; i < n; i++) to[i] = static_cast<uint8_t>(r.next() >> 24);
}

// A burst whose packets point at frames of our own.
struct Frames {
  Burst burst{4096};
  std::vector<std::vector<uint8_t>> bytes;
  Packet& add(uint32_t length, uint64_t seed, const NetHeader& header = {}) {
    bytes.emplace_back(length);
    fill(bytes.back().data(), length, seed);
    Packet& p = burst.packets[burst.end++];
    p = {{bytes.back().data(), length}, length, 1, 0, header};
    return p;
  }
  void clear() {
    burst.clear();
    bytes.clear();
  }
};

inline std::vector<uint8_t> bytes_of(const Burst& burst, const Packet& p) {
  std::vector<uint8_t> out(p.first.data, p.first.data + p.first.length);
  for (uint32_t i = 1; i < p.segments; i++) {
    const Segment& s = burst.extra[p.more + i - 1];
    out.insert(out.end(), s.data, s.data + s.length);
  }
  return out;
}

// A driver queue and the peer queue that serves it, over one memory.
struct Pair {
  Memory memory;
  std::shared_ptr<DriverQueue> driver;
  std::shared_ptr<PeerQueue> peer;
  Pair(uint32_t size, uint32_t buffer_bytes, uint64_t features, uint64_t address = 0x40000000)
      : memory(DriverQueue::bytes(size, buffer_bytes), address) {
    std::string error;
    DriverQueueOptions d;
    d.mapping = memory.mapping;
    d.address = address;
    d.size = size;
    d.buffer_bytes = buffer_bytes;
    d.features = features;
    driver = DriverQueue::create(d, &error);
    if (!driver) check::fail(__FILE__, __LINE__, error.c_str());
    PeerQueueOptions p;
    p.table = memory.table;
    p.features = features;
    p.transmit.emplace();
    p.transmit->ring = driver->transmitq();
    p.receive.emplace();
    p.receive->ring = driver->receiveq();
    peer = PeerQueue::create(p, &error);
    if (!peer) check::fail(__FILE__, __LINE__, error.c_str());
  }
};

}  // namespace vpci::test
