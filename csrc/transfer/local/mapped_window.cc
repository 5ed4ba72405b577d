#include "transfer/local/mapped_window.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/bytes.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace hicache {
namespace {

constexpr uint64_t kStep = kMiB;
constexpr uint64_t kSmallPage = 4 * kKiB;

/// What offsets into the file must be multiples of: the size of its pages, which a file on huge
/// pages tells as its block size.
uint64_t page_size_of(const struct stat& stat) {
  const auto told = static_cast<uint64_t>(stat.st_blksize);
  return std::has_single_bit(told) ? std::max(told, kSmallPage) : kSmallPage;
}

}  // namespace

bool is_sealed_memfd(int fd, uint64_t size) {
  struct stat stat{};
  const int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &stat) == 0 &&
         static_cast<uint64_t>(stat.st_size) >= size;
}

Result<MappedWindow> MappedWindow::map(const Fd& fd, uint64_t offset, uint64_t size,
                                       Access access) {
  struct stat stat{};
  if (size == 0 || offset > UINT64_MAX - size || !is_sealed_memfd(fd.get(), offset + size) ||
      fstat(fd.get(), &stat) != 0) {
    return Status(Code::kCorrupt, "the peer passed what is not a sealed memfd of " +
                                      std::to_string(offset) + " + " + std::to_string(size) +
                                      " bytes");
  }
  const uint64_t page = page_size_of(stat);
  const uint64_t start = offset / page * page;
  const uint64_t mapped_size = round_up(offset + size - start, page);
  const int protection = access == Access::kWrite ? PROT_READ | PROT_WRITE : PROT_READ;
  void* mapped =
      mmap(nullptr, mapped_size, protection, MAP_SHARED, fd.get(), static_cast<off_t>(start));
  if (mapped == MAP_FAILED) {
    return io_error("mapping " + std::to_string(size) + " bytes of the peer", errno);
  }
  // A child that is forked has no part in this, and must not keep the memory.
  (void)madvise(mapped, mapped_size, MADV_DONTFORK);
  MappedWindow window;
  window.mapped_ = static_cast<uint8_t*>(mapped);
  window.mapped_size_ = mapped_size;
  window.address_ = window.mapped_ + (offset - start);
  window.size_ = size;
  const uint64_t steps = (window.mapped_size_ + kStep - 1) / kStep;
  window.backed_ = std::make_unique<std::atomic<uint8_t>[]>(steps);
  return window;
}

MappedWindow::MappedWindow(MappedWindow&& other) noexcept {
  *this = std::move(other);
}

MappedWindow& MappedWindow::operator=(MappedWindow&& other) noexcept {
  std::swap(mapped_, other.mapped_);
  std::swap(mapped_size_, other.mapped_size_);
  std::swap(address_, other.address_);
  std::swap(size_, other.size_);
  std::swap(backed_, other.backed_);
  return *this;
}

MappedWindow::~MappedWindow() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_size_);
}

Status MappedWindow::back(uint64_t offset, uint64_t size, Access access) {
  if (size == 0) return Status();
  const auto lead = static_cast<uint64_t>(address_ - mapped_);
  const uint64_t last = (lead + offset + size - 1) / kStep;
  const auto mark = static_cast<uint8_t>(1 + static_cast<uint8_t>(access));
  const int advice = access == Access::kWrite ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
  for (uint64_t step = (lead + offset) / kStep; step <= last; ++step) {
    if (backed_[step].load(std::memory_order_relaxed) >= mark) continue;
    // No more than the window: what lies beside it is no business of ours.
    const uint64_t from = std::max(step * kStep, lead / kSmallPage * kSmallPage);
    const uint64_t until = std::min((step + 1) * kStep, round_up(lead + size_, kSmallPage));
    while (madvise(mapped_ + from, until - from, advice) != 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      if (errno == EINVAL) break;  // Linux before 5.14 cannot be asked.
      return Status(Code::kNoSpace, "mapping memory of the peer for the first time: " +
                                        std::string(std::strerror(errno)) +
                                        "; free memory, or have the peer touch it first");
    }
    backed_[step].store(mark, std::memory_order_relaxed);
  }
  return Status();
}

}  // namespace hicache
