#include "store/pool_mapper.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

#include "base/bytes.h"

namespace hicache {
namespace {

// Whoever wants to map or unmap memory of this process waits for a step, and so does closing.
constexpr uint64_t kStepSize = 8 * kMiB;
constexpr int kNiceBy = 5;  // As copies: the engine's own threads come first.

}  // namespace

PoolMapper::PoolMapper(SharedMemory& memory, OnMapped on_mapped)
    : memory_(memory), on_mapped_(std::move(on_mapped)) {
  const auto run = [](void* self) -> void* {
    static_cast<PoolMapper*>(self)->run();
    return nullptr;
  };
  // Not std::thread, which throws where there is a limit on threads.
  has_thread_ = pthread_create(&thread_, nullptr, run, this) == 0;
  if (!has_thread_) finished_ = true;
}

PoolMapper::~PoolMapper() {
  closing_ = true;
  if (has_thread_) pthread_join(thread_, nullptr);
}

void PoolMapper::run() {
  const auto self = static_cast<id_t>(gettid());
  setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + kNiceBy);
  uint64_t left = kMappedBytesMax;
  uint64_t offset = 0;
  while (left != 0 && !closing_) {
    const auto range = memory_.backed_range(offset, std::min(kStepSize, left));
    if (!range) break;
    if (range->size_bytes == 0) {
      offset = range->offset + kStepSize;
      continue;
    }
    if (!memory_.populate(range->offset, range->size_bytes, SharedMemory::Access::kRead).ok()) {
      break;
    }
    on_mapped_(range->offset, range->size_bytes);
    offset = range->offset + range->size_bytes;
    left -= range->size_bytes;
  }
  finished_ = true;
}

}  // namespace hicache
