// What a node remembers of one page, and the growing array that holds these records.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/huge_allocator.h"
#include "store/lease_table.h"
#include "tier/eviction.h"
#include "tier/extent.h"
#include "tier/page_hash.h"

namespace hicache {

/// Extents of one page: nearly always one, so one lies in place.
class PageExtents {
 public:
  PageExtents() = default;
  explicit PageExtents(Extents extents) {
    if (extents.size() == 1) {
      first_ = extents[0];
    } else {
      extents.shrink_to_fit();
      all_ = std::make_unique<Extents>(std::move(extents));
    }
  }

  std::span<const Extent> span() const {
    return all_ ? std::span<const Extent>(*all_) : std::span<const Extent>(&first_, 1);
  }
  size_t heap_size_bytes() const {
    return all_ ? sizeof(Extents) + all_->capacity() * sizeof(Extent) : 0;
  }

 private:
  Extent first_{0, 0};
  std::unique_ptr<Extents> all_;
};

enum class PageState : uint8_t {
  kFree,       // The record is unused.
  kReserved,   // A client is writing; not visible.
  kPresent,    // Visible and whole.
  kCondemned,  // No longer visible; its bytes are kept until the last lease ends.
};

enum class Pin : uint8_t { kNone = 0, kSoft = 1, kHard = 2 };
inline constexpr uint8_t kPinCount = 3;

/// Copies of one page that a cluster may be asked to have.
inline constexpr uint8_t kReplicaCountMax = 8;

// Two cache lines. A look-up touches the first only.
struct alignas(64) PageRecord {
  Key key;
  uint64_t size = 0;
  SpaceIndex space = 0;
  uint32_t generation = 0;  // Counts lives of this record: an old reference never matches.
  LeaseIndex leases = kNoLease;
  SessionIndex session = 0;  // While reserved: who writes.
  PageState state = PageState::kFree;
  Pin pin = Pin::kNone;
  bool is_held = false;  // Counted as not evictable.
  bool has_expiry : 1 = false;
  bool is_kept : 1 = false;  // Until it was given to an SSD: the node is about to end.
  bool is_spare = false;
  bool is_refused = false;    // To the eviction policy, which is told when it is not held any more.
  uint8_t reads = 0;          // Since it came into the pool; saturates.
  uint8_t replica_count = 1;  // That the cluster should have, this one counted.

  alignas(64) uint64_t checksum = 0;
  uint64_t parent_hash = 0;  // 0: chain root, or unknown.
  uint64_t expires_ms = 0;   // Of the page, or of its reservation; 0: never.
  uint64_t inserted_ms = 0;
  PageExtents extents;
  // Neighbours in the session's reservations or in the space's pages.
  PageIndex previous = kNoPage;
  PageIndex next = kNoPage;
};
static_assert(sizeof(PageRecord) == 128);

/// A page of one node at one time.
struct PageRef {
  PageIndex page;
  uint32_t generation;
};

/// Records in pieces, so that growing never copies what is there. Indexes are reused.
class PageRecords {
 public:
  PageRecord& operator[](PageIndex page) { return pieces_[page / kPieceCount][page % kPieceCount]; }
  const PageRecord& operator[](PageIndex page) const {
    return pieces_[page / kPieceCount][page % kPieceCount];
  }
  bool contains(PageIndex page) const { return page < size_; }
  void prefetch(PageIndex page) const { __builtin_prefetch(&(*this)[page]); }

  PageIndex take() {
    if (free_ == kNoPage) {
      if (size_ == pieces_.size() * kPieceCount) {
        pieces_.emplace_back(kPieceCount);
      }
      return size_++;
    }
    const PageIndex page = free_;
    free_ = (*this)[page].next;
    return page;
  }

  void give_back(PageIndex page) {
    const uint32_t generation = (*this)[page].generation;
    (*this)[page] = PageRecord{};
    (*this)[page].generation = generation;
    (*this)[page].next = free_;
    free_ = page;
  }

  size_t memory_size_bytes() const { return pieces_.size() * kPieceCount * sizeof(PageRecord); }
  PageIndex size() const { return size_; }

 private:
  using Piece = std::vector<PageRecord, HugeAllocator<PageRecord>>;
  static constexpr PageIndex kPieceCount = kHugePageSize / sizeof(PageRecord);

  std::vector<Piece> pieces_;
  PageIndex size_ = 0;
  PageIndex free_ = kNoPage;
};

}  // namespace hicache
