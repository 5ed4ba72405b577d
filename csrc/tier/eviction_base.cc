#include "tier/eviction_base.h"

#include <cassert>

namespace hicache {

bool EvictionBase::is_ordered(PagePlace place) {
  return place == PagePlace::kCandidate || place == PagePlace::kSoftCandidate ||
         place == PagePlace::kAbove || place == PagePlace::kSoftAbove;
}

void EvictionBase::enter_queue(PageIndex page) {
  const bool is_soft = pages_[page].is_soft_pinned;
  if (!pages_.is_leaf(page)) {
    set_place(page, is_soft ? PagePlace::kSoftAbove : PagePlace::kAbove);
    push(above_of(page), page);
  } else if (is_soft) {
    set_place(page, PagePlace::kSoftCandidate);
    soft_.push(page);
  } else {
    set_place(page, PagePlace::kCandidate);
    add_candidate(page);
  }
}

// Its place is kInner then, for the caller to change or to count its open children.
void EvictionBase::leave_queue(PageIndex page) {
  switch (place_of(page)) {
    case PagePlace::kCandidate:
      remove_candidate(page);
      break;
    case PagePlace::kSoftCandidate:
      soft_.remove(page);
      break;
    case PagePlace::kAbove:
    case PagePlace::kSoftAbove:
      unlink(above_of(page), page);
      break;
    case PagePlace::kInner:
    case PagePlace::kClosed:
    case PagePlace::kAbsent:
      break;
  }
  set_place(page, PagePlace::kInner);
}

void EvictionBase::enter_order(PageIndex page, PageGroups::End end) {
  enter_queue(page);
  groups_.enter(page, place_of(page), end);
}

void EvictionBase::leave_order(PageIndex page) {
  if (is_ordered(place_of(page))) groups_.leave(page, place_of(page));
  leave_queue(page);
}

template <typename Change>
void EvictionBase::reorder(PageIndex page, bool is_use, Change change) {
  const PagePlace place = place_of(page);
  const bool is_waiting = place == PagePlace::kCandidate || place == PagePlace::kSoftCandidate;
  if (is_waiting) leave_queue(page);
  change(page);
  if (!is_waiting) return;
  enter_queue(page);
  if (is_use) groups_.touch(page, place);
}

void EvictionBase::push(AboveList& list, PageIndex page) {
  LinkedPage& record = pages_[page];
  record.queue_prev = list.last;
  record.queue_next = kNoPage;
  (list.last == kNoPage ? list.first : pages_[list.last].queue_next) = page;
  list.last = page;
  ++list.count;
}

void EvictionBase::unlink(AboveList& list, PageIndex page) {
  const LinkedPage& record = pages_[page];
  (list.first == page ? list.first : pages_[record.queue_prev].queue_next) = record.queue_next;
  (list.last == page ? list.last : pages_[record.queue_next].queue_prev) = record.queue_prev;
  --list.count;
}

uint32_t EvictionBase::open_children(PageIndex page) const {
  uint32_t count = 0;
  for (PageIndex child = pages_[page].first_child; child != kNoPage;
       child = pages_[child].next_sibling) {
    count += !is_closed(child);
  }
  return count;
}

void EvictionBase::after_open(PageIndex page) {
  while (page != kNoPage) {
    if (place_of(page) == PagePlace::kInner) {
      ++pages_[page].queue_next;
      return;
    }
    const bool was_closed = is_closed(page);
    leave_order(page);
    pages_[page].queue_next = 1;
    if (!was_closed) return;
    page = pages_.parent(page);
  }
}

void EvictionBase::after_close(PageIndex page) {
  for (; page != kNoPage; page = pages_.parent(page)) {
    if (--pages_[page].queue_next != 0) return;
    // The chain goes on from where a page left.
    if (!pages_[page].is_refused) return enter_order(page, PageGroups::End::kFirst);
    set_place(page, PagePlace::kClosed);
  }
}

void EvictionBase::insert(PageIndex page, const PageTraits& traits, uint64_t) {
  pages_.add(page, traits);
  groups_.assign(page, traits.group);
  resident_size_bytes_ += traits.size_bytes;
  const PageIndex parent = pages_.parent(page);
  if (parent != kNoPage) {
    after_open(parent);
    on_family_change(parent);
    const PageIndex sibling = pages_[page].next_sibling;
    if (sibling != kNoPage && pages_.is_leaf(sibling)) {
      reorder(sibling, false, [this](PageIndex leaf) { on_family_change(leaf); });
    }
  }
  on_insert(page);
  const uint32_t open_count = open_children(page);
  if (open_count == 0) return enter_order(page);
  pages_[page].queue_next = open_count;
}

// From the leaf up: the root is used last, and so leaves last.
void EvictionBase::access(std::span<const PageIndex> chain_root_first, uint64_t) {
  if (!chain_root_first.empty()) on_chain_end(chain_root_first.back());
  for (size_t i = chain_root_first.size(); i-- > 0;) {
    const PageIndex page = chain_root_first[i];
    assert(pages_.is_resident(page));
    reorder(page, true, [this](PageIndex used) { on_access(used); });
  }
}

void EvictionBase::erase(PageIndex page, EraseReason reason) {
  assert(pages_.is_resident(page));
  const PageIndex parent = pages_.parent(page);
  const bool was_open = !is_closed(page);
  leave_order(page);
  on_erase(page, reason);
  resident_size_bytes_ -= pages_[page].size_bytes;
  pages_.remove(page);
  if (parent == kNoPage) return;
  if (was_open) return after_close(parent);
  const PagePlace place = place_of(parent);
  const bool is_above = place == PagePlace::kAbove || place == PagePlace::kSoftAbove;
  if (!is_above || !pages_.is_leaf(parent)) return;
  leave_order(parent);
  enter_order(parent, PageGroups::End::kFirst);
}

PageIndex EvictionBase::next_to_ask() {
  const PageIndex leaf = next_candidate();
  if (leaf != kNoPage) return leaf;
  if (!soft_.is_empty()) return soft_.top();
  return above_.first != kNoPage ? above_.first : soft_above_.first;
}

PageIndex EvictionBase::victim(PagePredicate is_evictable, uint64_t) {
  while (true) {
    const PageIndex page = next_to_ask();
    if (page == kNoPage || is_evictable(page)) return page;
    close(page);
  }
}

PageIndex EvictionBase::victim_of(PageGroup group, PagePredicate is_evictable) {
  while (true) {
    const PageIndex page = groups_.first(group);
    if (page == kNoPage || is_evictable(page)) return page;
    close(page);
  }
}

void EvictionBase::close(PageIndex page) {
  leave_order(page);
  pages_[page].is_refused = 1;
  set_place(page, PagePlace::kClosed);
  after_close(pages_.parent(page));
}

void EvictionBase::set_group(PageIndex page, PageGroup group) {
  assert(pages_.is_resident(page));
  if (groups_.group_of(page) == group) return;
  const PagePlace place = place_of(page);
  if (is_ordered(place)) groups_.leave(page, place);
  groups_.assign(page, group);
  if (is_ordered(place)) groups_.enter(page, place, PageGroups::End::kLast);
}

void EvictionBase::note_evictable(PageIndex page) {
  if (!pages_.is_resident(page) || !pages_[page].is_refused) return;
  pages_[page].is_refused = 0;
  if (!is_closed(page)) return;  // Something below it is open: that goes first.
  enter_order(page);
  after_open(pages_.parent(page));
}

size_t EvictionBase::memory_size_bytes() const {
  return sizeof(*this) + pages_.memory_size_bytes() + soft_.memory_size_bytes() +
         groups_.memory_size_bytes() + policy_memory_size_bytes();
}

std::string EvictionBase::check_invariants() const {
  std::string wrong = pages_.check_invariants();
  if (!wrong.empty()) return wrong;
  wrong = soft_.check_invariants();
  if (!wrong.empty()) return wrong;
  uint64_t size_bytes = 0;
  size_t count[8] = {};
  for (PageIndex page = 0; page < pages_.index_end(); ++page) {
    if (!pages_.is_resident(page)) continue;
    const LinkedPage& record = pages_[page];
    size_bytes += record.size_bytes;
    ++count[record.place];
    const PagePlace place = place_of(page);
    const uint32_t open_count = open_children(page);
    const bool is_leaf = pages_.is_leaf(page);
    const bool is_candidate = place == PagePlace::kCandidate || place == PagePlace::kSoftCandidate;
    if ((open_count != 0) != (place == PagePlace::kInner) ||
        (open_count != 0 && open_count != record.queue_next) ||
        (open_count == 0 && record.is_refused != is_closed(page)) || (is_candidate && !is_leaf) ||
        (is_leaf && !is_candidate && !is_closed(page))) {
      return "page " + std::to_string(page) + " is in the wrong place";
    }
    const bool is_soft = place == PagePlace::kSoftCandidate || place == PagePlace::kSoftAbove;
    const bool is_waiting = is_candidate || is_soft || place == PagePlace::kAbove;
    if (is_waiting && is_soft != record.is_soft_pinned) {
      return "page " + std::to_string(page) + " is on the wrong side of the soft pin";
    }
  }
  if (size_bytes != resident_size_bytes_) return "resident size is wrong";
  if (count[static_cast<int>(PagePlace::kCandidate)] != candidate_count()) {
    return "candidate count is wrong";
  }
  if (count[static_cast<int>(PagePlace::kSoftCandidate)] != soft_.count() ||
      count[static_cast<int>(PagePlace::kAbove)] != above_.count ||
      count[static_cast<int>(PagePlace::kSoftAbove)] != soft_above_.count) {
    return "waiting count is wrong";
  }
  wrong = groups_.check_invariants(pages_);
  return wrong.empty() ? check_policy() : wrong;
}

}  // namespace hicache
