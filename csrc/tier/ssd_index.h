// Which pages lie where on the SSDs, and what is worth keeping when a region is reused.
//
// Pure: no I/O, no thread, no clock. Regions of all directories have one numbering; the caller knows
// which file and offset a region is. A page is in here once it is whole on its disk.
//
//   key table (hash -> page)      page: 96 bytes, in pieces, linked in its region's list
//   region: pages in the order of their sectors, live bytes, reused bytes
//
// Threads: one owner.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "tier/eviction.h"
#include "tier/key_table.h"
#include "tier/page_hash.h"

namespace hicache {

using RegionIndex = uint32_t;
using SsdPageIndex = uint32_t;
inline constexpr RegionIndex kNoRegion = UINT32_MAX;
inline constexpr SsdPageIndex kNoSsdPage = UINT32_MAX;

/// Where a page begins.
struct SsdPlace {
  RegionIndex region = kNoRegion;
  uint32_t first_sector = 0;  // In the region.
  bool operator==(const SsdPlace&) const = default;
};

struct SsdPage {
  Key key;
  uint64_t sequence = 0;
  uint64_t checksum = 0;
  uint64_t parent_hash = 0;  // page_hash() of the parent; 0: chain root, or unknown.
  SpaceIndex space = 0;
  uint32_t size = 0;  // Bytes; a page is smaller than a region.
  SsdPlace place;
  uint32_t child_count = 0;  // Pages in the index whose parent this is.
  uint32_t written_s = 0;    // The caller's clock when it came into this region, for eviction age.
  SsdPageIndex previous = kNoSsdPage;  // In the region's list.
  SsdPageIndex next = kNoSsdPage;
  uint16_t reads = 0;  // Since it came into this region; saturates.
};

class SsdIndex {
 public:
  struct Region {
    SsdPageIndex first = kNoSsdPage;
    SsdPageIndex last = kNoSsdPage;
    uint32_t page_count = 0;
    uint64_t live_bytes = 0;    // Of its pages, in whole sectors.
    uint64_t reused_bytes = 0;  // Of those among them that were read since they came.
    uint64_t sequence = 0;      // Of its present life; smaller is older. Set by the caller.
  };

  enum class Inserted : uint8_t {
    kNew,
    kReplaced,  // An older copy of the page was in the index, and left it.
    kOlder,     // A newer copy is in the index; nothing changed.
  };

  explicit SsdIndex(size_t expected_page_count);

  /// Adds a region and returns its number: 0, 1, …
  RegionIndex add_region();
  /// Begins a life of an empty region.
  void begin_region(RegionIndex region, uint64_t sequence);
  const Region& region(RegionIndex region) const { return regions_[region]; }
  size_t region_count() const { return regions_.size(); }

  /// `page`: links, child_count and reads are ignored. Appended to the list of its region.
  Inserted insert(const SsdPage& page);
  SsdPageIndex find(SpaceIndex space, const Key& key) const;
  SsdPageIndex find(SpaceIndex space, const Key& key, uint64_t hash) const;
  void prefetch(uint64_t hash) const { table_.prefetch(hash); }
  const SsdPage& operator[](SsdPageIndex page) const;
  void erase(SsdPageIndex page);
  /// A reader was sent to it.
  void note_read(SsdPageIndex page);
  /// The page that begins at this place, or kNoSsdPage. Walks the region's list.
  SsdPageIndex page_at(SsdPlace place) const;
  /// Pages of a region, in the order in which they came.
  std::vector<SsdPageIndex> pages_of(RegionIndex region) const;

  /// Forgets all pages of a region; returns how many.
  uint64_t drop_region(RegionIndex region);
  /// Forgets pages of a namespace's ended life, at most `count_max` of them looked at; false when
  /// none is left. Repeat it with the same space.
  bool drop_space(SpaceIndex space, size_t count_max);

  /// The region to reuse next, or kNoRegion: among those for which `is_eligible` is true, one
  /// without live pages; else, of the older half by sequence (at least 1), the one with the least
  /// bytes to rewrite, the oldest of equals. O(regions).
  RegionIndex choose_victim(std::function<bool(RegionIndex)> is_eligible) const;

  /// Which pages of a region to rewrite, in their order, at most `bytes_max` of them in whole
  /// sectors. Candidates were read since they came, or are parents of pages in the index; of these
  /// only those whose parent is there (in the index, or `is_in_dram(parent_hash)`) or that have
  /// none: a page without its parent can never be reached. More reads go first, parents before
  /// leaves at equal reads; a page whose parent lies in this region only with that parent.
  std::vector<SsdPageIndex> choose_rewrites(
      RegionIndex region, uint64_t bytes_max,
      const std::function<bool(uint64_t parent_hash)>& is_in_dram) const;

  uint64_t page_count() const { return page_count_; }
  uint64_t live_bytes() const { return live_bytes_; }
  size_t memory_size_bytes() const;
  /// What is inconsistent, or "" (slow; for tests).
  std::string check_invariants() const;

 private:
  // The implementation's.
};

}  // namespace hicache
