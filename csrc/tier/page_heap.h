// Leaves by LinkedPage::order, smallest first; the order of a page may change while it waits here
// if moved() is called.  O(log n).  Pure.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "tier/page_links.h"

namespace hicache {

class PageHeap {
 public:
  explicit PageHeap(PageLinks& links) : links_(links) {}

  bool is_empty() const { return pages_.empty(); }
  PageIndex top() const { return pages_.front(); }
  size_t count() const { return pages_.size(); }

  void push(PageIndex page) {
    // In smaller steps than a vector's own: memory per page is bounded right after growth, too.
    if (pages_.size() == pages_.capacity()) pages_.reserve(pages_.size() * 5 / 4 + 64);
    pages_.push_back(page);
    sift_up(pages_.size() - 1, page);
  }

  void remove(PageIndex page) {
    const size_t position = links_[page].queue_next;
    const PageIndex last = pages_.back();
    pages_.pop_back();
    if (last != page) {
      put(position, last);
      moved(last);
    }
    // A burst of leaves must not hold its memory for ever.
    if (pages_.capacity() > 1024 && pages_.size() < pages_.capacity() / 4) pages_.shrink_to_fit();
  }

  void moved(PageIndex page) { sift_down(sift_up(links_[page].queue_next, page), page); }

  size_t memory_size_bytes() const { return pages_.capacity() * sizeof(PageIndex); }

  std::string check_invariants() const {
    for (size_t i = 0; i < pages_.size(); ++i) {
      if (links_[pages_[i]].queue_next != i) return "heap position is wrong";
      if (i > 0 && is_before(pages_[i], pages_[(i - 1) / 2])) return "heap order is wrong";
    }
    return "";
  }

 private:
  bool is_before(PageIndex a, PageIndex b) const { return links_[a].order < links_[b].order; }

  void put(size_t position, PageIndex page) {
    pages_[position] = page;
    links_[page].queue_next = static_cast<uint32_t>(position);
  }

  size_t sift_up(size_t position, PageIndex page) {
    while (position > 0 && is_before(page, pages_[(position - 1) / 2])) {
      put(position, pages_[(position - 1) / 2]);
      position = (position - 1) / 2;
    }
    put(position, page);
    return position;
  }

  void sift_down(size_t position, PageIndex page) {
    while (true) {
      size_t child = 2 * position + 1;
      if (child >= pages_.size()) break;
      if (child + 1 < pages_.size() && is_before(pages_[child + 1], pages_[child])) ++child;
      if (!is_before(pages_[child], page)) break;
      put(position, pages_[child]);
      position = child;
    }
    put(position, page);
  }

  PageLinks& links_;
  std::vector<PageIndex> pages_;
};

}  // namespace hicache
