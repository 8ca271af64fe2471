// Live migration without a VM: a guest on a thread of its own, whose rings a worker serves; a migrator that reads and
// clears the log as QEMU does, copies pages while both run, stops them, takes the last bits, and compares every page.
// Then the guest goes on in the copy. MIGRATIONS=N: how many times (default 12). The Makefile builds this once more
// for each kind of write that can be left unlogged, and there it has to fail.
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "../core/sink_queue.h"
#include "../core/source_queue.h"
#include "../core/test_frame.h"
#include "../core/worker.h"
#include "fixture.h"

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

// The peer: a virtio-net driver by hand. What it has learnt is its own state and goes with it; everything else is in
// the memory.
class Guest {
 public:
  explicit Guest(Memory& memory) : memory_(&memory), rx_(memory, kRx, kRxSize), tx_(memory, kTx, kTxSize) {
    for (uint16_t i = 0; i < kRxSize; i++) {
      rx_.desc(i) = {kRxData + uint64_t{i} * kBufferBytes, kBufferBytes, kDescWrite, 0};
      rx_.offer(i);
    }
    for (uint16_t i = 0; i < kTxSize; i++) {
      tx_.desc(i) = {kTxData + uint64_t{i} * kBufferBytes, 12 + kFrame, 0, 0};
      send(i);
    }
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
    const uint16_t rx = rx_.avail_idx, tx = tx_.avail_idx;
    memory_ = &to;
    rx_.~RawRing();
    tx_.~RawRing();
    new (&rx_) RawRing(to, kRx, kRxSize);
    new (&tx_) RawRing(to, kTx, kTxSize);
    rx_.avail_idx = rx;
    tx_.avail_idx = tx;
  }
  // Only what is under way already. Stopped.
  void drain() {
    sending_ = false;
    while (turn()) {
    }
  }

  const RingAddresses& receiveq() const { return rx_.at; }
  const RingAddresses& transmitq() const { return tx_.at; }
  // The vCPU wrote it: QEMU learns of that without us.
  static bool writes(uint64_t file_page) {
    const uint64_t at = file_page * kPage;
    auto in = [at](uint64_t address, uint64_t bytes) {
      const uint64_t offset = address >= kHigh ? address - kHigh + kLowBytes : address - kLow;
      return at >= offset && at < offset + bytes;
    };
    return in(kRx, desc_bytes(kRxSize) + kPage) || in(kTx, desc_bytes(kTxSize) + kPage) ||
           in(kTxData, uint64_t{kTxSize} * kBufferBytes);
  }

  const int rx_kick = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), tx_kick = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::atomic<uint64_t> received{0}, sent{0};
  uint64_t skipped = 0;  // numbers that never came: refused before they were in the ring
  uint64_t wrong = 0;    // everything else that a packet must not be

 private:
  bool turn() {
    const uint16_t rx_before = rx_.avail_idx, tx_before = tx_.avail_idx;
    for (uint16_t idx = load_acquire16(&rx_.used().idx); rx_seen_ != idx;) {
      const VirtqUsedElem first = rx_.used_at(rx_seen_);
      if (first.id >= kRxSize) {
        wrong++;
        return false;
      }
      uint8_t header[12];
      std::memcpy(header, memory_->at(kRxData + first.id * kBufferBytes), 12);
      const uint16_t buffers = static_cast<uint16_t>(header[10] | header[11] << 8);
      uint8_t frame[8192];
      uint32_t length = 0;
      for (uint16_t k = 0; k < std::max<uint16_t>(buffers, 1) && rx_seen_ != idx; k++, rx_seen_++) {
        const VirtqUsedElem e = rx_.used_at(rx_seen_);
        const uint32_t skip = k == 0 ? 12 : 0;
        if (e.id < kRxSize && e.len > skip && e.len <= kBufferBytes && length + e.len - skip <= sizeof frame) {
          std::memcpy(frame + length, memory_->at(kRxData + e.id * kBufferBytes) + skip, e.len - skip);
          length += e.len - skip;
          rx_.offer(static_cast<uint16_t>(e.id));
        } else {
          wrong++;
        }
      }
      check(frame, length);
    }
    for (uint16_t idx = load_acquire16(&tx_.used().idx); tx_seen_ != idx; tx_seen_++) {
      const uint32_t id = tx_.used_at(tx_seen_).id;
      if (id >= kTxSize) wrong++;
      else if (sending_) send(static_cast<uint16_t>(id));
    }
    kick(rx_, rx_before, rx_kick);
    kick(tx_, tx_before, tx_kick);
    return rx_before != rx_.avail_idx || tx_before != tx_.avail_idx;
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
    sent.store(number + 1, std::memory_order_relaxed);
    tx_.offer(id);
  }

  // VIRTIO 1.3, 2.7.13.4.1: by the device's wish alone, so that a wish that got lost stalls the guest.
  static void kick(RawRing& ring, uint16_t before, int fd) {
    if (ring.avail_idx == before) return;
    full_fence();
    if (!need_event(load_relaxed16(&ring.avail_event()), ring.avail_idx, before)) return;
    const uint64_t one = 1;
    if (::write(fd, &one, sizeof one) != sizeof one) return;  // full: it is readable anyway
  }

  Memory* memory_;
  RawRing rx_, tx_;
  uint16_t rx_seen_ = 0, tx_seen_ = 0;
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
  void attach(const Memory& memory, const Guest& guest, uint16_t transmit, uint16_t receive,
              std::shared_ptr<const DirtyLog> log) {
    PeerQueueOptions o;
    o.table = memory.table;
    o.features = kFeatures;
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
    driver_log = DirtyLog::create(bitmap_.mapping, 0, (kFileBytes / kPage + 7) / 8, &error);
  }

  // Moves the driver's bits to QEMU's log, takes them from there, copies what they say.
  void pass(const Memory& from, const Memory& to) {
    sync();
    for (uint64_t page = 0; page < dirty_.size(); page++) {
      if (!dirty_[page]) continue;
      dirty_[page] = false;
      copy_page(to.mapping->data() + page * kPage, from.mapping->data() + page * kPage);
      copied++;
    }
  }
  void all_dirty() { dirty_.assign(dirty_.size(), true); }
  void guest_wrote() {
    for (uint64_t page = 0; page < dirty_.size(); page++)
      if (Guest::writes(page)) dirty_[page] = true;
  }
  // The number of pages that differ.
  static uint64_t differing(const Memory& a, const Memory& b) {
    uint64_t n = 0;
    for (uint64_t at = 0; at < kFileBytes; at += kPage)
      if (std::memcmp(a.mapping->data() + at, b.mapping->data() + at, kPage) != 0) n++;
    return n;
  }

  std::shared_ptr<const DirtyLog> driver_log;
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

void run(Worker::Mode mode, uint32_t bytes, int rounds, uint64_t seed) {
  check::Random random(seed);
  auto here = new_memory(), there = new_memory();
  Guest guest(*here);
  Receiver receiver(mode, bytes);
  Migrator migrator;
  receiver.attach(*here, guest, 0, 0, nullptr);
  guest.start();
  for (int round = 0; round < rounds && !check::failing(); round++) {
    // It works here, whatever happened before.
    const uint64_t in = guest.received + 100, out = guest.sent + 100;
    for (int waited = 0; waited < 10000 && (guest.received < in || guest.sent < out); waited++) pause_us(500);
    CHECK(guest.received >= in);
    CHECK(guest.sent >= out);

    receiver.set_log(migrator.driver_log);
    migrator.all_dirty();
    for (uint64_t passes = 1 + random.below(4); passes > 0; passes--) {
      migrator.pass(*here, *there);
      pause_us(random.below(1500));
    }
    if (random.below(4) == 0) {  // cancelled
      receiver.set_log(nullptr);
      continue;
    }
    if (random.below(4) == 0) {  // the peer's front-end came back in the middle: the log is on from the start
      receiver.detach();
      const uint16_t transmit = receiver.queue->next_avail(true), receive = receiver.queue->next_avail(false);
      receiver.attach(*here, guest, transmit, receive, migrator.driver_log);
      migrator.pass(*here, *there);
      pause_us(random.below(1000));
    }
    guest.stop();
    pause_us(random.below(300));  // the driver goes on until it is told
    receiver.detach();
    migrator.guest_wrote();
    migrator.pass(*here, *there);
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

TEST("migration: the copy has every page as it was, and nothing that the rings accepted is lost, when polling") {
  run(Worker::Mode::kPoll, 200, migrations(), 1);
}

TEST("migration: the same when the worker sleeps between bursts") { run(Worker::Mode::kInterrupt, 100, migrations(), 2); }

TEST("migration: the same for frames over several merged buffers") {
  run(Worker::Mode::kAdaptive, 5000, migrations(), 3);
}

}  // namespace vpci::test
