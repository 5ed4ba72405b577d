// How a node's pool comes to its size: given to the store piece by piece, as memory is found for
// it.
#include <algorithm>

#include "store/node.h"

namespace hicache {
namespace {

constexpr uint64_t kGrowthSize = 512 * kMiB;  // A step.
constexpr uint64_t kAheadSizeMax = 4 * kGiB;
constexpr uint64_t kMemoryLeftMin = 256 * kMiB;
constexpr uint64_t kGrowthRetryMs = 30'000;  // After the machine had no memory left.

/// Given to the store, and backed, before it is needed: as much as a long prompt writes at once.
uint64_t ahead_size(uint64_t capacity_bytes) {
  return std::clamp(capacity_bytes / 16, kGrowthSize, kAheadSizeMax);
}

}  // namespace

bool Node::grow_store() {
  if (monotonic_ms() < grow_after_ms_) return false;
  if (!set_aside_.empty()) {
    for (const Extent& slots : set_aside_) store_.add_memory(slots.offset, slots.size);
    set_aside_.clear();
    return true;
  }
  const uint64_t size = std::min(kGrowthSize, store_.capacity_bytes() - grown_bytes_);
  if (size == 0) return false;
  // Shared memory is not accounted for in advance: without this look the kernel would not refuse it
  // but kill somebody. What was given out and not written yet is still to come. Huge pages were set
  // aside when the pool was made.
  const uint64_t promised = grown_bytes_ - std::min(grown_bytes_, memory_->backed_bytes());
  if (!memory_->is_huge() && available_memory_bytes() < promised + size + kMemoryLeftMin) {
    note_unbacked(
        "the machine has hardly any memory left; free some or choose a smaller pool_size");
    return false;
  }
  store_.add_memory(grown_bytes_, size);
  store_.set_reachable_bytes(store_.capacity_bytes());
  grown_bytes_ += size;
  backer_.want(grown_bytes_);
  return true;
}

void Node::extend_pool() {
  const uint64_t size = store_.capacity_bytes();
  if (contributed_bytes_ <= size) return;
  const uint64_t promised = size - std::min(size, memory_->backed_bytes());
  const uint64_t available = available_memory_bytes();
  const uint64_t taken = promised + kMemoryLeftMin;
  const uint64_t more = available > taken ? available - taken : 0;
  const uint64_t can_be =
      std::min(memory_->size_bytes(), size + std::min(more, contributed_bytes_));
  const uint64_t wanted = std::min(can_be, contributed_bytes_) / kSlotSize * kSlotSize;
  if (wanted < contributed_bytes_ / kSlotSize * kSlotSize) {
    note("the pool has " + std::to_string(std::max(wanted, size)) + " of the " +
         std::to_string(contributed_bytes_) + " bytes that its clients contribute: " +
         (can_be == memory_->size_bytes() ? "raise pool_size_max" : "free memory"));
  }
  if (wanted <= size) return;
  store_.set_capacity(wanted);
}

void Node::grow_ahead() {
  while (store_.free_bytes() < ahead_size(store_.capacity_bytes()) && grow_store()) {
  }
}

void Node::drop_unbacked(SessionIndex session, PageRef ref) {
  const std::span<const Extent> extents = store_.extents_of(session, ref);
  // Where our own thread has been there is memory: then it is the client that cannot map it, and
  // its trouble must not take the place away from others.
  const uint64_t backed = backer_.backed_bytes();
  const bool is_ours = std::all_of(extents.begin(), extents.end(), [&](const Extent& extent) {
    return extent.offset + extent.size <= backed;
  });
  if (is_ours) {
    store_.abort(session, ref);
    return;
  }
  if (!SlotAllocator::shares_slots(extents)) {
    for (const Extent& extent : extents) {
      set_aside_.push_back({extent.offset, round_up(extent.size, kSlotSize)});
    }
  }
  store_.abort(session, ref, false);
  note_unbacked("a client found no memory for a page; choose a smaller pool_size");
}

void Node::note_unbacked(const std::string& why) {
  grow_after_ms_ = monotonic_ms() + kGrowthRetryMs;
  store_.set_reachable_bytes(grown_bytes_);
  note("the pool stays smaller than its size: " + why);
}

}  // namespace hicache
