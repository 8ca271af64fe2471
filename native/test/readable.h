// Whether a descriptor has something to read.
#pragma once

#include <poll.h>

namespace vpci::test {

// At once, or within a time.
inline bool readable(int fd, int timeout_ms = 0) {
  pollfd p{fd, POLLIN, 0};
  return poll(&p, 1, timeout_ms) == 1;
}

}  // namespace vpci::test
