// Memory for tables that are hit at random: in huge OS pages where the system has them.
//
// An index of a million pages spans tens of thousands of 4 KiB OS pages, so that each look-up would
// miss the TLB as well as the cache. Only advice: without huge pages the memory is ordinary.
#pragma once

#include <cstddef>
#include <new>

namespace hicache {

inline constexpr size_t kHugePageSize = size_t{2} << 20;

/// `size` bytes, aligned to a huge page if there is at least one of them. Throws std::bad_alloc.
void* allocate_huge(size_t size);
void free_huge(void* memory, size_t size);

template <typename T>
struct HugeAllocator {
  using value_type = T;

  HugeAllocator() = default;
  template <typename U>
  HugeAllocator(const HugeAllocator<U>&) {}  // NOLINT: allocators convert.

  T* allocate(size_t count) { return static_cast<T*>(allocate_huge(count * sizeof(T))); }
  void deallocate(T* memory, size_t count) { free_huge(memory, count * sizeof(T)); }
  bool operator==(const HugeAllocator&) const { return true; }
};

}  // namespace hicache
