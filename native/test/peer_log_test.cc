// When a peer queue logs what it writes: after the write, before the used index that publishes it, and nothing later
// than the next flush or change of the log. Which pages it logs is in peer_test.cc.
#include <csignal>

#include "peer_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::peer;

namespace {

constexpr uint32_t kFrameBytes = 60000, kBufferBytes = 0x10000;

// The first write into the log faults; what it finds in the peer's memory is kept.
uint8_t* log_page;
const uint8_t *expected, *written;
const VirtqUsed* used;
volatile sig_atomic_t faults, there, published;

void on_fault(int) {
  faults = faults + 1;
  there = std::memcmp(written, expected, kFrameBytes) == 0;
  published = used->idx;
  ::mprotect(log_page, 4096, PROT_READ | PROT_WRITE);
}

bool marked(const Memory& log, const void* at, const Memory& memory) {
  const uint64_t page = static_cast<uint64_t>(static_cast<const uint8_t*>(at) - memory.mapping->data()) / 4096;
  return log.mapping->data()[page / 8] >> page % 8 & 1;
}

}  // namespace

TEST("pages are logged after the copies and before the used index, also when more of them are written than can wait") {
  Peer p(kAllFeatures);
  p.q->disarm(true);  // kicks are not wanted already: that is a write too
  Memory log(4096);
  p.q->set_dirty_log(DirtyLog::create(log.mapping, 0, kBytes / 4096 / 8, nullptr));
  Frames frames;
  constexpr uint16_t kCount = 24;
  for (uint16_t i = 0; i < kCount; i++) {
    p.rx.desc(i) = {kData + uint64_t{i} * kBufferBytes, kBufferBytes, kDescWrite, 0};
    p.rx.offer(i);
    frames.add(kFrameBytes, i + 1u);
  }
  log_page = log.mapping->data();
  expected = frames.bytes[0].data();
  written = p.m.at(kData) + 12;
  used = &p.rx.used();
  faults = 0;
  struct sigaction action = {}, before = {};
  action.sa_handler = on_fault;
  CHECK_EQ(::sigaction(SIGSEGV, &action, &before), 0);
  CHECK_EQ(::mprotect(log_page, 4096, PROT_READ), 0);
  const uint32_t sent = p.q->send(frames.burst);
  ::sigaction(SIGSEGV, &before, nullptr);
  CHECK_EQ(sent, kCount);
  CHECK_EQ(p.rx.used().idx, kCount);
  CHECK_EQ(faults, 1);
  CHECK(there);
  CHECK_EQ(published, 0);
  for (uint16_t i = 0; i < kCount; i++) {
    const uint8_t* at = p.m.at(kData + uint64_t{i} * kBufferBytes);
    CHECK(std::memcmp(at + 12, frames.bytes[i].data(), kFrameBytes) == 0);
    for (uint32_t offset = 0; offset < 12 + kFrameBytes; offset += 4096) CHECK(marked(log, at + offset, p.m));
  }
  p.q->set_dirty_log(nullptr);
}

TEST("the page of the used index is logged by the next flush, or in the old log when there is another") {
  for (const bool flushed : {true, false}) {
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
    p.q->set_dirty_log(DirtyLog::create(log.mapping, 0, kBytes / 4096 / 8, nullptr));
    p.buffer(0, 2048);
    frames.burst.end = 1;
    CHECK_EQ(p.q->send(frames.burst), 1);
    CHECK_EQ(p.rx.used().idx, 601);
    CHECK(marked(log, p.m.at(kData), p.m));
    CHECK(marked(log, &p.rx.used().ring[600], p.m));
    if (flushed)
      p.q->flush();
    else
      p.q->set_dirty_log(DirtyLog::create(other.mapping, 0, kBytes / 4096 / 8, nullptr));
    CHECK(marked(log, &p.rx.used().idx, p.m));
    CHECK(!marked(other, &p.rx.used().idx, p.m));
    p.q->set_dirty_log(nullptr);
  }
}
