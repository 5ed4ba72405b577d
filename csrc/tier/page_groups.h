// For each group of pages, those that wait to be evicted: least recently used first, and leaves
// before pages with children, unpinned before soft-pinned.  O(1), 12 bytes per page once there is a
// group, none before.  Pure; one owner, not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "tier/page_links.h"

namespace hicache {

class PageGroups {
 public:
  enum class End : uint8_t { kFirst, kLast };

  /// It waits nowhere.  Groups of pages are forgotten by giving them kNoGroup.
  void assign(PageIndex page, PageGroup group) {
    if (group == kNoGroup && !has(page)) return;
    while ((page >> kPieceBits) >= pieces_.size()) {
      pieces_.push_back(std::make_unique<Place[]>(kPieceCount));
    }
    place(page).group = group;
    if (group != kNoGroup && group >= groups_.size()) groups_.resize(group + 1);
  }

  /// It waits at `place`, which is one that a policy orders.
  void enter(PageIndex page, PagePlace place, End end);
  void leave(PageIndex page, PagePlace place);
  /// It was used.  Requires: it waits at `place`, if it has a group.
  void touch(PageIndex page, PagePlace place) {
    leave(page, place);
    enter(page, place, End::kLast);
  }

  /// The page of the group to ask next, or kNoPage.
  PageIndex first(PageGroup group) const;

  PageGroup group_of(PageIndex page) const { return has(page) ? place(page).group : kNoGroup; }
  size_t memory_size_bytes() const {
    return pieces_.size() * kPieceCount * sizeof(Place) + pieces_.capacity() * sizeof(pieces_[0]) +
           groups_.capacity() * sizeof(Group);
  }
  /// What is inconsistent with where the pages wait, or "" (slow; for tests).
  std::string check_invariants(const PageLinks& pages) const;

 private:
  struct Place {
    PageGroup group = kNoGroup;
    PageIndex previous = kNoPage;
    PageIndex next = kNoPage;
  };
  struct Queue {
    PageIndex first = kNoPage;
    PageIndex last = kNoPage;
  };
  static constexpr size_t kRankCount = 4;
  using Group = std::array<Queue, kRankCount>;

  static constexpr int kPieceBits = 12;
  static constexpr size_t kPieceCount = size_t{1} << kPieceBits;

  /// Which queue of a group such pages wait in; kRankCount: none.
  static size_t rank_of(PagePlace place);
  bool has(PageIndex page) const { return (page >> kPieceBits) < pieces_.size(); }
  Place& place(PageIndex page) { return pieces_[page >> kPieceBits][page % kPieceCount]; }
  const Place& place(PageIndex page) const {
    return pieces_[page >> kPieceBits][page % kPieceCount];
  }

  std::vector<std::unique_ptr<Place[]>> pieces_;
  std::vector<Group> groups_;
};

}  // namespace hicache
