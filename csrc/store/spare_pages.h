// Pages of the pool that can go at once, first come first gone: they are on an SSD already, or not
// worth an SSD's wear. Until their room is needed they are read like all others. O(1). Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>

#include "tier/eviction.h"

namespace hicache {

class SparePages {
 public:
  /// Requires: it is not among them.
  void add(PageIndex page, uint64_t size_bytes) {
    order_.push_back({page, size_bytes});
    places_[page] = std::prev(order_.end());
    size_bytes_ += size_bytes;
  }

  /// Requires: it is among them.
  void remove(PageIndex page) {
    const auto place = places_.find(page);
    size_bytes_ -= place->second->size_bytes;
    order_.erase(place->second);
    places_.erase(place);
  }

  /// The one that goes next, or kNoPage.
  PageIndex first() const { return order_.empty() ? kNoPage : order_.front().page; }
  bool contains(PageIndex page) const { return places_.contains(page); }
  size_t count() const { return order_.size(); }
  uint64_t size_bytes() const { return size_bytes_; }
  /// As nodes of the usual containers take it.
  size_t memory_size_bytes() const {
    return order_.size() * (sizeof(Spare) + 8 * sizeof(void*)) +
           places_.bucket_count() * sizeof(void*);
  }

 private:
  struct Spare {
    PageIndex page;
    uint64_t size_bytes;
  };

  std::list<Spare> order_;
  std::unordered_map<PageIndex, std::list<Spare>::iterator> places_;
  uint64_t size_bytes_ = 0;
};

}  // namespace hicache
