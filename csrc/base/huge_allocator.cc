#include "base/huge_allocator.h"

#include <sys/mman.h>

namespace hicache {
namespace {

constexpr std::align_val_t kSmallAlignment{64};
constexpr std::align_val_t kHugeAlignment{kHugePageSize};

std::align_val_t alignment_of(size_t size) {
  return size < kHugePageSize ? kSmallAlignment : kHugeAlignment;
}

}  // namespace

void* allocate_huge(size_t size) {
  void* memory = ::operator new(size, alignment_of(size));
  if (size >= kHugePageSize) madvise(memory, size / kHugePageSize * kHugePageSize, MADV_HUGEPAGE);
  return memory;
}

void free_huge(void* memory, size_t size) {
  ::operator delete(memory, alignment_of(size));
}

}  // namespace hicache
