// Memory of its own OS pages, for buffers that the kernel reads or writes directly.
//
// Unmapped, not freed: while a request is still in flight the kernel holds on to the physical
// memory, so that giving up on a request can never write into memory that somebody else uses by
// then.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <span>
#include <utility>

namespace hicache {

class MappedMemory {
 public:
  MappedMemory() = default;
  MappedMemory(MappedMemory&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedMemory& operator=(MappedMemory&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedMemory() {
    if (address_ != nullptr) munmap(address_, size_);
  }

  /// Zeroed memory; an invalid object when there is none.
  static MappedMemory make(uint64_t size) {
    MappedMemory memory;
    void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return memory;
    memory.address_ = static_cast<uint8_t*>(address);
    memory.size_ = size;
    return memory;
  }

  /// Frees the memory while requests may still be in flight, for good: nothing else will ever lie
  /// at its addresses. A request that the kernel has not begun yet, or continues later, looks its
  /// addresses up only then, and must not find what somebody else mapped there meanwhile.
  void abandon() {
    if (address_ == nullptr) return;
    // In place of the mapping, in one step. Without memory for that it stays as it is.
    (void)mmap(address_, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
               -1, 0);
    address_ = nullptr;
    size_ = 0;
  }

  bool valid() const { return address_ != nullptr; }
  uint8_t* address() const { return address_; }
  uint64_t size() const { return size_; }
  std::span<uint8_t> span() const { return {address_, size_}; }

 private:
  uint8_t* address_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace hicache
