// What all eviction policies share: the tree, which pages may be named, and those set aside.
//
//   inner --(nothing below is open)--> candidate --(asked, not evictable)--> closed
//     ^                                 |  ^                                   |
//     +------(something below is)-------+  +--------(note_evictable())---------+
//
// A policy orders the unpinned leaves among the candidates; soft-pinned leaves wait in a heap of
// their own, in the order of last use; those with children in lists.  Whoever waits in one of these
// orders waits in a queue of its group as well, if it has one.  Pure; one owner, not thread-safe.
#pragma once

#include <string>

#include "tier/eviction.h"
#include "tier/page_groups.h"
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
  PageIndex victim_of(PageGroup group, PagePredicate is_evictable) final;
  void set_group(PageIndex page, PageGroup group) final;
  void note_evictable(PageIndex page) final;
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
  // Of pages with children, those that came first at the front; linked through the records.
  struct AboveList {
    PageIndex first = kNoPage;
    PageIndex last = kNoPage;
    size_t count = 0;
  };

  void set_place(PageIndex page, PagePlace place) {
    pages_[page].place = static_cast<uint64_t>(place);
  }
  bool is_closed(PageIndex page) const { return place_of(page) == PagePlace::kClosed; }
  AboveList& above_of(PageIndex page) { return pages_[page].is_soft_pinned ? soft_above_ : above_; }
  uint32_t open_children(PageIndex page) const;
  static bool is_ordered(PagePlace place);
  void enter_order(PageIndex page, PageGroups::End end = PageGroups::End::kLast);
  void leave_order(PageIndex page);
  /// The same without the queues of groups.
  void enter_queue(PageIndex page);
  void leave_queue(PageIndex page);
  /// While a leaf changes it waits nowhere. `is_use`: it was used.
  template <typename Change>
  void reorder(PageIndex page, bool is_use, Change change);
  /// It is not evictable.
  void close(PageIndex page);
  void push(AboveList& list, PageIndex page);
  void unlink(AboveList& list, PageIndex page);
  // A child of `page` opened, or came; closed, or left.
  void after_open(PageIndex page);
  void after_close(PageIndex page);
  PageIndex next_to_ask();

  PageHeap soft_;
  AboveList above_;
  AboveList soft_above_;
  PageGroups groups_;
  uint64_t resident_size_bytes_ = 0;
};

std::unique_ptr<Eviction> make_lru_eviction();
std::unique_ptr<Eviction> make_s3fifo_eviction(uint64_t capacity_bytes);
std::unique_ptr<Eviction> make_adaptive_eviction(uint64_t capacity_bytes);

}  // namespace hicache
