// A part of a memfd that another process passed, mapped here.
//
// The descriptor is hostile until checked: only a file that is sealed against shrinking and that
// holds the whole part is mapped, so touching it can never fault because someone cut it off.
//
// Threads: any.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/status.h"
#include "io/fd.h"

namespace hicache {

/// Whether a mapping of the file can be trusted: a memfd that nobody can shrink and that reaches to
/// `size`.
bool is_sealed_memfd(int fd, uint64_t size);

class MappedWindow {
 public:
  enum class Access : uint8_t { kRead, kWrite };

  /// kCorrupt: not a sealed memfd that holds the window. kIo: the system does not map it so.
  static Result<MappedWindow> map(const Fd& fd, uint64_t offset, uint64_t size, Access access);

  MappedWindow() = default;
  MappedWindow(MappedWindow&& other) noexcept;
  MappedWindow& operator=(MappedWindow&& other) noexcept;
  ~MappedWindow();

  bool valid() const { return mapped_ != nullptr; }
  uint8_t* address() const { return address_; }
  uint64_t size() const { return size_; }

  /// Has the kernel back a range for a first access of that kind, in steps of 1 MiB; does nothing
  /// where it has before. kNoSpace: there is no memory, which would be a signal otherwise.
  Status back(uint64_t offset, uint64_t size, Access access);

 private:
  uint8_t* mapped_ = nullptr;  // Begins where the system's pages do.
  uint64_t mapped_size_ = 0;
  uint8_t* address_ = nullptr;
  uint64_t size_ = 0;
  /// By step: 0, or 1 + the Access that it is backed for.
  std::unique_ptr<std::atomic<uint8_t>[]> backed_;
};

}  // namespace hicache
