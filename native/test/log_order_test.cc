// When each bit of the dirty log is set, against the worst that a migration can do: every store into the bitmap is
// trapped and executed as a single step, and right after it the bit is taken and its page copied. Before each such
// store, whatever the used rings tell the driver is in the copy already; after each call, every page that was written.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)  // steps with the trap flag, in signal handlers
#include <ucontext.h>

#include <csignal>
#include <functional>
#include <span>

#include "packed_fixture.h"
#include "peer_fixture.h"

using namespace vpci;
using namespace vpci::test;
using namespace vpci::test::peer;

namespace {

constexpr uint64_t kPage = 4096;

// A copy of the memory that is kept by the bits of the log alone. One at a time.
class Migration {
 public:
  Migration(const Memory& memory, std::function<void(const Migration&)> before_store)
      : memory_(memory), before_store_(std::move(before_store)) {
    current = this;
    struct sigaction action = {};
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = on_store;
    ::sigaction(SIGSEGV, &action, &segv_);
    action.sa_sigaction = on_step;
    ::sigaction(SIGTRAP, &action, &trap_);
    protect(PROT_READ);
  }
  ~Migration() {
    protect(PROT_READ | PROT_WRITE);
    ::sigaction(SIGSEGV, &segv_, nullptr);
    ::sigaction(SIGTRAP, &trap_, nullptr);
  }
  std::shared_ptr<const DirtyLog> log(DirtyLog::Writers writers) const {
    return DirtyLog::create(bitmap_.mapping, 0, kBytes / kPage / 8, nullptr, writers);
  }
  void copy_all() { copy_.assign(memory_.mapping->data(), memory_.mapping->data() + kBytes); }
  // `length` bytes at a guest address are in the copy as they are in the memory.
  bool has(uint64_t address, uint64_t length) const {
    while (length > 0) {
      const RegionTable::Span span = memory_.table->translate(address);
      const uint64_t part = std::min(length, span.length);
      const size_t at = static_cast<size_t>(span.data - memory_.mapping->data());
      if (std::memcmp(span.data, copy_.data() + at, part) != 0) return false;
      address += part;
      length -= part;
    }
    return true;
  }
  bool complete() const { return std::memcmp(copy_.data(), memory_.mapping->data(), kBytes) == 0; }
  uint64_t stores = 0;

 private:
  static inline Migration* current;
  static constexpr greg_t kTrapFlag = 0x100;

  static void on_store(int, siginfo_t* info, void* context) {
    uint8_t* const page = current->bitmap_.mapping->data();
    const uint8_t* const at = static_cast<uint8_t*>(info->si_addr);
    if (at < page || at >= page + kPage) ::abort();
    current->before_store_(*current);
    current->stores++;
    current->protect(PROT_READ | PROT_WRITE);
    static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] |= kTrapFlag;
  }
  static void on_step(int, siginfo_t*, void* context) {
    static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] &= ~kTrapFlag;
    current->take();
    current->protect(PROT_READ);
  }
  void take() {
    uint8_t* const bits = bitmap_.mapping->data();
    for (uint64_t page = 0; page < kBytes / kPage; page++) {
      if (!(bits[page / 8] >> page % 8 & 1)) continue;
      std::memcpy(copy_.data() + page * kPage, memory_.mapping->data() + page * kPage, kPage);
      bits[page / 8] &= static_cast<uint8_t>(~(1u << page % 8));
    }
  }
  void protect(int access) { CHECK_EQ(::mprotect(bitmap_.mapping->data(), kPage, access), 0); }

  const Memory& memory_;
  const std::function<void(const Migration&)> before_store_;
  Memory bitmap_{kPage, 0};
  std::vector<uint8_t> copy_;
  struct sigaction segv_, trap_;
};

// A chain of buffers that the device was given, and what it says of it.
bool buffers_copied(const Migration& migration, std::span<const VirtqDesc> chain, uint64_t written) {
  for (const VirtqDesc& d : chain) {
    const uint64_t part = std::min<uint64_t>(written, d.len);
    if (!migration.has(d.addr, part)) return false;
    written -= part;
  }
  return true;
}

// A ring of the peer, of either format, of which each chain is given to the device once.
struct Split {
  static constexpr uint64_t kFeature = 0;
  RawRing ring;
  uint16_t start;
  uint32_t next = 0;
  std::vector<std::vector<VirtqDesc>> chains;  // by their first descriptor
  Split(const Memory& m, uint64_t address, uint32_t size, check::Random& r)
      : ring(m, address, size), start(static_cast<uint16_t>(r.next())), chains(size) {
    ring.start(start);
  }
  bool offer(const std::vector<VirtqDesc>& chain) {
    const uint32_t n = static_cast<uint32_t>(chain.size());
    if (next + n > ring.at.size) return false;
    for (uint32_t k = 0; k < n; k++) {
      const bool last = k + 1 == n;
      ring.desc(next + k) = {chain[k].addr, chain[k].len, static_cast<uint16_t>(chain[k].flags | (last ? 0 : kDescNext)),
                             static_cast<uint16_t>(last ? 0 : next + k + 1)};
    }
    chains[next] = chain;
    ring.offer(static_cast<uint16_t>(next));
    next += n;
    return true;
  }
  // Elements and buffers that the index tells of.
  bool published_is_copied(const Migration& migration) const {
    for (uint16_t i = start; i != ring.used().idx; i++) {
      const VirtqUsedElem used = ring.used_at(i);
      if (!migration.has(ring.at.device + 4 + 8ull * (i % ring.at.size), sizeof used)) return false;
      if (!buffers_copied(migration, chains[used.id], used.len)) return false;
    }
    return true;
  }
};

struct Packed {
  static constexpr uint64_t kFeature = kFeaturePacked;
  RawPacked ring;
  uint16_t start;
  uint32_t next = 0;
  std::vector<std::pair<Position, std::vector<VirtqDesc>>> chains;
  Packed(const Memory& m, uint64_t address, uint32_t size, check::Random& r)
      : ring(m, address, size), start(static_cast<Position>(r.below(size) | (r.below(2) ? kPositionWrap : 0))) {
    ring.start(start);
  }
  bool offer(const std::vector<VirtqDesc>& chain) {
    const uint32_t n = static_cast<uint32_t>(chain.size());
    if (next + n > ring.at.size) return false;
    chains.emplace_back(ring.avail, chain);
    ring.offer(static_cast<uint16_t>(next), chain);
    next += n;
    return true;
  }
  // Buffers that the flags tell of.
  bool published_is_copied(const Migration& migration) const {
    for (const auto& [at, chain] : chains) {
      const PackedDesc& d = ring.desc(offset_of(at));
      if (is_used(d.flags, wrap_of(at)) && !buffers_copied(migration, chain, d.len)) return false;
    }
    return true;
  }
};

// A frame that its source writes into a room itself: delivered, dropped, or none after all. The bytes are there before
// the queue hears of it.
bool straight(PeerQueue& q, check::Random& r) {
  iovec pieces[64];
  const uint32_t bytes = 60 + static_cast<uint32_t>(r.below(9000));
  const uint32_t n = q.room(pieces, 64, bytes);
  if (n == 0 || r.below(8) == 0) return false;
  uint32_t length = 0;
  for (uint32_t i = 0; i < n && (i == 0 || r.below(4)); i++) {
    fill(static_cast<uint8_t*>(pieces[i].iov_base), static_cast<uint32_t>(pieces[i].iov_len), r.next());
    length += static_cast<uint32_t>(pieces[i].iov_len);
  }
  NetHeader header;
  if (r.below(4) == 0) header = {kHdrNeedsCsum, r.below(2) ? kGsoTcp4 : kGsoNone, 54, 100, 14, 6, 0};
  q.place(header, r.below(8) ? length : 0);
  return true;
}

template <class Ring>
void run(uint64_t seed) {
  check::Random r(seed);
  uint64_t packets = 0, stores = 0, straights = 0;
  for (int round = 0; round < 150 && !check::failing(); round++) {
    // Two regions that lie the other way round in the file.
    Memory m(kBytes, kBase, {{kBase, kBytes / 2, kBytes / 2}, {kBase + kBytes / 2, kBytes / 2, 0}});
    const uint32_t size = 16u << r.below(7);
    Ring tx(m, kBase, size, r), rx(m, kBase + 0x20000, size, r);
    PeerQueueOptions o;
    o.table = m.table;
    o.features = kFeatureVersion1 | kNetCsum | Ring::kFeature | (r.below(3) ? kNetMrgRxbuf : 0) |
                 (r.below(2) ? kFeatureEventIdx : 0) | (r.below(2) ? kNetGuestCsum : 0);
    o.transmit.emplace().ring = tx.ring.at;
    o.transmit->next_avail = tx.start;
    o.receive.emplace().ring = rx.ring.at;
    o.receive->next_avail = rx.start;
    std::string error;
    const auto q = PeerQueue::create(o, &error);
    if (!q) return check::fail(__FILE__, __LINE__, error.c_str());

    bool early = false;
    Migration migration(m, [&](const Migration& copy) {
      early = early || !tx.published_is_copied(copy) || !rx.published_is_copied(copy);
    });
    migration.copy_all();
    q->set_dirty_log(migration.log(r.below(2) ? DirtyLog::Writers::kOne : DirtyLog::Writers::kSeveral));
    Burst received{256};
    uint64_t data = kData + r.below(0x40000);
    for (int step = 0; step < 20 && !check::failing(); step++) {
      for (uint64_t n = r.below(60); n > 0; n--) {
        std::vector<VirtqDesc> chain;
        for (uint64_t k = 1 + r.below(3); k > 0; k--) {
          // Some too short for a header, a few that the device may not write.
          const uint64_t most = r.below(6) == 0 ? 40 : r.below(3) ? 2000 : 9000;
          chain.push_back({data, 1 + static_cast<uint32_t>(r.below(most)),
                           static_cast<uint16_t>(r.below(1000) ? kDescWrite : 0), 0});
          data += chain.back().len + r.below(64);
        }
        if (data > kBase + kBytes - 0x20000 || !rx.offer(chain)) break;
      }
      for (uint64_t n = r.below(40); n > 0; n--)
        tx.offer({{kBase + kBytes - 0x10000 + r.below(0x8000), 12 + static_cast<uint32_t>(r.below(200)), 0, 0}});
      Frames frames;
      for (uint64_t n = r.below(65); n > 0; n--) {
        NetHeader header;
        if (r.below(5) == 0) header = {kHdrNeedsCsum, 0, 0, 0, 14, 6, 0};
        frames.add(60 + static_cast<uint32_t>(r.below(r.below(4) ? 1500 : 9000)), r.next(), header);
      }
      migration.copy_all();  // the peer's own writes are not ours to log
      switch (r.below(10)) {
        case 0: q->arm(r.below(2)); break;
        case 1: q->disarm(r.below(2)); break;
        case 2: q->detached(); received.clear(); break;
        case 3: q->set_enabled(r.below(3), r.below(5)); q->flush(); break;
        case 4: if (received.empty()) q->receive(received); break;
        case 5: q->release(received, static_cast<uint32_t>(r.below(20))); break;
        case 6:
        case 7: straights += straight(*q, r); break;
        default: packets += q->send(frames.burst);
      }
      CHECK(!early);
      CHECK(migration.complete());
    }
    stores += migration.stores;
  }
  CHECK(packets > 1000 && stores > 1000 && straights > 50);
}

// A burst of frames whose bits do not all find room to wait.
template <class Ring>
void run_long(uint64_t seed) {
  check::Random r(seed);
  Memory m(kBytes, kBase);
  Ring rx(m, kBase + 0x20000, 128, r);
  PeerQueueOptions o;
  o.table = m.table;
  o.features = kFeatureVersion1 | Ring::kFeature | kNetMrgRxbuf;
  o.receive.emplace().ring = rx.ring.at;
  o.receive->next_avail = rx.start;
  std::string error;
  const auto q = PeerQueue::create(o, &error);
  if (!q) return check::fail(__FILE__, __LINE__, error.c_str());
  bool early = false;
  Migration migration(m, [&](const Migration& copy) { early = early || !rx.published_is_copied(copy); });
  Frames frames;
  for (uint32_t i = 0; i < Burst::kMax; i++) {
    // They overlap: only the first and last pages of each are its own, more or less.
    CHECK(rx.offer({{kData + (i % 2 ? 0 : 0x80000) + 0x1f40ull * (i / 2), 65550, kDescWrite, 0}}));
    frames.add(60000 + i, r.next());
  }
  migration.copy_all();
  q->set_dirty_log(migration.log(DirtyLog::Writers::kOne));
  CHECK_EQ(q->send(frames.burst), Burst::kMax);
  CHECK(!early);
  CHECK(migration.complete());
}

}  // namespace

TEST("so it is with long frames, whose bits do not all find room") {
  run_long<Split>(3);
  run_long<Packed>(4);
}

TEST("what a split ring tells its driver was logged before, and every write by the end of the call") { run<Split>(1); }

TEST("what a packed ring tells its driver was logged before, and every write by the end of the call") { run<Packed>(2); }

#endif
