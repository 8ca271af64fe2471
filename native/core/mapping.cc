// Maps and unmaps; the guard knows every mapping from before its first access until after its last.
#include "mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>

#include "guard.h"

namespace vpci {
namespace {

std::atomic<size_t> live{0};

// Huge pages are mapped and replaced as a whole only.
size_t page_bytes(int fd) {
  constexpr long kHugetlbfsMagic = 0x958458f6;
  struct statfs fs;
  if (::fstatfs(fd, &fs) == 0 && static_cast<unsigned long>(fs.f_type) == kHugetlbfsMagic && fs.f_bsize > 0)
    return static_cast<size_t>(fs.f_bsize);
  return static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

std::shared_ptr<Mapping> Mapping::create(int fd, uint64_t offset, size_t size, bool writable) {
  size_t page = page_bytes(fd);
  if (size == 0 || offset % page != 0 || offset > static_cast<uint64_t>(INT64_MAX) ||
      size > static_cast<size_t>(INT64_MAX) - page) {
    errno = EINVAL;
    return nullptr;
  }
  size_t mapped = (size + page - 1) / page * page;
  void* data = ::mmap(nullptr, mapped, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
                      static_cast<off_t>(offset));
  if (data == MAP_FAILED) return nullptr;
  std::shared_ptr<Mapping> mapping(new Mapping());
  live.fetch_add(1, std::memory_order_relaxed);
  mapping->data_ = static_cast<uint8_t*>(data);
  mapping->size_ = size;
  mapping->mapped_ = mapped;
  mapping->writable_ = writable;
  if (!GuardSlots::add(mapping.get())) {
    errno = ENOMEM;
    return nullptr;
  }
  return mapping;
}

Mapping::~Mapping() {
  GuardSlots::remove(this);
  ::munmap(data_, mapped_);
  live.fetch_sub(1, std::memory_order_relaxed);
}

size_t Mapping::live_count() { return live.load(std::memory_order_relaxed); }

}  // namespace vpci
