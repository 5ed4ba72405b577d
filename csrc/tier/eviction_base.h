// What all eviction policies share: the tree, which leaves may be named, and those set aside.
//
//   inner --(last child leaves)--> candidate --(asked, not evictable)--> parked
//     ^                               |  ^                                 |
//     +------(a child comes)----------+  +----(asked again, evictable)-----+
//
// A policy orders the unpinned candidates; soft-pinned leaves wait in a heap of their own, in the
// order of last use.  Pure; one owner, not thread-safe.
#pragma once

#include <string>

#include "tier/eviction.h"
#include "tier/page_heap.h"
#include "tier/page_links.h"

namespace hicache {

class EvictionBase : public Eviction {
 public:
  EvictionBase() : soft_(pages_) {}
  EvictionBase(const EvictionBase&) = delete;
  EvictionBase& operator=(const EvictionBase&) = delete;

  void insert(PageIndex page, const PageTraits& traits, uint64_t now_ms) final;
  void access(std::span<const PageIndex> chain_root_first, uint64_t now_ms) final;
  void erase(PageIndex page, EraseReason reason) final;
  PageIndex victim(PagePredicate is_evictable, uint64_t now_ms) final;
  size_t page_count() const final { return pages_.page_count(); }
  uint64_t resident_size_bytes() const final { return resident_size_bytes_; }
  size_t memory_size_bytes() const final;
  std::string check_invariants() const final;

 protected:
  // The policy's part.  These may change `order` and `mark`: a candidate is taken out of its order
  // before, and put back after.
  virtual void on_insert(PageIndex page) = 0;
  virtual void on_access(PageIndex page) = 0;
  // Before the uses of an access: its last page, below which a put may follow.
  virtual void on_chain_end(PageIndex) {}
  virtual void on_erase(PageIndex page, EraseReason reason) = 0;
  // Got its first child, or, being a leaf, a newer sibling.
  virtual void on_family_change(PageIndex) {}
  virtual void add_candidate(PageIndex page) = 0;
  virtual void remove_candidate(PageIndex page) = 0;
  virtual PageIndex next_candidate() = 0;  // stays a candidate; kNoPage if there is none
  virtual size_t policy_memory_size_bytes() const = 0;
  virtual size_t candidate_count() const = 0;
  virtual std::string check_policy() const = 0;

  PagePlace place_of(PageIndex page) const { return static_cast<PagePlace>(pages_[page].place); }

  PageLinks pages_;

 private:
  // Leaves set aside, oldest first, linked through the records.
  struct ParkedList {
    PageIndex first = kNoPage;
    PageIndex last = kNoPage;
    size_t count = 0;
  };

  void set_place(PageIndex page, PagePlace place) {
    pages_[page].place = static_cast<uint64_t>(place);
  }
  void enter_order(PageIndex page);
  void leave_order(PageIndex page);
  template <typename Change>
  void reorder(PageIndex page, Change change);
  void park(PageIndex page);
  void unpark(ParkedList& list, PageIndex page);
  void recheck_parked(ParkedList& list, PagePredicate is_evictable, size_t count_max);
  PageIndex next_evictable(ParkedList& list, PagePredicate is_evictable);
  PageIndex next_soft() const { return soft_.is_empty() ? kNoPage : soft_.top(); }
  PageIndex inner_victim(PagePredicate is_evictable) const;
  PageIndex lowest_evictable(PageIndex top, PagePredicate is_evictable,
                             std::vector<bool>& is_visited) const;

  PageHeap soft_;
  ParkedList parked_;
  ParkedList soft_parked_;
  uint64_t resident_size_bytes_ = 0;
};

std::unique_ptr<Eviction> make_lru_eviction();
std::unique_ptr<Eviction> make_s3fifo_eviction(uint64_t capacity_bytes);
std::unique_ptr<Eviction> make_adaptive_eviction(uint64_t capacity_bytes);

}  // namespace hicache
