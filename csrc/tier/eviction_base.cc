#include "tier/eviction_base.h"

#include <algorithm>
#include <cassert>

namespace hicache {
namespace {

// Pages set aside that one victim() asks again.  Two, so that leases that ended are found again
// about as fast as leaves can be parked.
constexpr size_t kRechecksPerVictim = 2;

}  // namespace

void EvictionBase::enter_order(PageIndex page) {
  if (pages_[page].is_soft_pinned) {
    set_place(page, PagePlace::kSoftCandidate);
    soft_.push(page);
  } else {
    set_place(page, PagePlace::kCandidate);
    add_candidate(page);
  }
}

void EvictionBase::leave_order(PageIndex page) {
  switch (place_of(page)) {
    case PagePlace::kCandidate:
      remove_candidate(page);
      break;
    case PagePlace::kSoftCandidate:
      soft_.remove(page);
      break;
    case PagePlace::kParked:
      unpark(parked_, page);
      break;
    case PagePlace::kSoftParked:
      unpark(soft_parked_, page);
      break;
    case PagePlace::kInner:
    case PagePlace::kAbsent:
      break;
  }
  set_place(page, PagePlace::kInner);
}

template <typename Change>
void EvictionBase::reorder(PageIndex page, Change change) {
  const PagePlace place = place_of(page);
  const bool is_ordered = place == PagePlace::kCandidate || place == PagePlace::kSoftCandidate;
  if (is_ordered) leave_order(page);
  change(page);
  if (is_ordered) enter_order(page);
}

void EvictionBase::park(PageIndex page) {
  leave_order(page);
  LinkedPage& record = pages_[page];
  ParkedList& list = record.is_soft_pinned ? soft_parked_ : parked_;
  set_place(page, record.is_soft_pinned ? PagePlace::kSoftParked : PagePlace::kParked);
  record.queue_prev = list.last;
  record.queue_next = kNoPage;
  (list.last == kNoPage ? list.first : pages_[list.last].queue_next) = page;
  list.last = page;
  ++list.count;
}

void EvictionBase::unpark(ParkedList& list, PageIndex page) {
  const LinkedPage& record = pages_[page];
  (list.first == page ? list.first : pages_[record.queue_prev].queue_next) = record.queue_next;
  (list.last == page ? list.last : pages_[record.queue_next].queue_prev) = record.queue_prev;
  --list.count;
}

// Asks the pages longest set aside; those that are evictable go back to their order.
void EvictionBase::recheck_parked(ParkedList& list, PagePredicate is_evictable, size_t count_max) {
  for (size_t left = std::min(count_max, list.count); left > 0; --left) {
    const PageIndex page = list.first;
    if (is_evictable(page)) {
      leave_order(page);
      enter_order(page);
    } else {
      park(page);  // To the end.
    }
  }
}

void EvictionBase::insert(PageIndex page, const PageTraits& traits, uint64_t) {
  pages_.add(page, traits);
  resident_size_bytes_ += traits.size_bytes;
  const PageIndex parent = pages_.parent(page);
  if (parent != kNoPage) {
    leave_order(parent);
    on_family_change(parent);
    const PageIndex sibling = pages_[page].next_sibling;
    if (sibling != kNoPage && pages_.is_leaf(sibling)) {
      reorder(sibling, [this](PageIndex leaf) { on_family_change(leaf); });
    }
  }
  on_insert(page);
  if (pages_.is_leaf(page)) enter_order(page);
}

// From the leaf up: the root is used last, and so leaves last.
void EvictionBase::access(std::span<const PageIndex> chain_root_first, uint64_t) {
  if (!chain_root_first.empty()) on_chain_end(chain_root_first.back());
  for (size_t i = chain_root_first.size(); i-- > 0;) {
    const PageIndex page = chain_root_first[i];
    assert(pages_.is_resident(page));
    reorder(page, [this](PageIndex used) { on_access(used); });
  }
}

void EvictionBase::erase(PageIndex page, EraseReason reason) {
  assert(pages_.is_resident(page));
  const PageIndex parent = pages_.parent(page);
  leave_order(page);
  on_erase(page, reason);
  resident_size_bytes_ -= pages_[page].size_bytes;
  pages_.remove(page);
  if (parent != kNoPage && pages_.is_leaf(parent)) enter_order(parent);
}

PageIndex EvictionBase::next_evictable(ParkedList& list, PagePredicate is_evictable) {
  const bool is_soft = &list == &soft_parked_;
  recheck_parked(list, is_evictable, kRechecksPerVictim);
  for (bool is_last = false;; is_last = true) {
    for (PageIndex page = is_soft ? next_soft() : next_candidate(); page != kNoPage;
         page = is_soft ? next_soft() : next_candidate()) {
      if (is_evictable(page)) return page;
      park(page);
    }
    if (is_last) return kNoPage;
    recheck_parked(list, is_evictable, list.count);
  }
}

PageIndex EvictionBase::victim(PagePredicate is_evictable, uint64_t) {
  PageIndex page = next_evictable(parked_, is_evictable);
  if (page == kNoPage) page = next_evictable(soft_parked_, is_evictable);
  if (page == kNoPage) page = inner_victim(is_evictable);
  return page;
}

// No leaf is evictable: every evictable page is above a parked leaf.  Each page is looked at a
// bounded number of times.
PageIndex EvictionBase::inner_victim(PagePredicate is_evictable) const {
  const size_t leaf_count = parked_.count + soft_parked_.count;
  if (leaf_count == pages_.page_count()) return kNoPage;
  std::vector<bool> is_visited(pages_.index_end());
  PageIndex soft_pinned = kNoPage;
  for (const ParkedList* list : {&parked_, &soft_parked_}) {
    for (PageIndex leaf = list->first; leaf != kNoPage; leaf = pages_[leaf].queue_next) {
      for (PageIndex up = pages_.parent(leaf); up != kNoPage && !is_visited[up];
           up = pages_.parent(up)) {
        is_visited[up] = true;
        if (!is_evictable(up)) continue;
        const PageIndex lowest = lowest_evictable(up, is_evictable, is_visited);
        if (!pages_[lowest].is_soft_pinned) return lowest;
        soft_pinned = lowest;
        break;
      }
    }
  }
  return soft_pinned;
}

// An evictable page at or below `top`, which is evictable, with no evictable page below it.
PageIndex EvictionBase::lowest_evictable(PageIndex top, PagePredicate is_evictable,
                                         std::vector<bool>& is_visited) const {
  PageIndex page = top;
  while (true) {  // Down to the first leaf, then children before their parent.
    while (pages_[page].first_child != kNoPage) page = pages_[page].first_child;
    while (page != top) {
      is_visited[page] = true;
      if (is_evictable(page)) return page;
      if (pages_[page].next_sibling != kNoPage) break;
      page = pages_.parent(page);
    }
    if (page == top) return top;
    page = pages_[page].next_sibling;
  }
}

size_t EvictionBase::memory_size_bytes() const {
  return sizeof(*this) + pages_.memory_size_bytes() + soft_.memory_size_bytes() +
         policy_memory_size_bytes();
}

std::string EvictionBase::check_invariants() const {
  std::string wrong = pages_.check_invariants();
  if (!wrong.empty()) return wrong;
  wrong = soft_.check_invariants();
  if (!wrong.empty()) return wrong;
  uint64_t size_bytes = 0;
  size_t count[6] = {};
  for (PageIndex page = 0; page < pages_.index_end(); ++page) {
    if (!pages_.is_resident(page)) continue;
    size_bytes += pages_[page].size_bytes;
    ++count[pages_[page].place];
    const PagePlace place = place_of(page);
    if (pages_.is_leaf(page) == (place == PagePlace::kInner)) {
      return "page " + std::to_string(page) + " is in the wrong place";
    }
    const bool is_soft = place == PagePlace::kSoftCandidate || place == PagePlace::kSoftParked;
    if (place != PagePlace::kInner && is_soft != pages_[page].is_soft_pinned) {
      return "page " + std::to_string(page) + " is on the wrong side of the soft pin";
    }
  }
  if (size_bytes != resident_size_bytes_) return "resident size is wrong";
  if (count[static_cast<int>(PagePlace::kCandidate)] != candidate_count()) {
    return "candidate count is wrong";
  }
  if (count[static_cast<int>(PagePlace::kSoftCandidate)] != soft_.count() ||
      count[static_cast<int>(PagePlace::kParked)] != parked_.count ||
      count[static_cast<int>(PagePlace::kSoftParked)] != soft_parked_.count) {
    return "waiting count is wrong";
  }
  return check_policy();
}

}  // namespace hicache
