#include "tier/orphan_table.h"

#include <cassert>
#include <utility>

namespace hicache {

size_t OrphanTable::slot_of(uint64_t hash) const {
  size_t slot = home(hash);
  while (hashes_[slot] != 0 && hashes_[slot] != hash) slot = behind(slot);
  return slot;
}

void OrphanTable::add(uint64_t parent_hash, uint32_t count) {
  assert(parent_hash != 0);
  size_t slot = slot_of(parent_hash);
  if (hashes_[slot] == 0) {
    if (parent_count_ + 1 > capacity() / 5 * 4) {
      // In smaller steps than doubling: memory is bounded right after growth, too.
      resize(capacity() / 4 * 5);
      slot = slot_of(parent_hash);
    }
    hashes_[slot] = parent_hash;
    ++parent_count_;
  }
  counts_[slot] += count;
}

void OrphanTable::remove(uint64_t parent_hash, uint32_t count) {
  size_t hole = slot_of(parent_hash);
  assert(counts_[hole] >= count);
  counts_[hole] -= count;
  if (hashes_[hole] == 0 || counts_[hole] != 0) return;
  for (size_t slot = behind(hole); hashes_[slot] != 0; slot = behind(slot)) {
    // An entry may move into the hole if its home is not after the hole.
    if (distance(home(hashes_[slot]), slot) < distance(hole, slot)) continue;
    hashes_[hole] = hashes_[slot];
    counts_[hole] = counts_[slot];
    hole = slot;
  }
  hashes_[hole] = 0;
  counts_[hole] = 0;
  --parent_count_;
  // A restart meets many children before their parents; that must not hold its memory for ever.
  if (capacity() > 16 * kCapacityMin && parent_count_ < capacity() / 4) resize(capacity() / 2);
}

void OrphanTable::resize(size_t capacity) {
  auto old_hashes = std::exchange(hashes_, decltype(hashes_)(capacity));
  auto old_counts = std::exchange(counts_, decltype(counts_)(capacity));
  for (size_t i = 0; i < old_hashes.size(); ++i) {
    if (old_hashes[i] == 0) continue;
    const size_t slot = slot_of(old_hashes[i]);
    hashes_[slot] = old_hashes[i];
    counts_[slot] = old_counts[i];
  }
}

}  // namespace hicache
