// What no driver may offer, whatever the format of the ring: rows for the tests of both formats, and the check of what
// a ring makes of them.
#pragma once

#include "fixture.h"

namespace vpci::test::malformed {

using namespace region;

constexpr uint64_t kTable = kBase + 0x30000;

// Flags lack NEXT, which each format has in its own way, and WRITE, which a receiveq's chain has on every descriptor.
struct Chain {
  const char* name;
  std::vector<VirtqDesc> descriptors;
  const char* cause;
  std::vector<VirtqDesc> table = {};  // what is at kTable
  bool indirect = true;               // the feature is negotiated
};

// For a ring of 8.
inline const std::vector<Chain> kChains = {
    {"no region", {{0x1000, 100, 0, 0}}, "no region"},
    {"behind the region", {{kBase + kBytes - 50, 100, 0, 0}}, "no region"},
    {"one byte behind", {{kBase + kBytes - 99, 100, 0, 0}}, "no region"},
    {"wrap", {{UINT64_MAX - 10, 100, 0, 0}}, "wraps"},
    {"wrap from inside", {{kData, 0xffffffff, 0, 0}}, "no region"},
    {"zero length", {{kData, 0, 0, 0}}, "zero length"},
    {"zero length first", {{kData, 0, 0, 0}, {kData, 100, 0, 0}}, "zero length"},
    {"zero length last", {{kData, 100, 0, 0}, {kData, 0, 0, 0}}, "zero length"},
    {"indirect without feature",
     {{kTable, 16, kDescIndirect, 0}},
     "without the feature",
     {{kData, 100, 0, 0}},
     false},
    {"indirect with next",
     {{kTable, 16, kDescIndirect, 0}, {kData, 100, 0, 0}},
     "indirect descriptor with NEXT",
     {{kData, 100, 0, 0}}},
    {"indirect empty", {{kTable, 0, kDescIndirect, 0}}, "indirect table"},
    {"indirect odd", {{kTable, 24, kDescIndirect, 0}}, "indirect table"},
    {"indirect huge", {{kTable, 16 * 32769, kDescIndirect, 0}}, "too big"},
    {"indirect nowhere", {{0x20, 16, kDescIndirect, 0}}, "indirect table is in no region"},
    {"indirect wraps", {{UINT64_MAX - 8, 16, kDescIndirect, 0}}, "indirect table wraps"},
    {"indirect longer than the ring",
     {{kTable, 9 * 16, kDescIndirect, 0}},
     "longer than the ring",
     std::vector<VirtqDesc>(9, {kData, 32, 0, 0})},
    {"indirect zero length", {{kTable, 16, kDescIndirect, 0}}, "zero length", {{kData, 0, 0, 0}}},
    {"indirect zero length last",
     {{kTable, 32, kDescIndirect, 0}},
     "zero length",
     {{kData, 20, 0, 0}, {kData, 0, 0, 0}}},
};

// Chains of two descriptors, of 64 and 2048 bytes, with flags of their own.
struct Direction {
  bool transmit;
  uint16_t first, second;
  const char* cause;
};
constexpr Direction kDirections[] = {
    {true, kDescWrite, 0, "writable descriptor in a transmitq"},
    {true, 0, kDescWrite, "writable descriptor in a transmitq"},
    {false, 0, kDescWrite, "readable descriptor in a receiveq"},
    {false, kDescWrite, 0, "readable descriptor behind a writable one"},
};

// The side of the ring is broken by `cause`, the other one is not.
inline void check_broken(const PeerQueue& q, bool transmit, const char* row, const char* cause) {
  const char* broken = q.broken(!transmit);
  if (!broken || !std::strstr(broken, cause)) {
    std::fprintf(stderr, "  row '%s' (%s): %s\n", row, transmit ? "transmitq" : "receiveq",
                 broken ? broken : "not broken");
    check::failures()++;
  }
  CHECK(q.broken(transmit) == nullptr);
}

}  // namespace vpci::test::malformed
