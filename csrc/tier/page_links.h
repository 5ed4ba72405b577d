// The resident pages and the tree that their chains form.  Pure; one owner, not thread-safe.
//
//   key table (hash -> page, or -> list of children that wait for a missing parent)
//        |
//   record: parent, first child, siblings      48 bytes per page, in chunks: no slack, no copying
//
// Always a forest: a link that would close a ring is not made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tier/eviction.h"

namespace hicache {

// Where a record waits.  A page is open while it, or one below it, may be evictable: it was not
// asked yet, or has been freed since.
enum class PagePlace : uint8_t {
  kAbsent,
  kInner,          // above open pages; `queue_next` counts its open children
  kCandidate,      // leaf, in the policy's order
  kSoftCandidate,  // leaf, soft-pinned, in the order of last use
  kAbove,          // with children, none of them open
  kSoftAbove,      // the same, soft-pinned
  kClosed,         // was not evictable when asked, and so nothing below it
};

struct LinkedPage {
  uint64_t key_hash;
  uint64_t order;  // the policy's: recency, queue number or clock; smaller leaves earlier
  uint32_t parent;
  uint32_t first_child;
  uint32_t next_sibling;  // towards older
  uint32_t prev_sibling;  // towards newer
  uint32_t queue_next;    // list link, position in a heap, or a count
  uint32_t queue_prev;
  uint64_t size_bytes : 44;
  uint64_t place : 3;
  uint64_t is_soft_pinned : 1;
  uint64_t is_named : 1;    // found by its key_hash
  uint64_t is_waiting : 1;  // `parent` is the list of a missing parent
  uint64_t had_child : 1;   // since it came
  uint64_t is_refused : 1;  // was not evictable when last asked
  uint64_t frequency : 4;   // uses, saturating; the policy's
  uint64_t mark : 8;        // the policy's
};
static_assert(sizeof(LinkedPage) == 48);

class PageLinks {
 public:
  static constexpr uint64_t kSizeBytesMax = (uint64_t{1} << 44) - 1;

  LinkedPage& operator[](PageIndex page) { return chunks_[page >> kChunkBits][page & kChunkMask]; }
  const LinkedPage& operator[](PageIndex page) const {
    return chunks_[page >> kChunkBits][page & kChunkMask];
  }

  bool is_resident(PageIndex page) const {
    return (page >> kChunkBits) < chunks_.size() &&
           (*this)[page].place != static_cast<uint64_t>(PagePlace::kAbsent);
  }

  // Links `page` under its parent, and under it the children that waited.  Its place becomes
  // kInner; the caller moves leaves on.
  void add(PageIndex page, const PageTraits& traits);

  // Unlinks it; its children wait for its return.  Its place becomes kAbsent.
  void remove(PageIndex page);

  // The resident parent, or kNoPage.
  PageIndex parent(PageIndex page) const {
    const LinkedPage& record = (*this)[page];
    return record.is_waiting ? kNoPage : record.parent;
  }
  bool is_leaf(PageIndex page) const { return (*this)[page].first_child == kNoPage; }
  bool has_newer_sibling(PageIndex page) const { return (*this)[page].prev_sibling != kNoPage; }

  size_t page_count() const { return page_count_; }
  PageIndex index_end() const { return static_cast<PageIndex>(chunks_.size() << kChunkBits); }
  size_t memory_size_bytes() const;
  std::string check_invariants() const;

 private:
  static constexpr int kChunkBits = 12;
  static constexpr uint32_t kChunkMask = (1u << kChunkBits) - 1;
  static constexpr uint32_t kWaitBit = 1u << 31;  // in the key table: a wait list, not a page

  struct WaitList {
    uint64_t parent_hash;
    uint32_t first_child;  // or the next free list
  };

  uint64_t slot_hash(uint32_t value) const;
  size_t find_slot(uint64_t hash) const;  // the slot with this hash, or the free one to use
  void grow_table();
  void clear_slot(size_t slot);
  void link_child(PageIndex page, uint32_t& first_child);
  void unlink_child(PageIndex page);
  void link_parent(PageIndex page, uint64_t parent_hash);
  void adopt_waiting(PageIndex page, uint32_t list);
  bool is_ancestor(PageIndex page, PageIndex of) const;
  uint32_t new_wait_list(uint64_t parent_hash);

  std::vector<std::unique_ptr<LinkedPage[]>> chunks_;
  std::vector<uint32_t> table_;  // open addressing, power of two
  size_t table_used_ = 0;
  std::vector<WaitList> wait_lists_;
  uint32_t wait_lists_free_ = kNoPage;
  size_t page_count_ = 0;
};

}  // namespace hicache
