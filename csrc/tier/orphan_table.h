// How many pages wait for a parent that is not there, by the parent's hash: 15 to 19 bytes for each
// such parent.
//
// Open addressing with linear probing and backward-shift deletion, as in KeyTable; the hashes are
// kept whole, so that counts are exact. Pure. Threads: one owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/huge_allocator.h"

namespace hicache {

class OrphanTable {
 public:
  OrphanTable() { resize(kCapacityMin); }

  uint32_t count_of(uint64_t parent_hash) const { return counts_[slot_of(parent_hash)]; }
  /// Requires: parent_hash != 0.
  void add(uint64_t parent_hash, uint32_t count);
  /// Requires: there are as many.
  void remove(uint64_t parent_hash, uint32_t count);

  size_t parent_count() const { return parent_count_; }
  size_t memory_size_bytes() const {
    return hashes_.capacity() * sizeof(uint64_t) + counts_.capacity() * sizeof(uint32_t);
  }

 private:
  static constexpr size_t kCapacityMin = 64;

  size_t capacity() const { return hashes_.size(); }
  size_t home(uint64_t hash) const {
    return static_cast<size_t>((static_cast<unsigned __int128>(hash) * capacity()) >> 64);
  }
  size_t behind(size_t slot) const { return slot + 1 == capacity() ? 0 : slot + 1; }
  /// Steps from one slot to another, around the end.
  size_t distance(size_t from, size_t to) const {
    return to >= from ? to - from : to + capacity() - from;
  }
  /// Where the hash is, or the free slot where it would be.
  size_t slot_of(uint64_t hash) const;
  void resize(size_t capacity);

  std::vector<uint64_t, HugeAllocator<uint64_t>> hashes_;  // 0: free.
  std::vector<uint32_t, HugeAllocator<uint32_t>> counts_;  // 0 in free slots.
  size_t parent_count_ = 0;
};

}  // namespace hicache
