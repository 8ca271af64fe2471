// libFuzzer harness: the input is ring memory and a list of operations on a peer queue, a control device and
// a driver queue that share it. Nothing in it may crash, hang, or touch memory outside the regions (the
// sanitizers watch). `make fuzz`.
#include <cstdlib>

#include "../core/control_queue.h"
#include "packed_fixture.h"

using namespace vpci;
using namespace vpci::test;

namespace {

constexpr uint64_t kBase = 0x10000, kBytes = 1 << 16;

// One after another, zero behind the end.
struct Input {
  const uint8_t* data;
  size_t left;
  uint8_t byte() {
    if (left == 0) return 0;
    left--;
    return *data++;
  }
  uint16_t word() { return static_cast<uint16_t>(byte() | byte() << 8); }
  uint64_t quad() {
    return word() | static_cast<uint64_t>(word()) << 16 | static_cast<uint64_t>(word()) << 32 |
           static_cast<uint64_t>(word()) << 48;
  }
};

// Bytes at places that matter: rings, and values near what is valid.
void scribble(Input& in, const Memory& m, const RawRing& ring) {
  uint8_t what = in.byte();
  uint32_t i = in.byte() % ring.at.size;
  switch (what % 8) {
    case 0: ring.desc(i) = {in.quad(), in.word(), in.word(), in.word()}; break;
    case 1:
      ring.desc(i) = {kBase + in.word() % kBytes, in.word(), static_cast<uint16_t>(in.byte() & 7),
                      static_cast<uint16_t>(in.byte() % (ring.at.size + 1))};
      break;
    case 2: ring.avail().ring[i] = static_cast<uint16_t>(in.byte() % (ring.at.size + 1)); break;
    case 3: ring.avail().idx = static_cast<uint16_t>(ring.avail().idx + in.byte() % 9); break;
    case 4: ring.avail().idx = in.word(); break;
    case 5:
      ring.used_event() = in.word();
      ring.avail().flags = in.byte();
      break;
    case 6: {  // an indirect table
      uint64_t at = kBase + in.word() % (kBytes - 256);
      for (uint32_t k = 0; k < 4; k++) {
        VirtqDesc d = {kBase + in.word(), in.word(), static_cast<uint16_t>(in.byte() & 7),
                       static_cast<uint16_t>(in.byte() % 5)};
        std::memcpy(m.mapping->data() + (at - kBase) + 16 * k, &d, 16);
      }
      ring.desc(i) = {at, 16u * (in.byte() % 6), static_cast<uint16_t>(kDescIndirect | (in.byte() & 3)), 0};
      break;
    }
    case 7: m.mapping->data()[in.word()] = in.byte(); break;
  }
}

void scribble(Input& in, const Memory& m, RawPacked& ring) {
  auto place = [&] { return kBase + in.word() % kBytes; };
  auto flags = [&] { return static_cast<uint16_t>(in.byte() & 7); };
  const uint32_t i = in.byte() % ring.at.size;
  switch (in.byte() % 8) {
    case 0: ring.desc(i) = {in.quad(), in.word(), in.word(), in.word()}; break;
    case 1:
    case 2: {  // a chain, sound in form
      std::vector<VirtqDesc> chain;
      for (uint32_t n = 1 + in.byte() % 3; n > 0; n--) chain.push_back({place(), in.word(), flags(), 0});
      if (chain.size() <= ring.at.size) ring.offer(in.word(), chain);
      break;
    }
    case 3: ring.put({place(), in.word(), flags(), 0}, in.word()); break;
    case 4: {  // an indirect table
      const uint64_t at = kBase + in.word() % (kBytes - 256);
      for (uint32_t k = 0; k < 4; k++) {
        const PackedDesc d = {place(), in.word(), in.word(), in.word()};
        std::memcpy(m.mapping->data() + (at - kBase) + 16 * k, &d, 16);
      }
      ring.offer(in.word(), {{at, 16u * (in.byte() % 6), static_cast<uint16_t>(kDescIndirect | (in.byte() & 3)), 0}});
      break;
    }
    case 5: ring.desc(i).flags = in.word(); break;
    case 6: ring.driver_event() = event_word(in.word(), in.word()); break;
    case 7: ring.avail = static_cast<Position>((ring.avail & kPositionWrap) | i); break;
  }
}

void run(const uint8_t* data, size_t size) {
  Input in{data, size};
  uint8_t setup = in.byte();
  const bool packed = setup & 32;
  uint64_t features = kFeatureVersion1 | kFeatureIndirect;
  if (setup & 1) features |= kFeatureEventIdx;
  if (setup & 2) features |= kNetMrgRxbuf;
  if (setup & 4) features |= kNetCsum | kNetHostTso4;
  if (setup & 8) features |= kNetGuestCsum | kNetGuestTso4;
  if (setup & 16) features &= ~kFeatureVersion1;
  static const Memory& m =
      *new Memory(kBytes, kBase, {{kBase, kBytes / 2, 0}, {kBase + kBytes / 2, kBytes / 2, kBytes / 2}});
  std::memset(m.mapping->data(), 0, kBytes);
  if (packed) features |= kFeaturePacked;
  const uint32_t ring_size = 1u << (in.byte() % 6), packed_size = 1 + in.byte() % 40u;
  RawRing tx(m, kBase, ring_size), rx(m, kBase + 0x4000, ring_size), control(m, kBase + 0x8000, ring_size);
  PeerQueueOptions o;
  o.table = m.table;
  o.features = features;
  o.transmit.emplace().ring = tx.at;
  o.receive.emplace().ring = rx.at;
  o.transmit->next_avail = o.receive->next_avail = in.word();
  RawPacked packed_tx(m, kBase, packed_size), packed_rx(m, kBase + 0x4000, packed_size);
  if (packed) {
    o.transmit->ring = packed_tx.at;
    o.receive->ring = packed_rx.at;
    const Position start = o.transmit->next_avail;
    o.transmit->next_avail = o.receive->next_avail =
        static_cast<Position>((start & kPositionWrap) | offset_of(start) % packed_size);
    packed_tx.start(o.transmit->next_avail);
    packed_rx.start(o.receive->next_avail);
  } else {
    tx.start(o.transmit->next_avail);
    rx.start(o.receive->next_avail);
  }
  std::string error;
  auto q = PeerQueue::create(o, &error);
  auto device = ControlDevice::create(m.table, control.at, 4096, &error);
  DriverQueueOptions d;
  d.mapping = m.mapping;
  d.offset = 0xc000;
  d.address = kBase + 0xc000;
  d.size = 8;
  d.buffer_bytes = 128;
  d.features = features;
  auto driver = DriverQueue::create(d, &error);
  if (!q || !device || !driver) std::abort();
  static const Memory& log_memory = *new Memory(4096);

  Burst burst(8), driver_burst(8);
  std::vector<uint8_t> copy, message;
  uint16_t head = 0;
  uint32_t writable = 0;
  for (int step = 0; step < 200 && in.left; step++) {
    uint8_t op = in.byte();
    switch (op % 16) {
      case 0:
      case 1:
      case 2:
        if (packed)
          scribble(in, m, packed_tx);
        else
          scribble(in, m, tx);
        break;
      case 3:
      case 4:
      case 5:
        if (packed)
          scribble(in, m, packed_rx);
        else
          scribble(in, m, rx);
        break;
      case 6: scribble(in, m, control); break;
      case 7:
        if (!burst.empty()) q->release(burst, burst.count());
        q->receive(burst);
        for (uint32_t i = burst.begin; i < burst.end; i++) copy = bytes_of(burst, burst.packets[i]);
        break;
      case 8: q->release(burst, in.byte() % 9); break;
      case 9: {
        // What came in goes out again, as between two peers; and frames of our own.
        if (!burst.empty()) q->release(burst, q->send(burst));
        Frames frames;
        for (uint32_t i = in.byte() % 4; i > 0; i--) {
          NetHeader h;
          if (in.byte() & 1) h = {1, 0, 0, 0, 14, 2, 0};
          frames.add(14 + in.word() % 2000, 1, h);
        }
        q->send(frames.burst);
        // And straight, with whatever was written to the room.
        iovec pieces[64];
        const uint32_t bytes = in.word() % 3000u;
        for (PortQueue* to : {static_cast<PortQueue*>(q.get()), static_cast<PortQueue*>(driver.get())}) {
          const uint32_t n = to->room(pieces, in.byte() % 65u, bytes);
          for (uint32_t i = 0; i < n; i++) std::memset(pieces[i].iov_base, op, pieces[i].iov_len);
          if (in.byte() & 1) scribble(in, m, rx);
          const NetHeader h = op & 16 ? NetHeader{1, 0, 0, 0, 14, 2, 0} : NetHeader{};
          if (n) to->place(h, op & 32 ? in.word() % (bytes + 1) : 0);
        }
        break;
      }
      case 10:
        q->arm(op & 16);
        q->disarm(op & 32);
        break;
      case 11: q->flush(); break;
      case 12:
        q->detached();
        burst.clear();
        q->set_enabled(op & 16, op & 32);
        break;
      case 13:
        q->set_dirty_log(op & 16 ? DirtyLog::create(log_memory.mapping, 0, 1 + op, &error,
                                                    op & 32 ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral)
                                 : nullptr);
        break;
      case 14: {
        if (device->pop(&head, &message, &writable) == ControlDevice::Pop::kChain && (op & 16))
          device->push(head, message.data(), std::min<size_t>(message.size(), writable));
        device->push(in.word(), nullptr, 0);
        device->needs_interrupt();
        break;
      }
      case 15: {
        uint64_t ring = (op & 16 ? driver->receiveq() : driver->transmitq()).device;
        VirtqUsed& used = m.ref<VirtqUsed>(ring);
        used.ring[in.byte() % 8] = {in.byte() % 9u, in.word()};
        used.idx = static_cast<uint16_t>(used.idx + in.byte() % 10);
        if (!driver_burst.empty()) driver->release(driver_burst, driver_burst.count());
        driver->receive(driver_burst);
        for (uint32_t i = driver_burst.begin; i < driver_burst.end; i++)
          copy = bytes_of(driver_burst, driver_burst.packets[i]);
        driver->send(driver_burst);
        break;
      }
    }
  }
  q->detached();
  driver->detached();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  run(data, size);
  return 0;
}
