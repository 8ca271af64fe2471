// Live migration without a VM: a guest on a thread of its own, whose rings a worker serves; a migrator that reads and
// clears the log as QEMU does, copies pages while both run, stops them, takes the last bits, and compares every page.
// Then the guest goes on in the copy. With split and with packed rings. MIGRATIONS=N: how many times (default 12). The
// Makefile builds this once more for each kind of write that can be left unlogged, and there it has to fail.
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "../core/sink_queue.h"
#include "../core/source_queue.h"
#include "../core/test_frame.h"
#include "../core/worker.h"
#include "packed_fixture.h"

namespace vpci::test {
namespace {

constexpr uint64_t kPage = 4096;
// Low memory and memory above 4 GiB, parts of one file whose bits share bytes of the driver's bitmap.
constexpr uint64_t kLow = 0x40000000, kHigh = 0x140000000;
constexpr uint64_t kLowBytes = 0x15000, kHighBytes = 0x30d000;
constexpr uint64_t kFileBytes = kLowBytes + kHighBytes;
constexpr uint32_t kRxSize = 1024, kTxSize = 256, kBufferBytes = 2048;
constexpr uint64_t kRx = kLow + 0x1000, kTx = kLow + 0x9000;
constexpr uint64_t kRxData = kHigh + 0x1000, kTxData = kRxData + kRxSize * kBufferBytes;
// The used ring of 1024 entries ends in a page that little but avail_event lives in: that kind of write shows.
static_assert(used_bytes(kRxSize) > 2 * kPage);
constexpr uint64_t kFeatures = kFeatureVersion1 | kFeatureIndirect | kFeatureEventIdx | kNetMrgRxbuf;
constexpr uint32_t kFrame = 200;

int migrations() {
  const char* text = std::getenv("MIGRATIONS");
  return text && std::atoi(text) > 0 ? std::atoi(text) : 12;
}

std::unique_ptr<Memory> new_memory() {
  return std::make_unique<Memory>(
      kFileBytes, kLow, std::vector<std::array<uint64_t, 3>>{{kLow, kLowBytes, 0}, {kHigh, kHighBytes, kLowBytes}});
}

// Pages of the file that the vCPU has written to since they were taken: QEMU learns of those without us.
struct GuestPages {
  std::array<std::atomic<bool>, kFileBytes / kPage> pages{};
  void add(uint64_t address) {
    const uint64_t offset = address >= kHigh ? address - kHigh + kLowBytes : address - kLow;
    pages[offset / kPage].store(true, std::memory_order_release);
  }
  bool take(uint64_t page) { return pages[page].exchange(false, std::memory_order_acq_rel); }
};

// A driver's half of a ring, of either format: one descriptor a chain.
struct SplitHalf {
  static constexpr uint64_t kRing = 0;
  static constexpr uint16_t kStart = 0;
  RawRing ring;
  uint16_t seen = 0, before = 0;
  SplitHalf(Memory& m, uint64_t address, uint32_t size) : ring(m, address, size) {}
  void follow(const SplitHalf& other) {
    ring.avail_idx = other.ring.avail_idx;
    seen = other.seen;
  }
  void offer(GuestPages& written, uint16_t id, uint64_t address, uint32_t length, uint16_t flags) {
    ring.desc(id) = {address, length, flags, 0};
    written.add(ring.at.desc + 16ull * id);
    ring.offer(id);
    written.add(ring.at.driver);
  }
  // The next used id, or 65536.
  uint32_t take(uint32_t* length) {
    if (load_acquire16(&ring.used().idx) == seen) return 65536;
    const VirtqUsedElem e = ring.used_at(seen++);
    *length = e.len;
    return e.id;
  }
  void begin() { before = ring.avail_idx; }
  bool offered() const { return before != ring.avail_idx; }
  // VIRTIO 1.3, 2.7.13.4.1
  bool wants_kick() const { return need_event(load_relaxed16(&ring.avail_event()), ring.avail_idx, before); }
};
struct PackedHalf {
  static constexpr uint64_t kRing = kFeaturePacked;
  static constexpr uint16_t kStart = kPackedStart;
  RawPacked ring;
  Position before = 0;
  PackedHalf(Memory& m, uint64_t address, uint32_t size) : ring(m, address, size) {}
  void follow(const PackedHalf& other) {
    ring.avail = other.ring.avail;
    ring.used = other.ring.used;
    ring.lengths = other.ring.lengths;
  }
  void offer(GuestPages& written, uint16_t id, uint64_t address, uint32_t length, uint16_t flags) {
    const uint64_t at = ring.at.desc + 16ull * offset_of(ring.avail);
    ring.offer(id, {{address, length, flags, 0}});
    written.add(at);
  }
  uint32_t take(uint32_t* length) { return ring.take(length); }
  void begin() { before = ring.avail; }
  bool offered() const { return before != ring.avail; }
  bool wants_kick() const { return ring.wants_kick(before); }
};

// The peer: a virtio-net driver by hand. What it has learnt is its own state and goes with it; everything else is in
// the memory.
template <class Half>
class Guest {
 public:
  explicit Guest(Memory& memory) : memory_(&memory) {
    rx_ = std::make_unique<Half>(memory, kRx, kRxSize);
    tx_ = std::make_unique<Half>(memory, kTx, kTxSize);
    for (uint16_t i = 0; i < kRxSize; i++) give(i);
    for (uint16_t i = 0; i < kTxSize; i++) send(i);
  }
  ~Guest() { stop(); }

  void start() {
    run_ = true;
    thread_ = std::thread([this] {
      while (run_.load(std::memory_order_relaxed))
        if (!turn()) std::this_thread::yield();
    });
  }
  void stop() {
    run_ = false;
    if (thread_.joinable()) thread_.join();
  }
  // To where the memory was copied. Stopped.
  void move(Memory& to) {
    auto rx = std::make_unique<Half>(to, kRx, kRxSize), tx = std::make_unique<Half>(to, kTx, kTxSize);
    rx->follow(*rx_);
    tx->follow(*tx_);
    memory_ = &to;
    rx_ = std::move(rx);
    tx_ = std::move(tx);
  }
  // Only what is under way already. Stopped.
  void drain() {
    sending_ = false;
    while (turn()) {
    }
  }

  const RingAddresses& receiveq() const { return rx_->ring.at; }
  const RingAddresses& transmitq() const { return tx_->ring.at; }

  GuestPages written;
  const int rx_kick = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), tx_kick = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::atomic<uint64_t> received{0}, sent{0};
  uint64_t skipped = 0;  // numbers that never came: refused before they were in the ring
  uint64_t wrong = 0;    // everything else that a packet must not be

 private:
  // As NAPI has one. A worker that outruns this thread (under sanitizers) would keep it at the first ring for good, and
  // the wish for a kick is about less than a lap (VIRTIO 1.3, 2.8.10).
  static constexpr uint32_t kBudget = 64;

  bool turn() {
    rx_->begin();
    tx_->begin();
    uint32_t used = 0, id;
    for (uint32_t budget = kBudget; budget > 0 && (id = rx_->take(&used)) != 65536; budget--) {
      uint8_t frame[8192];
      uint32_t length = 0, buffers = 1;
      for (uint32_t k = 0; k < buffers; k++) {
        // All buffers of a frame come at once.
        if (k > 0) id = rx_->take(&used);
        const uint32_t skip = k == 0 ? 12 : 0;
        if (id >= kRxSize || used <= skip || used > kBufferBytes || length + used - skip > sizeof frame) {
          wrong++;
          return false;
        }
        const uint8_t* at = memory_->at(kRxData + id * kBufferBytes);
        if (k == 0) buffers = at[10] | at[11] << 8;
        std::memcpy(frame + length, at + skip, used - skip);
        length += used - skip;
        give(static_cast<uint16_t>(id));
      }
      check(frame, length);
    }
    for (uint32_t budget = kBudget; budget > 0 && (id = tx_->take(&used)) != 65536; budget--) {
      if (id >= kTxSize) {
        wrong++;
        return false;
      }
      if (sending_) send(static_cast<uint16_t>(id));
    }
    const bool offered = rx_->offered() || tx_->offered();
    kick(*rx_, rx_kick);
    kick(*tx_, tx_kick);
    return offered;
  }

  void give(uint16_t id) {
    rx_->offer(written, id, kRxData + uint64_t{id} * kBufferBytes, kBufferBytes, kDescWrite);
  }

  void check(const uint8_t* frame, uint32_t length) {
    using namespace test_frame;
    StreamHeader header;
    if (length < kMinBytes) {
      wrong++;
      return;
    }
    std::memcpy(&header, frame + kEthernetBytes, sizeof header);
    const bool sound = header.magic == kMagic && header.length == length &&
                       header.sum == header_sum(frame, header.sequence, length) &&
                       check_pattern(frame + kPatternAt, length - kPatternAt, header.sequence);
    if (!sound || header.sequence < next_) {
      wrong++;
      return;
    }
    skipped += header.sequence - next_;
    next_ = header.sequence + 1;
    received.store(received.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  void send(uint16_t id) {
    using namespace test_frame;
    uint8_t* at = memory_->at(kTxData + uint64_t{id} * kBufferBytes);
    std::memset(at, 0, 12 + kEthernetBytes);
    uint8_t* frame = at + 12;
    std::memcpy(frame + 12, kEthertype, 2);
    const uint64_t number = sent.load(std::memory_order_relaxed);
    const StreamHeader header{kMagic, 2, number, kFrame, header_sum(frame, number, kFrame)};
    std::memcpy(frame + kEthernetBytes, &header, sizeof header);
    write_pattern(frame + kPatternAt, kFrame - kPatternAt, number);
    written.add(kTxData + uint64_t{id} * kBufferBytes);
    sent.store(number + 1, std::memory_order_relaxed);
    tx_->offer(written, id, kTxData + uint64_t{id} * kBufferBytes, 12 + kFrame, 0);
  }

  // By the device's wish alone, so that a wish that got lost stalls the guest.
  static void kick(Half& half, int fd) {
    if (!half.offered()) return;
    full_fence();
    if (!half.wants_kick()) return;
    const uint64_t one = 1;
    if (::write(fd, &one, sizeof one) != sizeof one) return;  // full: it is readable anyway
  }

  Memory* memory_;
  std::unique_ptr<Half> rx_, tx_;
  uint64_t next_ = 0;
  bool sending_ = true;
  std::atomic<bool> run_{false};
  std::thread thread_;
};

// Waits for a command of the worker.
template <class Post>
bool done(Post post) {
  std::atomic<int> state{0};
  post([&state](const char* error, uint32_t) { state = error ? 2 : 1; });
  while (state == 0) std::this_thread::yield();
  return state == 1;
}

// The receiving side: one queue pair of the peer between a stream and a sink.
struct Receiver {
  Worker worker;
  std::shared_ptr<SourceQueue> source;
  std::shared_ptr<SinkQueue> sink = std::make_shared<SinkQueue>(SinkQueue::Options{true, 2});
  std::shared_ptr<PeerQueue> queue;
  uint64_t accepted = 0, refused = 0;

  Receiver(Worker::Mode mode, uint32_t bytes) {
    SourceQueue::Options s;
    s.bytes = bytes;
    s.has_stream = true;
    s.stream = 1;
    source = SourceQueue::create(s);
    Worker::Options options;
    options.mode = mode;
    options.spin_microseconds = 5;
    CHECK_EQ(worker.start(options, [](const Worker::Event&) {}), 0);
  }

  // `log` is in force before the first packet.
  template <class Half>
  void attach(const Memory& memory, const Guest<Half>& guest, uint16_t transmit, uint16_t receive,
              std::shared_ptr<const DirtyLog> log) {
    PeerQueueOptions o;
    o.table = memory.table;
    o.features = kFeatures | Half::kRing;
    o.transmit.emplace();
    o.transmit->ring = guest.transmitq();
    o.transmit->next_avail = transmit;
    o.transmit->kick_fd = guest.tx_kick;
    o.receive.emplace();
    o.receive->ring = guest.receiveq();
    o.receive->next_avail = receive;
    o.receive->kick_fd = guest.rx_kick;
    std::string error;
    queue = PeerQueue::create(o, &error);
    if (!queue) return check::fail(__FILE__, __LINE__, error.c_str());
    set_log(log);
    CHECK(done([&](Worker::Done d) { worker.connect(source, queue, LanePolicy::kHold, d); }));
    CHECK(done([&](Worker::Done d) { worker.connect(queue, sink, LanePolicy::kHold, d); }));
  }
  void set_log(std::shared_ptr<const DirtyLog> log) {
    CHECK(done([&](Worker::Done d) { worker.run(queue, [q = queue, log] { q->set_dirty_log(log); }, d); }));
  }
  void detach() {
    CHECK(done([&](Worker::Done d) { worker.detach(queue, d); }));
    CHECK(queue->broken(false) == nullptr && queue->broken(true) == nullptr);
    accepted += queue->send_stats.packets.get();
    refused += queue->send_stats.drops[static_cast<int>(Drop::kNoBuffers)].get();
  }
};

// The device process's bitmaps and QEMU's side of a migration.
class Migrator {
 public:
  Migrator() : bitmap_(8192, 0), log_((kHigh + kHighBytes) / kPage / 8 + 1), dirty_(kFileBytes / kPage, true) {
    std::string error;
    for (const auto writers : {DirtyLog::Writers::kOne, DirtyLog::Writers::kSeveral})
      driver_logs.push_back(DirtyLog::create(bitmap_.mapping, 0, (kFileBytes / kPage + 7) / 8, &error, writers));
  }

  // Moves the driver's bits to QEMU's log, takes them from there, copies what they say.
  void pass(const Memory& from, const Memory& to, GuestPages& written) {
    sync();
    for (uint64_t page = 0; page < dirty_.size(); page++)
      if (written.take(page)) dirty_[page] = true;
    for (uint64_t page = 0; page < dirty_.size(); page++) {
      if (!dirty_[page]) continue;
      dirty_[page] = false;
      copy_page(to.mapping->data() + page * kPage, from.mapping->data() + page * kPage);
      copied++;
    }
  }
  void all_dirty() { dirty_.assign(dirty_.size(), true); }
  // The number of pages that differ.
  static uint64_t differing(const Memory& a, const Memory& b) {
    uint64_t n = 0;
    for (uint64_t at = 0; at < kFileBytes; at += kPage)
      if (std::memcmp(a.mapping->data() + at, b.mapping->data() + at, kPage) != 0) n++;
    return n;
  }

  // The same bitmap, written in either way.
  std::vector<std::shared_ptr<const DirtyLog>> driver_logs;
  uint64_t copied = 0;

 private:
  void sync() {
    uint8_t* from = bitmap_.mapping->data();
    const uint64_t bytes = bitmap_.mapping->size(), low_pages = kLowBytes / kPage, high_pages = kHighBytes / kPage;
    move_dirty_bits(from, bytes, log_.data(), log_.size(), kLow / kPage, 0, low_pages);
    move_dirty_bits(from, bytes, log_.data(), log_.size(), static_cast<int64_t>(kHigh / kPage - low_pages), low_pages,
                    high_pages);
    for (uint64_t i = 0; i < log_.size(); i++) {
      uint8_t bits = __atomic_exchange_n(&log_[i], uint8_t{0}, __ATOMIC_SEQ_CST);
      for (; bits; bits &= static_cast<uint8_t>(bits - 1)) {
        const uint64_t gpa = (i * 8 + static_cast<uint64_t>(__builtin_ctz(bits))) * kPage;
        dirty_[(gpa >= kHigh ? gpa - kHigh + kLowBytes : gpa - kLow) / kPage] = true;
      }
    }
  }

  // Guest and worker write meanwhile, which is what the log is for: no function here that the thread sanitizer knows.
  __attribute__((no_sanitize("thread"))) static void copy_page(uint8_t* to, const uint8_t* from) {
    for (uint64_t i = 0; i < kPage; i += 8)
      reinterpret_cast<Word64*>(to + i)->v = reinterpret_cast<const volatile Word64*>(from + i)->v;
  }

  Memory bitmap_;
  std::vector<uint8_t> log_;
  std::vector<bool> dirty_;
};

void pause_us(uint64_t us) { ::usleep(static_cast<useconds_t>(us)); }

template <class Half>
void run(Worker::Mode mode, uint32_t bytes, int rounds, uint64_t seed) {
  check::Random random(seed);
  auto here = new_memory(), there = new_memory();
  Guest<Half> guest(*here);
  Receiver receiver(mode, bytes);
  Migrator migrator;
  receiver.attach(*here, guest, Half::kStart, Half::kStart, nullptr);
  guest.start();
  for (int round = 0; round < rounds && !check::failing(); round++) {
    // It works here, whatever happened before.
    const uint64_t in = guest.received + 100, out = guest.sent + 100;
    for (int waited = 0; waited < 10000 && (guest.received < in || guest.sent < out); waited++) pause_us(500);
    CHECK(guest.received >= in);
    CHECK(guest.sent >= out);

    const auto log = migrator.driver_logs[random.below(2)];
    receiver.set_log(log);
    migrator.all_dirty();
    for (uint64_t passes = 1 + random.below(4); passes > 0; passes--) {
      migrator.pass(*here, *there, guest.written);
      pause_us(random.below(1500));
    }
    if (random.below(4) == 0) {  // cancelled
      receiver.set_log(nullptr);
      continue;
    }
    if (random.below(4) == 0) {  // the peer's front-end came back in the middle: the log is on from the start
      receiver.detach();
      const uint16_t transmit = receiver.queue->next_avail(true), receive = receiver.queue->next_avail(false);
      receiver.attach(*here, guest, transmit, receive, log);
      migrator.pass(*here, *there, guest.written);
      pause_us(random.below(1000));
    }
    guest.stop();
    pause_us(random.below(300));  // the driver goes on until it is told
    receiver.detach();
    migrator.pass(*here, *there, guest.written);
    const uint64_t differing = Migrator::differing(*here, *there);
    CHECK_EQ(differing, 0);
    if (differing) break;

    guest.move(*there);
    receiver.attach(*there, guest, receiver.queue->next_avail(true), receiver.queue->next_avail(false), nullptr);
    std::swap(here, there);
    guest.start();
  }
  if (!check::failing()) {
    // What the rings accepted has arrived, all of it, once and unaltered.
    CHECK(done([&](Worker::Done d) { receiver.worker.detach(receiver.source, d); }));
    guest.stop();
    guest.drain();
    for (int waited = 0; waited < 10000 && receiver.sink->verified.packets.get() < guest.sent; waited++) pause_us(500);
    receiver.detach();
    guest.drain();
    CHECK_EQ(guest.received, receiver.accepted);
    CHECK_EQ(guest.wrong, 0);
    CHECK(guest.skipped <= receiver.refused);
    const SinkQueue::Verified& sink = receiver.sink->verified;
    CHECK_EQ(sink.packets.get(), guest.sent);
    CHECK_EQ(sink.lost.get() + sink.altered.get() + sink.foreign.get() + sink.reordered.get(), 0);
    CHECK(migrator.copied > 0);
  }
  receiver.worker.stop({});
  receiver.worker.join();
  ::close(guest.rx_kick);
  ::close(guest.tx_kick);
}

}  // namespace

TEST("migration: with split rings the copy has every page as it was, and nothing that was accepted is lost, when polling") {
  run<SplitHalf>(Worker::Mode::kPoll, 200, migrations(), 1);
}

TEST("migration: the same with split rings and a worker that sleeps between bursts") {
  run<SplitHalf>(Worker::Mode::kInterrupt, 100, migrations(), 2);
}

TEST("migration: the same with split rings and frames over several merged buffers") {
  run<SplitHalf>(Worker::Mode::kAdaptive, 5000, migrations(), 3);
}

TEST("migration: the same with packed rings, when polling") {
  run<PackedHalf>(Worker::Mode::kPoll, 200, migrations(), 4);
}

TEST("migration: the same with packed rings and a worker that sleeps") {
  run<PackedHalf>(Worker::Mode::kInterrupt, 100, migrations(), 5);
}

TEST("migration: the same with packed rings and merged buffers") {
  run<PackedHalf>(Worker::Mode::kAdaptive, 5000, migrations(), 6);
}

}  // namespace vpci::test
