#include "tap_queue.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "frame_copy.h"

namespace vpci {
namespace {

constexpr uint32_t kHeaderBytes = sizeof(NetHeader);
// With offload a frame has up to 64 KiB behind its Ethernet header. One byte more tells what did not fit.
constexpr uint32_t kSlotBytes = kDefaultMaxFrame + 1;
// A burst ends when it has this many bytes: what was read is still in the CPU's own cache when it is copied on, and the
// other lanes have their turn.
constexpr size_t kBurstBytes = 128 << 10;
constexpr size_t kLine = 64;
// From this length on it pays to look for room at the destination first.
constexpr uint32_t kLongFrame = 8 << 10;
constexpr uint32_t kPieces = 64;  // more in one packet are rare; IOV_MAX is 1024
static_assert(kPieces + 2 <= IOV_MAX);

}  // namespace

std::shared_ptr<TapQueue> TapQueue::create(int fd, uint32_t max_frame) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return nullptr;
  std::shared_ptr<TapQueue> queue(new TapQueue(max_frame));
  if (!queue->fd_.duplicate(fd, nullptr)) return nullptr;
  queue->writable_ = epoll_create1(EPOLL_CLOEXEC);
  if (queue->writable_ < 0) return nullptr;
  epoll_event event{};
  event.events = EPOLLOUT;
  if (epoll_ctl(queue->writable_, EPOLL_CTL_ADD, queue->fd_.get(), &event) != 0) return nullptr;
  return queue;
}

TapQueue::TapQueue(uint32_t max_frame)
    : max_frame_(max_frame), memory_(kBurstBytes + kSlotBytes), linear_(kDefaultMaxFrame) {}

TapQueue::~TapQueue() {
  if (writable_ >= 0) close(writable_);
}

// One packet from the kernel into `parts`, of which the first is the header's. It is taken also when it is dropped.
TapQueue::Read TapQueue::read_frame(const iovec* parts, uint32_t count, NetHeader* header, uint32_t* length) {
  ssize_t n;
  do {
    n = readv(fd_.get(), parts, static_cast<int>(count));
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return Read::kNothing;
  long_frames_ = n >= static_cast<ssize_t>(kHeaderBytes + kLongFrame);
  if (n < 0) {
    // EINVAL: the kernel has a packet that it cannot describe. EFAULT: a room whose file was cut off, which a system
    // call tells so and not by SIGBUS; the packet is lost, and send, whose turn it is now, meets the hole by itself.
    // Others say that the device has gone (EBADFD).
    if (errno == EINVAL)
      receive_stats.drop(Drop::kBadHeader);
    else if (errno == EFAULT)
      receive_stats.drop(Drop::kDeviceError);
    else
      set_broken(false, "the TAP device is gone");
    return Read::kFailed;
  }
  if (n < static_cast<ssize_t>(kHeaderBytes + kMinFrame)) {
    receive_stats.drop(Drop::kTooShort);
    return n == 0 ? Read::kFailed : Read::kDropped;
  }
  *length = static_cast<uint32_t>(n) - kHeaderBytes;
  if (*length > max_frame_) {
    receive_stats.drop(Drop::kTooLong);
    return Read::kDropped;
  }
  header->num_buffers = 0;
  // What is behind the kernel may be another guest: its headers are checked as well.
  if (!check_from_device(header, *length, ~uint64_t{0})) {
    receive_stats.drop(Drop::kBadHeader);
    return Read::kDropped;
  }
  return Read::kFrame;
}

uint32_t TapQueue::receive(Burst& burst) {
  burst.clear();
  uint64_t bytes = 0;
  // Each turn takes a packet from the kernel, also when it is dropped: a flood of bad ones does not stop the
  // lanes.
  size_t filled = 0;
  for (uint32_t turn = 0; turn < Burst::kMax && filled < kBurstBytes; turn++) {
    uint8_t* const slot = memory_.data() + filled;
    Packet& packet = burst.packets[burst.end];
    const iovec parts[] = {{&packet.header, kHeaderBytes}, {slot, kSlotBytes}};
    uint32_t length = 0;
    const Read read = read_frame(parts, 2, &packet.header, &length);
    if (read == Read::kNothing || read == Read::kFailed) break;
    if (read == Read::kDropped) continue;
    packet.first = {slot, length};
    packet.length = length;
    packet.segments = 1;
    packet.more = 0;
    burst.end++;
    bytes += length;
    filled = (filled + length + kLine - 1) & ~(kLine - 1);
  }
  count_received(burst.end, bytes);
  return burst.end;
}

// Only while frames are long: a short one is copied sooner than a room for the longest is found.
PortQueue::Straight TapQueue::receive_into(PortQueue& to) {
  Straight result = Straight::kNo;
  uint32_t frames = 0;
  uint64_t bytes = 0;
  for (uint32_t turn = 0; turn < Burst::kMax && bytes < kBurstBytes && long_frames_; turn++) {
    NetHeader header;
    uint8_t beyond;  // tells what did not fit
    iovec parts[kPieces + 2];
    const uint32_t pieces = to.room(parts + 1, kPieces, max_frame_);
    if (pieces == 0) break;
    parts[0] = {&header, kHeaderBytes};
    parts[pieces + 1] = {&beyond, 1};
    uint32_t length = 0;
    const Read read = read_frame(parts, pieces + 2, &header, &length);
    if (read == Read::kNothing) {
      if (turn == 0) result = Straight::kNothing;
      break;
    }
    result = Straight::kMoved;
    if (read == Read::kFrame) {
      to.place(header, length);
      frames++;
      bytes += length;
    } else {
      to.place({}, 0);
    }
  }
  count_received(frames, bytes);
  return result;
}

void TapQueue::count_received(uint32_t frames, uint64_t bytes) {
  receive_stats.packets.add(frames);
  receive_stats.bytes.add(bytes);
  receive_stats.burst(frames);
}

// 0 or errno.
int TapQueue::write_packet(const Burst& burst, const Packet& packet) {
  NetHeader header = packet.header;
  header.num_buffers = 0;
  iovec parts[kPieces + 1];
  parts[0] = {&header, kHeaderBytes};
  int count = 2;
  if (packet.segments <= kPieces) {
    parts[1] = {packet.first.data, packet.first.length};
    for (uint32_t i = 1; i < packet.segments; i++) {
      const Segment& segment = burst.extra[packet.more + i - 1];
      parts[count++] = {segment.data, segment.length};
    }
  } else {
    copy_packet(linear_.data(), burst, packet);
    parts[1] = {linear_.data(), packet.length};
  }
  ssize_t n;
  do {
    n = writev(fd_.get(), parts, count);
  } while (n < 0 && errno == EINTR);
  return n < 0 ? errno : 0;
}

uint32_t TapQueue::send(const Burst& burst) {
  if (broken(true)) return 0;
  uint64_t packets = 0;
  uint64_t bytes = 0;
  uint32_t i = burst.begin;
  for (; i < burst.end; i++) {
    const Packet& packet = burst.packets[i];
    if (packet.length > max_frame_ || packet.length > kDefaultMaxFrame) {
      send_stats.drop(Drop::kTooLong);
      continue;
    }
    if (packet.length < kMinFrame) {
      send_stats.drop(Drop::kTooShort);
      continue;
    }
    const int failed = write_packet(burst, packet);
    if (failed == EAGAIN) break;  // the queue of the socket is full
    if (failed == EBADFD) {
      set_broken(true, "the TAP device is gone");
      break;
    }
    if (failed) {
      send_stats.drop(Drop::kDeviceError);  // EIO: the interface is down
    } else {
      packets++;
      bytes += packet.length;
    }
  }
  send_stats.packets.add(packets);
  send_stats.bytes.add(bytes);
  send_stats.burst(i - burst.begin);
  return i - burst.begin;
}

}  // namespace vpci
