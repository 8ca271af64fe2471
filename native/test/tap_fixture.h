// What stands in for a TAP device in tests.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../core/tap_queue.h"
#include "check.h"

namespace vpci::test {

// A tun fd is a packet device: a datagram socket stands in for it, header and all.
struct FakeTap {
  int fds[2] = {-1, -1};
  FakeTap() { CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0); }
  ~FakeTap() {
    close(fds[0]);
    if (fds[1] >= 0) close(fds[1]);
  }
  // The kernel has a frame. Two of the longest have room.
  void give(NetHeader header, const std::vector<uint8_t>& frame) const {
    const iovec parts[] = {{&header, sizeof header}, {const_cast<uint8_t*>(frame.data()), frame.size()}};
    CHECK_EQ(writev(fds[1], parts, 2), sizeof header + frame.size());
  }
};

}  // namespace vpci::test
