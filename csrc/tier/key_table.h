// Hash table from a 64-bit hash to page indexes: 8 bytes an entry, the records stay elsewhere.
//
// Open addressing with linear probing, backward-shift deletion (no tombstones, so look-up time does
// not decay) and a load of at most 3/4. The caller compares records; the table stores 32 bits of
// the hash to make that comparison almost always the last one.
//
// Pure. Threads: one owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/huge_allocator.h"
#include "tier/eviction.h"

namespace hicache {

class KeyTable {
 public:
  explicit KeyTable(size_t expected_count);

  /// Asks the CPU to fetch what find() will need first. Pays when many keys are looked up.
  void prefetch(uint64_t hash) const { __builtin_prefetch(&entries_[home(hash)]); }

  /// The page that find() will compare first, or kNoPage: for prefetching its record.
  PageIndex guess(uint64_t hash) const {
    return find(hash, [](PageIndex) { return true; });
  }

  /// The page with this hash for which `is_same(page)` is true, or kNoPage.
  template <typename IsSame>
  PageIndex find(uint64_t hash, IsSame is_same) const {
    const uint32_t tag = tag_of(hash);
    for (size_t i = home(hash);; i = (i + 1) & mask_) {
      const Entry& entry = entries_[i];
      if (entry.page == kNoPage) return kNoPage;
      if (entry.tag == tag && is_same(entry.page)) return entry.page;
    }
  }

  /// Requires: the page is not in the table.
  void insert(uint64_t hash, PageIndex page);

  /// Requires: the page was inserted with this hash. `hash_of(page)` gives other pages' hashes.
  template <typename HashOf>
  void erase(uint64_t hash, PageIndex page, HashOf hash_of) {
    size_t hole = home(hash);
    while (entries_[hole].page != page) hole = (hole + 1) & mask_;
    for (size_t i = (hole + 1) & mask_; entries_[i].page != kNoPage; i = (i + 1) & mask_) {
      // An entry may move into the hole if its home is not after the hole.
      const size_t distance_from_home = (i - home(hash_of(entries_[i].page))) & mask_;
      if (distance_from_home >= ((i - hole) & mask_)) {
        entries_[hole] = entries_[i];
        hole = i;
      }
    }
    entries_[hole] = Entry{};
    --count_;
  }

  /// Rebuilds with twice the room when the next insert would pass the load limit.
  template <typename HashOf>
  void reserve_one(HashOf hash_of) {
    if (count_ + 1 > entries_.size() / 4 * 3) grow(hash_of);
  }

  size_t count() const { return count_; }
  size_t memory_size_bytes() const { return entries_.capacity() * sizeof(Entry); }

 private:
  struct Entry {
    uint32_t tag = 0;
    PageIndex page = kNoPage;
  };
  using Entries = std::vector<Entry, HugeAllocator<Entry>>;

  static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }
  // The low bits choose the place, the high ones are the tag.
  size_t home(uint64_t hash) const { return static_cast<size_t>(hash) & mask_; }

  template <typename HashOf>
  void grow(HashOf hash_of) {
    Entries old(entries_.size() * 2);
    old.swap(entries_);
    mask_ = entries_.size() - 1;
    count_ = 0;
    for (const Entry& entry : old) {
      if (entry.page != kNoPage) insert(hash_of(entry.page), entry.page);
    }
  }

  Entries entries_;
  size_t mask_;
  size_t count_ = 0;
};

}  // namespace hicache
