// Which pages lie where on the SSDs, and what is worth keeping when a region is reused.
//
// Pure: no I/O, no thread, no clock. Regions of all directories have one numbering; the caller
// knows which file and offset a region is. A page is in here once it is whole on its disk.
//
//   key table (hash -> page)      page: 96 bytes, in pieces, linked in its region's list
//   region: pages in the order in which they came, live bytes, reused bytes
//   orphan table (hash of a parent that is not here -> pages that wait for it)
//
// Memory: 107 to 118 bytes a page, and 15 to 19 for each parent that is not here. Operations are
// O(1), amortised, where nothing else is said.
//
// Threads: one owner.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/huge_allocator.h"
#include "tier/key_table.h"
#include "tier/orphan_table.h"
#include "tier/page_hash.h"
#include "tier/page_listener.h"

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
  uint32_t child_count = 0;  // Pages in the index whose parent_hash is this page's hash.
  uint32_t written_s = 0;    // The caller's clock when it came into this region, for eviction age.
  SsdPageIndex previous = kNoSsdPage;  // In the region's list.
  SsdPageIndex next = kNoSsdPage;
  uint16_t reads = 0;  // Since it came into this region; saturates.
};
static_assert(sizeof(SsdPage) == 96);

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
    kOlder,     // A newer copy is in the index, or this one; nothing changed.
  };

  explicit SsdIndex(size_t expected_page_count);

  /// Told of pages that come and go. It outlives the index's use.
  void set_listener(PageListener& listener) { listener_ = &listener; }

  /// Adds a region and returns its number: 0, 1, …
  RegionIndex add_region();
  /// Begins a life of an empty region. Requires: it is empty.
  void begin_region(RegionIndex region, uint64_t sequence);
  const Region& region(RegionIndex region) const { return regions_[region]; }
  size_t region_count() const { return regions_.size(); }

  /// `page`: links, child_count and reads are ignored. Appended to the list of its region, which
  /// must exist.
  Inserted insert(const SsdPage& page);
  SsdPageIndex find(SpaceIndex space, const Key& key) const {
    return find(space, key, page_hash(space, key));
  }
  SsdPageIndex find(SpaceIndex space, const Key& key, uint64_t hash) const;
  void prefetch(uint64_t hash) const { table_.prefetch(hash); }
  const SsdPage& operator[](SsdPageIndex page) const { return at(page); }
  void erase(SsdPageIndex page);
  /// A reader was sent to it.
  void note_read(SsdPageIndex page);
  /// The page that begins at this place, or kNoSsdPage. Walks the region's list.
  SsdPageIndex page_at(SsdPlace place) const;
  /// Pages of a region, in the order in which they came.
  std::vector<SsdPageIndex> pages_of(RegionIndex region) const;

  /// Forgets all pages of a region; returns how many. O(pages of the region).
  uint64_t drop_region(RegionIndex region);
  /// Forgets pages of a namespace's ended life, at most `count_max` of them looked at; false when
  /// none is left. Repeat it with the same space.
  bool drop_space(SpaceIndex space, size_t count_max);

  /// The region to reuse next, or kNoRegion: among those for which `is_eligible` is true, one
  /// without live pages; else, of the older half by sequence (at least 1), the one with the least
  /// bytes to rewrite, which its reused bytes stand for. The oldest of equals. O(regions).
  RegionIndex choose_victim(const std::function<bool(RegionIndex)>& is_eligible) const;

  /// Which pages of a region to rewrite, in their order, at most `bytes_max` of them in whole
  /// sectors. Candidates were read since they came, or are parents of pages in the index; of these
  /// only those whose parent is there (in the index, or `is_in_dram(parent_hash)`) or that have
  /// none: a page without its parent can never be reached. More reads go first, parents before
  /// leaves at equal reads; a page whose parent lies in this region only with that parent, so it
  /// brings its ancestors of this region along, or is passed over when they do not all fit.
  /// O(pages of the region * length of their chains in it).
  std::vector<SsdPageIndex> choose_rewrites(
      RegionIndex region, uint64_t bytes_max,
      const std::function<bool(uint64_t parent_hash)>& is_in_dram) const;

  /// Appends the keys of a namespace's pages among at most `count_max` records from `first` on;
  /// returns where to go on, or kNoSsdPage at the end.
  SsdPageIndex list(SpaceIndex space, SsdPageIndex first, size_t count_max,
                    std::vector<Key>& keys) const;

  uint64_t page_count() const { return page_count_; }
  /// Records that were ever used: pages are below it.
  SsdPageIndex record_count() const { return record_count_; }
  bool is_free(SsdPageIndex page) const { return at(page).place.region == kNoRegion; }
  uint64_t page_count_of(SpaceIndex space) const {
    const auto found = spaces_.find(space);
    return found == spaces_.end() ? 0 : found->second.page_count;
  }
  uint64_t live_bytes() const { return live_bytes_; }
  size_t memory_size_bytes() const;
  /// What is inconsistent, or "" (slow; for tests).
  std::string check_invariants() const;

 private:
  using Piece = std::vector<SsdPage, HugeAllocator<SsdPage>>;
  static constexpr size_t kPieceCount = 65536;
  static_assert(kPieceCount * sizeof(SsdPage) % kHugePageSize == 0);

  struct Space {
    uint64_t page_count = 0;
    SsdPageIndex cursor = 0;  // Where drop_space() goes on.
  };

  SsdPage& at(SsdPageIndex page) { return pieces_[page / kPieceCount][page % kPieceCount]; }
  const SsdPage& at(SsdPageIndex page) const {
    return pieces_[page / kPieceCount][page % kPieceCount];
  }
  uint64_t hash_of(SsdPageIndex page) const { return page_hash(at(page).space, at(page).key); }
  SsdPageIndex take_record();

  /// Calls `visit(page)` for each page of this hash: one, unless keys were made to collide.
  template <typename Visit>
  void for_each_of(uint64_t hash, Visit visit) const;
  SsdPageIndex find_hash(uint64_t hash) const;
  void add_child(uint64_t parent_hash);
  void remove_child(uint64_t parent_hash);
  void enter_region(SsdPageIndex page);
  void leave_region(SsdPageIndex page);

  std::string check_region(RegionIndex region) const;
  std::string check_children() const;

  std::vector<Piece> pieces_;
  SsdPageIndex record_count_ = 0;  // Free ones included.
  SsdPageIndex free_ = kNoSsdPage;
  KeyTable table_;
  OrphanTable orphans_;
  std::vector<Region> regions_;
  std::unordered_map<SpaceIndex, Space> spaces_;  // Those with pages.
  uint64_t page_count_ = 0;
  uint64_t live_bytes_ = 0;
  PageListener* listener_ = nullptr;
};

}  // namespace hicache
