#include "tier/page_groups.h"

namespace hicache {

size_t PageGroups::rank_of(PagePlace place) {
  switch (place) {
    case PagePlace::kCandidate:
      return 0;
    case PagePlace::kSoftCandidate:
      return 1;
    case PagePlace::kAbove:
      return 2;
    case PagePlace::kSoftAbove:
      return 3;
    case PagePlace::kAbsent:
    case PagePlace::kInner:
    case PagePlace::kClosed:
      break;
  }
  return kRankCount;
}

void PageGroups::enter(PageIndex page, PagePlace at, End end) {
  const PageGroup group = group_of(page);
  if (group == kNoGroup) return;
  Queue& queue = groups_[group][rank_of(at)];
  Place& own = place(page);
  const bool is_last = end == End::kLast;
  own.previous = is_last ? queue.last : kNoPage;
  own.next = is_last ? kNoPage : queue.first;
  (own.previous == kNoPage ? queue.first : place(own.previous).next) = page;
  (own.next == kNoPage ? queue.last : place(own.next).previous) = page;
}

void PageGroups::leave(PageIndex page, PagePlace at) {
  const PageGroup group = group_of(page);
  if (group == kNoGroup) return;
  Queue& queue = groups_[group][rank_of(at)];
  const Place& own = place(page);
  (own.previous == kNoPage ? queue.first : place(own.previous).next) = own.next;
  (own.next == kNoPage ? queue.last : place(own.next).previous) = own.previous;
}

PageIndex PageGroups::first(PageGroup group) const {
  if (group >= groups_.size()) return kNoPage;
  for (const Queue& queue : groups_[group]) {
    if (queue.first != kNoPage) return queue.first;
  }
  return kNoPage;
}

std::string PageGroups::check_invariants(const PageLinks& pages) const {
  size_t waiting = 0;
  for (PageGroup group = 0; group < groups_.size(); ++group) {
    for (size_t rank = 0; rank < kRankCount; ++rank) {
      const Queue& queue = groups_[group][rank];
      PageIndex before = kNoPage;
      for (PageIndex page = queue.first; page != kNoPage; page = place(page).next) {
        if (place(page).previous != before || place(page).group != group ||
            !pages.is_resident(page) ||
            rank_of(static_cast<PagePlace>(pages[page].place)) != rank) {
          return "page " + std::to_string(page) + " waits in the wrong queue of its group";
        }
        before = page;
        ++waiting;
      }
      if (queue.last != before) return "the last of a group's queue is wrong";
    }
  }
  for (PageIndex page = 0; page < pages.index_end(); ++page) {
    if (!pages.is_resident(page) || group_of(page) == kNoGroup) continue;
    waiting -= rank_of(static_cast<PagePlace>(pages[page].place)) != kRankCount;
  }
  return waiting == 0 ? "" : "pages are missing from the queues of their groups";
}

}  // namespace hicache
