// Which pages a peer queue logs. When it does so is what log_order_test.cc is about.
#include "peer_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::peer;

namespace {

bool marked(const Memory& log, const void* at, const Memory& memory) {
  const uint64_t page = static_cast<uint64_t>(static_cast<const uint8_t*>(at) - memory.mapping->data()) / 4096;
  return log.mapping->data()[page / 8] >> page % 8 & 1;
}

}  // namespace

TEST("the page of the used index is logged when the index was written, and in the log of that time") {
  for (const auto writers : {DirtyLog::Writers::kOne, DirtyLog::Writers::kSeveral}) {
    // Elements from 512 on are in other pages than the index.
    Peer p(kAllFeatures, 1024);
    Frames frames;
    for (int i = 0; i < 50; i++) frames.add(60, 1);
    for (int round = 0; round < 12; round++) {
      for (int i = 0; i < 50; i++) p.buffer(0, 2048);
      CHECK_EQ(p.q->send(frames.burst), 50);
    }
    p.q->flush();
    Memory log(4096), other(4096);
    p.q->set_dirty_log(DirtyLog::create(log.mapping, 0, kBytes / 4096 / 8, nullptr, writers));
    p.buffer(0, 2048);
    frames.burst.end = 1;
    CHECK_EQ(p.q->send(frames.burst), 1);
    CHECK_EQ(p.rx.used().idx, 601);
    CHECK(marked(log, p.m.at(kData), p.m));
    CHECK(marked(log, &p.rx.used().ring[600], p.m));
    CHECK(marked(log, &p.rx.used().idx, p.m));
    p.q->set_dirty_log(DirtyLog::create(other.mapping, 0, kBytes / 4096 / 8, nullptr, writers));
    p.q->flush();
    CHECK(!marked(other, &p.rx.used().idx, p.m));
    p.q->set_dirty_log(nullptr);
  }
}

TEST("the dirty log has exactly the pages that were written, in every mode") {
  check::Random r(41);
  for (int round = 0; round < 300; round++) {
    uint64_t features = kAllFeatures | (r.below(2) ? kNetMrgRxbuf : 0) | (r.below(2) ? kFeatureEventIdx : 0);
    Peer p(features, 16);
    Memory log_memory(4096);
    std::string error;
    auto log = DirtyLog::create(log_memory.mapping, 0, kBytes / 4096 / 8, &error,
                                r.below(2) ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral);
    std::memset(p.m.at(kData), 0xa5, 0x100000);  // so that a written zero is a change
    p.q->set_dirty_log(log);
    for (uint16_t i = 0; i < 16; i++) {
      // Buffers of up to two pages anywhere, some of them over a page border.
      p.rx.desc(i) = {kData + 0x3000ull * i + r.below(0x1000), 64 + static_cast<uint32_t>(r.below(0x1f00)),
                      kDescWrite, 0};
      if (i % 3 == 0)
        p.rx.desc(i) = {p.rx.desc(i).addr, 64 + static_cast<uint32_t>(r.below(500)), kDescWrite | kDescNext,
                        static_cast<uint16_t>(i + 1)};
      p.rx.offer(i);
      if (i % 3 == 0) i++, p.rx.desc(i) = {kData + 0x3000ull * i, 2000, kDescWrite, 0};
    }
    for (uint16_t i = 0; i < 16; i++) {
      uint64_t at = kData + 0x100000 + 256ull * i;
      p.tx.desc(i) = {at, 12 + 60, 0, 0};
      p.tx.offer(i);
    }
    std::vector<uint8_t> before(p.m.mapping->data(), p.m.mapping->data() + kBytes);
    Frames frames;
    for (int i = 0; i < 12; i++) frames.add(14 + static_cast<uint32_t>(r.below(3000)), r.next());
    switch (r.below(4)) {
      case 0: p.q->arm(r.below(2)); break;
      case 1: p.q->set_enabled(false, true); break;
    }
    p.q->send(frames.burst);
    p.q->receive(p.burst);
    p.q->release(p.burst, static_cast<uint32_t>(r.below(17)));
    p.q->flush();
    p.q->detached();
    const uint8_t* bits = log_memory.mapping->data();
    for (uint64_t page = 0; page < kBytes / 4096; page++) {
      bool changed = std::memcmp(p.m.mapping->data() + page * 4096, before.data() + page * 4096, 4096) != 0;
      bool marked = bits[page / 8] >> page % 8 & 1;
      // A write of what was there already marks too; only ring pages see such writes.
      bool ring_page = page * 4096 == p.tx.at.device - kBase || page * 4096 == p.rx.at.device - kBase;
      if (changed && !marked) check::fail_equal(__FILE__, __LINE__, "page written and not logged", page, 0);
      if (marked && !changed && !ring_page)
        check::fail_equal(__FILE__, __LINE__, "page logged and not written", page, 0);
    }
    p.q->set_dirty_log(nullptr);
    if (check::failing()) return;
  }
}

TEST("nothing is logged while the log is off, and a log that is too short is not left") {
  Peer p(kAllFeatures, 16);
  Memory log_memory(4096);
  std::string error;
  p.q->set_dirty_log(DirtyLog::create(log_memory.mapping, 0, 1, &error));
  p.buffer(0, 2048);
  p.buffer(1, 2048);
  Frames frames;
  frames.add(60, 1);
  p.q->send(frames.burst);
  for (int i = 1; i < 4096; i++) CHECK_EQ(log_memory.mapping->data()[i], 0);
  p.q->set_dirty_log(nullptr);
  log_memory.mapping->data()[0] = 0;
  p.q->send(frames.burst);
  CHECK_EQ(log_memory.mapping->data()[0], 0);
}
