// The SIGBUS guard: which address ranges are mappings of ours, in a table that a signal handler can read.
// Knows how to make a vanished file harmless, not what it means.
#pragma once

#include "mapping.h"

namespace vpci {

struct GuardSlots {
  // Installs the handler on first use. False when the table is full.
  static bool add(Mapping* mapping);
  // After this the handler does not know the range any more.
  static void remove(Mapping* mapping);
  // Called by the handler: true when `address` was in a mapping, which is backed by zero pages now.
  static bool cover(const void* address);
};

}  // namespace vpci
