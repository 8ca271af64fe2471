// Eventfds that another process has too. It can take O_NONBLOCK back, fill the counter or empty it at any moment, so that a
// write(2) or read(2) may wait for it, whatever poll(2) said before. These two never wait.
#pragma once

#include <cstdint>

namespace vpci {

// Takes what was signalled: true when the counter was above 0, false too for what is no eventfd.
bool take_eventfd(int fd);

// Signals `fd`, also with a full counter. False when it is no eventfd or the system has no such way.
bool signal_foreign_eventfd(int fd);

// True when both can be done without waiting: Linux 5.12 with asynchronous I/O.
bool foreign_eventfds_supported();

}  // namespace vpci
