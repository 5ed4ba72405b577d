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
  void add(PageIndex page, uint64_t size_bytes, PageGroup group) {
    order_.push_back({page, size_bytes, kNoGroup, {}});
    places_[page] = std::prev(order_.end());
    size_bytes_ += size_bytes;
    enter(order_.back(), group);
  }

  /// Requires: it is among them.
  void remove(PageIndex page) {
    const auto place = places_.find(page);
    leave(*place->second);
    size_bytes_ -= place->second->size_bytes;
    order_.erase(place->second);
    places_.erase(place);
  }

  /// Requires: it is among them.
  void set_group(PageIndex page, PageGroup group) {
    Spare& spare = *places_.at(page);
    if (spare.group == group) return;
    leave(spare);
    enter(spare, group);
  }

  /// The one that goes next, or kNoPage.
  PageIndex first() const { return order_.empty() ? kNoPage : order_.front().page; }
  /// The same of one group.
  PageIndex first_of(PageGroup group) const {
    const auto found = groups_.find(group);
    return found == groups_.end() ? kNoPage : found->second.order.front();
  }
  bool contains(PageIndex page) const { return places_.contains(page); }
  size_t count() const { return order_.size(); }
  uint64_t size_bytes() const { return size_bytes_; }
  uint64_t size_bytes_of(PageGroup group) const {
    const auto found = groups_.find(group);
    return found == groups_.end() ? 0 : found->second.size_bytes;
  }
  /// As nodes of the usual containers take it.
  size_t memory_size_bytes() const {
    return order_.size() * (sizeof(Spare) + 8 * sizeof(void*)) +
           places_.bucket_count() * sizeof(void*);
  }

 private:
  struct Spare {
    PageIndex page;
    uint64_t size_bytes;
    PageGroup group;
    std::list<PageIndex>::iterator in_group;  // Without a group: nothing.
  };
  /// Is there while it has pages.
  struct Group {
    std::list<PageIndex> order;
    uint64_t size_bytes = 0;
  };

  void enter(Spare& spare, PageGroup group) {
    spare.group = group;
    if (group == kNoGroup) return;
    Group& entered = groups_[group];
    entered.size_bytes += spare.size_bytes;
    spare.in_group = entered.order.insert(entered.order.end(), spare.page);
  }

  void leave(const Spare& spare) {
    if (spare.group == kNoGroup) return;
    const auto found = groups_.find(spare.group);
    found->second.size_bytes -= spare.size_bytes;
    found->second.order.erase(spare.in_group);
    if (found->second.order.empty()) groups_.erase(found);
  }

  std::list<Spare> order_;
  std::unordered_map<PageIndex, std::list<Spare>::iterator> places_;
  std::unordered_map<PageGroup, Group> groups_;
  uint64_t size_bytes_ = 0;
};

}  // namespace hicache
