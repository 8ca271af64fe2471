// Both sides of control queues: the driver twin against the device, and each against a hostile other side.
#include "../core/control_queue.h"
#include "fixture.h"

using namespace vpci;
using namespace vpci::test;

namespace {
constexpr uint64_t kBase = 0x40000000;

struct Twin {
  Memory m;
  std::unique_ptr<ControlDriver> driver;
  std::unique_ptr<ControlDevice> device;
  Twin(uint32_t size, uint32_t buffer, uint32_t limit = ControlDevice::kDefaultLimit)
      : m(ControlDriver::bytes(size, buffer) + 64, kBase) {
    std::string error;
    driver = ControlDriver::create(m.mapping, 64, kBase + 64, size, buffer, &error);
    if (!driver) check::fail(__FILE__, __LINE__, error.c_str());
    device = ControlDevice::create(m.table, driver->addresses(), limit, &error);
    if (!device) check::fail(__FILE__, __LINE__, error.c_str());
  }
};
}  // namespace

TEST("what one side of a control queue puts in comes out at the other, in any order of completion") {
  for (uint32_t size : {1u, 2u, 64u, 256u}) {
    Twin t(size, 512);
    check::Random r(size);
    struct Held {
      uint16_t head;
      uint32_t writable;
    };
    std::vector<Held> held;
    std::vector<std::vector<uint8_t>> offered, harvested_model;
    uint32_t in_use = 0;
    std::vector<uint8_t> data;
    for (int i = 0; i < 4000; i++) {
      switch (r.below(5)) {
        case 0: {
          std::vector<uint8_t> message(1 + r.below(512));
          fill(message.data(), static_cast<uint32_t>(message.size()), r.next());
          bool ok = t.driver->add_readable(message.data(), message.size()) == ControlDriver::Add::kDone;
          CHECK_EQ(ok, in_use < size);
          if (ok) in_use++, offered.push_back(message);
          break;
        }
        case 1: {
          bool ok = t.driver->add_writable() == ControlDriver::Add::kDone;
          CHECK_EQ(ok, in_use < size);
          if (ok) in_use++, offered.push_back({});
          break;
        }
        case 2: {
          uint16_t head;
          uint32_t writable;
          auto got = t.device->pop(&head, &data, &writable);
          CHECK(got == (offered.empty() ? ControlDevice::Pop::kNone : ControlDevice::Pop::kChain));
          if (offered.empty()) break;
          CHECK(data == offered.front());
          CHECK_EQ(writable, data.empty() ? 512 : 0);
          offered.erase(offered.begin());
          held.push_back({head, writable});
          break;
        }
        case 3: {
          if (held.empty()) break;
          size_t k = r.below(held.size());
          std::vector<uint8_t> answer(held[k].writable ? r.below(held[k].writable + 1) : 0);
          fill(answer.data(), static_cast<uint32_t>(answer.size()), r.next());
          answer.resize(answer.size() + 1);  // so that data() is not null
          size_t length = answer.size() - 1;
          CHECK(t.device->push(held[k].head, answer.data(), held[k].writable + 1) ==
                ControlDevice::Push::kTooLong);
          CHECK(t.device->push(held[k].head, answer.data(), length) == ControlDevice::Push::kDone);
          CHECK(t.device->push(held[k].head, answer.data(), 0) == ControlDevice::Push::kNotPopped);
          answer.pop_back();
          harvested_model.push_back(answer);
          held.erase(held.begin() + static_cast<ptrdiff_t>(k));
          CHECK(t.device->needs_interrupt());
          CHECK(!t.device->needs_interrupt());
          break;
        }
        case 4: {
          auto got = t.driver->harvest(&data);
          CHECK(got ==
                (harvested_model.empty() ? ControlDriver::Harvest::kNone : ControlDriver::Harvest::kBuffer));
          if (harvested_model.empty()) break;
          CHECK(data == harvested_model.front());
          harvested_model.erase(harvested_model.begin());
          in_use--;
          break;
        }
      }
      if (check::failing()) return;
    }
  }
}

TEST("a control device refuses malformed rings, chains over the limit and chains offered twice") {
  struct Row {
    void (*write)(RawRing& r);
    const char* cause;
  };
  for (const Row& row : {
           Row{[](RawRing& r) { r.offer(9); }, "head is outside"},
           Row{[](RawRing& r) { r.avail().idx = 9; }, "available index"},
           Row{[](RawRing& r) {
                 r.desc(0) = {0, 8, 0, 0};
                 r.offer(0);
               },
               "no region"},
           Row{[](RawRing& r) {
                 r.desc(0) = {kBase + 0x8000, 16, kDescIndirect, 0};
                 r.offer(0);
               },
               "without the feature"},
           Row{[](RawRing& r) {
                 r.desc(0) = {kBase + 0x8000, 1025, 0, 0};
                 r.offer(0);
               },
               "limit"},
           Row{[](RawRing& r) {
                 r.desc(0) = {kBase + 0x8000, 1000, kDescNext, 1};
                 r.desc(1) = {kBase, 25, kDescWrite, 0};
                 r.offer(0);
               },
               "limit"},
       }) {
    Memory m(1 << 16, kBase);
    RawRing ring(m, kBase, 8);
    row.write(ring);
    std::string error;
    auto device = ControlDevice::create(m.table, ring.at, 1024, &error);
    uint16_t head;
    uint32_t writable;
    std::vector<uint8_t> data;
    CHECK(device->pop(&head, &data, &writable) == ControlDevice::Pop::kBroken);
    CHECK_TEXT(device->broken(), row.cause);
    CHECK(device->pop(&head, &data, &writable) == ControlDevice::Pop::kBroken);
    CHECK(device->push(0, nullptr, 0) == ControlDevice::Push::kBroken);
    CHECK(!device->needs_interrupt());
  }
  Memory m(1 << 16, kBase);
  RawRing ring(m, kBase, 8);
  ring.desc(0) = {kBase + 0x8000, 8, 0, 0};
  ring.offer(0);
  ring.offer(0);
  std::string error;
  auto device = ControlDevice::create(m.table, ring.at, 1024, &error);
  uint16_t head;
  uint32_t writable;
  std::vector<uint8_t> data;
  CHECK(device->pop(&head, &data, &writable) == ControlDevice::Pop::kChain);
  CHECK(device->pop(&head, &data, &writable) == ControlDevice::Pop::kBroken);
  CHECK_TEXT(device->broken(), "while the device has it");
  CHECK(!ControlDevice::create(m.table, ring.at, 0, &error));
  CHECK(!ControlDevice::create(m.table, {8, kBase + 1, 0, 0}, 1024, &error));
}

TEST("a control driver refuses used elements that it never offered and lengths beyond its buffer") {
  struct Row {
    uint16_t idx;
    VirtqUsedElem e;
    const char* cause;
  };
  for (const Row& row :
       {Row{2, {0, 0}, "used index"}, Row{0xffff, {0, 0}, "used index"}, Row{1, {8, 0}, "does not have"},
        Row{1, {1, 0}, "does not have"}, Row{1, {0xffffffff, 0}, "does not have"},
        Row{1, {0, 513}, "used length"}, Row{1, {0, 0xffffffff}, "used length"}}) {
    Twin t(8, 512);
    t.driver->add_writable();
    VirtqUsed& used = t.m.ref<VirtqUsed>(t.driver->addresses().device);
    used.ring[0] = row.e;
    used.idx = row.idx;
    std::vector<uint8_t> data;
    CHECK(t.driver->harvest(&data) == ControlDriver::Harvest::kBroken);
    CHECK_TEXT(t.driver->broken(), row.cause);
    CHECK(t.driver->add_writable() == ControlDriver::Add::kBroken);
    CHECK(data.empty() || row.e.len <= 512);
  }
}

TEST("control queues survive memory that vanishes") {
  Twin t(8, 512);
  std::vector<uint8_t> data = {1};
  t.driver->add_readable(data.data(), 1);
  t.driver->add_writable();
  uint16_t head;
  uint32_t writable;
  CHECK(t.device->pop(&head, &data, &writable) == ControlDevice::Pop::kChain);
  CHECK_EQ(::ftruncate(t.m.fd, 0), 0);
  CHECK(t.device->pop(&head, &data, &writable) == ControlDevice::Pop::kBroken);
  CHECK_TEXT(t.device->broken(), "vanished");
  CHECK(t.driver->harvest(&data) == ControlDriver::Harvest::kBroken);
  CHECK_TEXT(t.driver->broken(), "vanished");
}

TEST(
    "a control device goes on in another table, and gives up when the rings are not there or chains are "
    "out") {
  Twin t(8, 512);
  std::string error;
  uint16_t head;
  uint32_t writable;
  std::vector<uint8_t> data = {1, 2, 3};
  for (int i = 0; i < 20; i++) {
    t.driver->add_readable(data.data(), data.size());
    CHECK(t.device->pop(&head, &data, &writable) == ControlDevice::Pop::kChain);
    CHECK_EQ(data.size(), 3);
    CHECK(t.device->push(head, nullptr, 0) == ControlDevice::Push::kDone);
    bool asked = i % 2 && t.device->needs_interrupt();
    CHECK_EQ(asked, i % 2);
    auto table = RegionTable::create({{kBase, t.m.mapping->size(), t.m.mapping, 0}}, &error);
    CHECK(t.device->set_table(table, &error));
    // What was pushed before is still to be signalled, once.
    CHECK_EQ(t.device->needs_interrupt(), !asked);
    CHECK(!t.device->needs_interrupt());
    std::vector<uint8_t> back;
    CHECK(t.driver->harvest(&back) == ControlDriver::Harvest::kBuffer);
  }
  auto elsewhere = RegionTable::create({{kBase + 0x1000000, t.m.mapping->size(), t.m.mapping, 0}}, &error);
  CHECK(!t.device->set_table(elsewhere, &error));
  CHECK_TEXT(error.c_str(), "not inside one region");
  CHECK_TEXT(t.device->broken(), "not in the memory");
  CHECK(!t.device->set_table(t.m.table, &error));
  CHECK(t.device->pop(&head, &data, &writable) == ControlDevice::Pop::kBroken);

  Twin out(8, 512);
  out.driver->add_writable();
  CHECK(out.device->pop(&head, &data, &writable) == ControlDevice::Pop::kChain);
  CHECK(!out.device->set_table(out.m.table, &error));
  CHECK_TEXT(error.c_str(), "had chains");
}

TEST("messages of no byte or more than a buffer are refused, and so are impossible options") {
  Twin t(8, 512);
  std::vector<uint8_t> data(513);
  CHECK(t.driver->add_readable(data.data(), 0) == ControlDriver::Add::kTooLong);
  CHECK(t.driver->add_readable(data.data(), 513) == ControlDriver::Add::kTooLong);
  CHECK(t.driver->needs_notify() == false);
  t.driver->add_writable();
  CHECK(t.driver->needs_notify() == true);
  CHECK_EQ(ControlDriver::bytes(3, 64), 0);
  CHECK_EQ(ControlDriver::bytes(8, 0), 0);
  std::string error;
  CHECK(!ControlDriver::create(t.m.mapping, 1 << 20, 0, 8, 512, &error));
  CHECK(!ControlDriver::create(t.m.mapping, 1, 0, 8, 512, &error));
  CHECK(!ControlDriver::create(t.m.mapping, 0, UINT64_MAX - 63, 8, 512, &error));
  CHECK(!ControlDriver::create(nullptr, 0, 0, 8, 512, &error));
}
