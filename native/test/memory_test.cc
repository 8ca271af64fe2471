// Mappings under a shrinking file, region tables, dirty bitmaps, notification targets.
#include <sys/eventfd.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "../core/address_cache.h"
#include "../core/dirty_log.h"
#include "../core/notify.h"
#include "fixture.h"

using namespace vpci;
using namespace vpci::test;

TEST("a mapping whose file shrank reads zero, stays writable and says that it faulted") {
  Memory m(1 << 20);
  std::memset(m.mapping->data(), 7, 1 << 20);
  CHECK(!m.mapping->faulted());
  CHECK_EQ(::ftruncate(m.fd, 4096), 0);
  volatile uint8_t* p = m.mapping->data();
  CHECK_EQ(p[0], 7);
  CHECK_EQ(p[(1 << 20) - 1], 0);
  CHECK(m.mapping->faulted());
  CHECK(m.table->faulted());
  CHECK_EQ(p[0], 0);  // the whole mapping was replaced, not one page
  p[5000] = 9;
  CHECK_EQ(p[5000], 9);
}

TEST("a fault in one mapping leaves the others alone") {
  Memory a(1 << 16), b(1 << 16);
  b.mapping->data()[3] = 3;
  CHECK_EQ(::ftruncate(a.fd, 0), 0);
  volatile uint8_t* p = a.mapping->data();
  CHECK_EQ(p[100], 0);
  CHECK(a.mapping->faulted());
  CHECK(!b.mapping->faulted());
  CHECK_EQ(b.mapping->data()[3], 3);
}

TEST("a read-only mapping of a shrunken file faults without becoming writable") {
  int fd = ::memfd_create("ro", MFD_CLOEXEC);
  CHECK_EQ(::ftruncate(fd, 8192), 0);
  auto mapping = Mapping::create(fd, 4096, 4096, false);
  CHECK(mapping && !mapping->writable());
  CHECK_EQ(::ftruncate(fd, 0), 0);
  volatile uint8_t* p = mapping->data();
  CHECK_EQ(p[0], 0);
  CHECK(mapping->faulted());
  ::close(fd);
}

TEST("a SIGBUS that is not ours ends the process as before") {
  Memory installed(4096);
  pid_t child = ::fork();
  if (child == 0) {
    ::alarm(10);  // a handler that returned for ever would end as SIGALRM
    ::dup2(::open("/dev/null", O_WRONLY), 2);
    int fd = ::memfd_create("foreign", MFD_CLOEXEC);
    volatile uint8_t* p = static_cast<uint8_t*>(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0));
    (void)p[0];
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  // By the signal, or with the report of a sanitizer that had its handler there before.
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) ||
        (WIFEXITED(status) && WEXITSTATUS(status) != 0));
}

TEST("mappings refuse what cannot be mapped and are counted") {
  size_t before = Mapping::live_count();
  Memory m(8192);
  CHECK_EQ(Mapping::live_count(), before + 1);
  CHECK(!Mapping::create(m.fd, 0, 0, true));
  CHECK_EQ(errno, EINVAL);
  CHECK(!Mapping::create(m.fd, 100, 4096, true));
  CHECK_EQ(errno, EINVAL);
  CHECK(!Mapping::create(-1, 0, 4096, true));
  CHECK_EQ(errno, EBADF);
  m.table = nullptr;
  m.mapping = nullptr;
  CHECK_EQ(Mapping::live_count(), before);
}

TEST("a region table refuses regions that are empty, wrap, overlap or leave their mapping") {
  Memory m(1 << 16);
  struct Bad {
    std::vector<std::array<uint64_t, 3>> regions;  // address, size, offset
    const char* why;
  };
  const Bad table[] = {
      {{{0, 0, 0}}, "empty"},
      {{{0, 0x10001, 0}}, "leaves"},
      {{{0, 1, 0x10000}}, "leaves"},
      {{{0, 0x8000, UINT64_MAX}}, "leaves"},
      {{{UINT64_MAX, 2, 0}}, "wraps"},
      {{{0, 0x2000, 0}, {0x1fff, 1, 0}}, "overlap"},
      {{{0x1000, 0x1000, 0}, {0, 0x1001, 0}}, "overlap"},
      {{{5, 1, 0}, {5, 1, 0}}, "overlap"},
  };
  for (const Bad& bad : table) {
    std::vector<Region> regions;
    for (auto& r : bad.regions) regions.push_back({r[0], r[1], m.mapping, r[2]});
    std::string error;
    CHECK(!RegionTable::create(regions, &error));
    CHECK_TEXT(error.c_str(), bad.why);
  }
  std::string error;
  CHECK(!RegionTable::create({{0, 1, nullptr, 0}}, &error));
  CHECK(RegionTable::create({}, &error) != nullptr);
}

TEST("translation finds every byte of every region and nothing else") {
  Memory m(1 << 16, 0,
           {{UINT64_MAX - 0xfff, 0x1000, 0x3000}, {0x1000, 0x1000, 0x1000}, {0x2000, 0x800, 0x5000}});
  const RegionTable& t = *m.table;
  uint8_t* d = m.mapping->data();
  CHECK(t.translate(0x1000).data == d + 0x1000);
  CHECK_EQ(t.translate(0x1001).length, 0xfff);
  CHECK(t.translate(0x2000).data == d + 0x5000);
  CHECK(t.translate(0xfff).data == nullptr);
  CHECK(t.translate(0x2800).data == nullptr);
  CHECK(t.translate(UINT64_MAX).data == d + 0x3fff);
  CHECK_EQ(t.translate(UINT64_MAX).length, 1);
  CHECK(t.translate(UINT64_MAX, 2) == nullptr);
  CHECK(t.translate(0x1fff, 2) == nullptr);  // adjacent regions are not one
  CHECK(t.translate(0x1ff0, 16) == d + 0x1ff0);
  CHECK(t.translate(0x1ff0, UINT64_MAX) == nullptr);

  AddressCache cache;
  cache.init(&t, true);
  check::Random r(1);
  for (int i = 0; i < 20000; i++) {
    uint64_t address = r.below(4) ? r.below(0x3000) : UINT64_MAX - r.below(0x1100);
    uint32_t length = static_cast<uint32_t>(r.below(8) ? 1 + r.below(64) : r.next());
    CHECK(cache.translate(address, length) == t.translate(address, length));
    RegionTable::Span a = cache.span(address), b = t.translate(address);
    CHECK(a.data == b.data && (!a.data || a.length == b.length));
  }
}

TEST("moving dirty bits equals a model for every shift") {
  check::Random r(7);
  for (int round = 0; round < 400; round++) {
    uint64_t from_bytes = 1 + r.below(64), to_bytes = 1 + r.below(64);
    int64_t shift = static_cast<int64_t>(r.below(600)) - 300;
    if (r.below(50) == 0) shift = r.below(2) ? INT64_MAX : INT64_MIN;
    std::vector<uint8_t> from(from_bytes), to(to_bytes), expected;
    for (auto& b : from) b = static_cast<uint8_t>(r.below(3) ? r.next() : 0);
    for (auto& b : to) b = static_cast<uint8_t>(r.next());
    expected = to;
    uint64_t count = 0;
    for (uint64_t i = 0; i < from_bytes * 8; i++) {
      if (!(from[i / 8] >> i % 8 & 1)) continue;
      __int128 at = static_cast<__int128>(i) + shift;
      if (at < 0 || at >= static_cast<__int128>(to_bytes) * 8) continue;
      expected[static_cast<size_t>(at / 8)] |= static_cast<uint8_t>(1 << static_cast<int>(at % 8));
      count++;
    }
    CHECK_EQ(move_dirty_bits(from.data(), from_bytes, to.data(), to_bytes, shift), count);
    CHECK(to == expected);
    for (uint8_t b : from) CHECK_EQ(b, 0);
  }
}

TEST("marking sets exactly the pages of the range and nothing behind the bitmap") {
  Memory m(8192);
  std::string error;
  auto log = DirtyLog::create(m.mapping, 16, 4, &error);
  {
    DirtyLog::Waiting waiting(*log);
    DirtyLog::Batch batch(*log, waiting);
    batch.add(4095, 2);
    batch.add(4096 * 9, 4096);
    batch.add(4096 * 31 + 5, 1 << 20);
    batch.add(UINT64_MAX - 5, 6);
  }
  const uint8_t* b = m.mapping->data();
  CHECK_EQ(b[16], 3);
  CHECK_EQ(b[17], 2);
  CHECK_EQ(b[18], 0);
  CHECK_EQ(b[19], 0x80);
  CHECK_EQ(b[20], 0);
  CHECK_EQ(b[15], 0);
  CHECK(!DirtyLog::create(m.mapping, 8192, 1, &error));
  CHECK(!DirtyLog::create(m.mapping, UINT64_MAX, 2, &error));
  CHECK(!DirtyLog::create(m.mapping, 0, 0, &error));
  CHECK(!DirtyLog::create(nullptr, 0, 1, &error));
}

TEST("a batch sets the bits of a model, whoever else writes, and leaves what was there") {
  check::Random r(17);
  for (int round = 0; round < 2000; round++) {
    const uint64_t bytes = 1 + r.below(12), offset = r.below(9);
    Memory m(4096);
    uint8_t* const b = m.mapping->data();
    std::vector<uint8_t> expected(4096);
    for (uint64_t i = 0; i < bytes; i++) b[offset + i] = expected[offset + i] = static_cast<uint8_t>(r.below(2) ? r.next() : 0);
    const auto log = DirtyLog::create(m.mapping, offset, bytes, nullptr,
                                      r.below(2) ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral);
    for (uint64_t batches = r.below(3); batches > 0; batches--) {
      DirtyLog::Waiting waiting(*log);
      const uint64_t base = r.below(2) ? 0 : r.next();
      DirtyLog::Batch batch(*log, waiting, base);
      for (uint64_t adds = r.below(20); adds > 0; adds--) {
        const uint64_t at = r.below((bytes + 1) * 8 * 4096), length = 1 + r.below(r.below(4) ? 5000 : 100000);
        batch.add(base + at, length);
        for (uint64_t page = at / 4096; page <= (at + length - 1) / 4096 && page < bytes * 8; page++)
          expected[offset + page / 8] |= static_cast<uint8_t>(1u << page % 8);
      }
    }
    CHECK(std::memcmp(b, expected.data(), 4096) == 0);
  }
}

TEST("the bits of a burst of packets, one of them of the greatest length, wait until they are stored") {
  check::Random r(19);
  for (int round = 0; round < 200; round++) {
    constexpr uint64_t kBytes = 4096;
    Memory m(kBytes);
    const auto log = DirtyLog::create(m.mapping, 0, kBytes, nullptr);
    const uint8_t* const b = m.mapping->data();
    uint64_t marked = 0;
    DirtyLog::Waiting waiting(*log);
    {
      DirtyLog::Batch batch(*log, waiting);
      // Each over the border of two bytes of the log, none next to another.
      for (uint64_t i = 1; i < Burst::kMax; i++) {
        const uint64_t border = (4 * i + 1) * DirtyLog::kByteOf, before = 1 + r.below(DirtyLog::kByteOf - 1);
        batch.add(border - before, DirtyLog::kByteOf - r.below(DirtyLog::kByteOf - before));
        marked += 2;
      }
      batch.add(1024 * DirtyLog::kByteOf - 1, 1 << 20);
      marked += 33;
    }
    for (uint64_t i = 0; i < kBytes; i++) CHECK_EQ(b[i], 0);
    waiting.store();
    uint64_t found = 0;
    for (uint64_t i = 0; i < kBytes; i++) found += b[i] != 0;
    CHECK_EQ(found, marked);
  }
}

TEST("who takes a bit finds what was written before it, from one writer and from three whose pages share a byte") {
  for (const uint32_t writers : {1u, 3u}) {
    Memory m(4096);
    uint8_t* const bits = m.mapping->data();
    const auto log = DirtyLog::create(m.mapping, 0, 1, nullptr,
                                      writers == 1 ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral);
    constexpr uint32_t kWrites = 30000;
    std::atomic<uint32_t> pages[3] = {}, going = writers;
    std::vector<std::thread> threads;
    for (uint32_t k = 0; k < writers; k++)
      threads.emplace_back([&, k] {
        for (uint32_t i = 1; i <= kWrites; i++) {
          pages[k].store(i, std::memory_order_relaxed);
          DirtyLog::Waiting waiting(*log);
          DirtyLog::Batch(*log, waiting).add(4096 * k, 1);
        }
        going--;
      });
    uint32_t copies[3] = {};
    for (bool last = false; !last;) {
      last = going == 0;
      const uint8_t taken = __atomic_exchange_n(bits, uint8_t{0}, __ATOMIC_SEQ_CST);
      for (uint32_t k = 0; k < writers; k++)
        if (taken >> k & 1) copies[k] = pages[k].load(std::memory_order_relaxed);
    }
    for (std::thread& t : threads) t.join();
    for (uint32_t k = 0; k < writers; k++) CHECK_EQ(copies[k], kWrites);
  }
}

TEST("a doorbell is rung before the eventfd, which follows only when the device sleeps") {
  Memory m(4096);
  int fd = ::eventfd(0, EFD_NONBLOCK);
  NotifyOptions o;
  o.fd = fd;
  o.doorbell = m.mapping;
  o.doorbell_offset = 64;
  o.sleep_offset = 128;
  NotifyTarget target;
  std::string error;
  CHECK(target.init(o, &error));
  uint64_t count = 0;
  target.signal();
  CHECK_EQ(m.ref<uint32_t>(m.base + 64), 1);
  CHECK(::read(fd, &count, 8) < 0);
  m.ref<uint32_t>(m.base + 128) = 1;
  target.signal();
  CHECK_EQ(m.ref<uint32_t>(m.base + 64), 2);
  CHECK(::read(fd, &count, 8) == 8 && count == 1);
  ::close(fd);
}

TEST("a notify register is written once with its value, and bad places are refused") {
  Memory m(4096);
  NotifyOptions o;
  o.mmio = m.mapping;
  o.mmio_offset = 6;
  o.mmio_value = 0xabcd;
  NotifyTarget target;
  std::string error;
  CHECK(target.init(o, &error));
  CHECK(target.present());
  target.signal();
  CHECK_EQ(m.ref<uint16_t>(m.base + 6), 0xabcd);
  CHECK_EQ(m.ref<uint16_t>(m.base + 8), 0);
  for (uint64_t bad : {uint64_t{5}, uint64_t{4096}, uint64_t{4095}, UINT64_MAX, UINT64_MAX - 1}) {
    NotifyTarget t;
    o.mmio_offset = bad;
    CHECK(!t.init(o, &error));
  }
  o.mmio_offset = 0;
  o.fd = 1;
  NotifyTarget both;
  CHECK(!both.init(o, &error));
  NotifyOptions d;
  d.doorbell = m.mapping;
  d.sleep_offset = 4094;
  NotifyTarget t;
  CHECK(!t.init(d, &error));
  NotifyTarget none;
  CHECK(none.init(NotifyOptions{}, &error) && !none.present());
  none.signal();
}

TEST("a full or blocking eventfd neither blocks a signal nor a drain") {
  int fd = ::eventfd(0, 0);
  OwnFd own;
  std::string error;
  CHECK(own.duplicate(fd, &error));
  own.drain();
  uint64_t most = UINT64_MAX - 1;
  CHECK(::write(fd, &most, 8) == 8);
  own.signal();
  own.drain();
  own.signal();
  uint64_t count = 0;
  CHECK(::read(fd, &count, 8) == 8 && count == 1);
  ::close(fd);
  CHECK(!own.duplicate(99999, &error));
}
