// What is remembered of pages that are gone: a set-associative table of small entries, in which a
// full set forgets its oldest.  8 bytes per entry.  Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace hicache {

class GhostTable {
 public:
  static constexpr uint32_t kStampMax = (1u << 24) - 1;

  struct Ghost {
    uint32_t stamp;  // 24 bits of the owner's clock
    uint8_t mark;    // the owner's
  };

  // `entry_count_min` is rounded up to a power of two.
  explicit GhostTable(size_t entry_count_min);

  // Grows to at least this many entries; what is remembered stays.
  void reserve(size_t entry_count);

  // Remembers; returns the ghost that had to be forgotten for it.  `now_stamp` tells which is
  // oldest.
  std::optional<Ghost> add(uint64_t hash, Ghost ghost, uint32_t now_stamp);

  // Takes the ghost out, if there is one.
  std::optional<Ghost> take(uint64_t hash);

  size_t entry_count() const { return entries_.size(); }
  size_t memory_size_bytes() const { return entries_.capacity() * sizeof(Entry); }

 private:
  struct Entry {
    uint32_t tag;         // upper half of the hash
    uint32_t stamp : 24;  // 0 in both fields: free
    uint32_t mark : 8;
  };
  static constexpr size_t kWays = 8;  // one cache line

  Entry* set_of(uint32_t tag);

  std::vector<Entry> entries_;
  int set_bits_ = 0;
};

}  // namespace hicache
