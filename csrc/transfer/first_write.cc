#include "transfer/first_write.h"

#include <algorithm>
#include <atomic>

#include "base/bytes.h"

namespace hicache {
namespace {

constexpr uint64_t kPageSize = 4 * kKiB;  // Of the OS; larger ones are touched more than once.
constexpr uint64_t kTaskSize = 16 * kMiB;

}  // namespace

bool write_each_page(uint8_t* address, uint64_t size, CopyThreads& threads, Deadline deadline) {
  std::atomic<bool> complete{true};
  threads.run((size + kTaskSize - 1) / kTaskSize, [&](size_t task) {
    if (deadline.expired()) {
      complete = false;
      return;
    }
    const uint64_t end = std::min(size, (task + 1) * kTaskSize);
    for (uint64_t offset = task * kTaskSize; offset < end; offset += kPageSize) {
      // Replaces the byte by itself, unless somebody else just wrote another one: written either
      // way. Compilers may turn an "or nothing" into a load, but not this.
      std::atomic_ref<uint8_t> byte(address[offset]);
      uint8_t value = byte.load(std::memory_order_relaxed);
      byte.compare_exchange_strong(value, value, std::memory_order_relaxed);
    }
  });
  return complete;
}

}  // namespace hicache
