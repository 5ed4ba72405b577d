// PageStore's self-description: gauges for operators, invariants for tests.
#include <algorithm>

#include "store/page_store.h"

namespace hicache {

NodeStats PageStore::stats() const {
  NodeStats stats = counts_;
  stats.pool_size_bytes = options_.capacity_bytes;
  stats.pool_grown_bytes = allocator_.size_bytes();
  stats.pool_used_bytes = allocator_.used_bytes();
  stats.pool_waste_bytes = allocator_.waste_bytes();
  stats.pool_reserved_bytes = reserved_bytes_;
  stats.pool_held_bytes = held_bytes_;
  stats.pool_spare_bytes = spares_.size_bytes();
  stats.pinned_bytes = pinned_bytes_;
  stats.pages = table_.count();
  stats.namespaces = namespace_count_;
  stats.clients = sessions_.size() - free_sessions_.size() - 1;  // Without our own.
  stats.leases = leases_.count();
  stats.leased_bytes = lookup_leased_bytes_;
  stats.index_size_bytes = table_.memory_size_bytes() + records_.memory_size_bytes() +
                           leases_.memory_size_bytes() + eviction_->memory_size_bytes() +
                           spares_.memory_size_bytes() + extent_heap_bytes_;
  return stats;
}

std::vector<PageStore::NamespaceUse> PageStore::namespace_use(size_t count_max) const {
  std::vector<std::pair<uint64_t, NamespaceIndex>> order;  // Without the texts: there may be many.
  for (NamespaceIndex i = 0; i < namespaces_.size(); ++i) {
    if (!has_namespace(i)) continue;
    order.emplace_back(UINT64_MAX - spaces_.at(namespaces_[i].space).size_bytes, i);
  }
  count_max = std::min(count_max, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(count_max), order.end());
  order.resize(count_max);
  std::vector<NamespaceUse> use;
  for (const auto& [unused, i] : order) {
    const Space& pages = spaces_.at(namespaces_[i].space);
    use.push_back({namespaces_[i].digest, namespaces_[i].description, namespaces_[i].space,
                   pages.count, pages.size_bytes, tenants_[pages.tenant].name});
  }
  return use;
}

PageIndex PageStore::list(NamespaceIndex index, PageIndex first, size_t count_max, uint64_t now_ms,
                          std::vector<Key>& keys) const {
  const SpaceIndex space = namespaces_[index].space;
  const size_t end = std::min<size_t>(records_.size(), first + count_max);
  PageIndex page = first;
  for (; page < end; ++page) {
    const PageRecord& record = records_[page];
    const bool is_listed = record.state == PageState::kPresent && record.space == space &&
                           !(record.has_expiry && record.expires_ms <= now_ms);
    if (is_listed) keys.push_back(record.key);
  }
  return page < records_.size() ? page : kNoPage;
}

std::string PageStore::check_invariants() const {
  uint64_t held = 0;
  uint64_t reserved = 0;
  uint64_t pinned = 0;
  uint64_t replicated = 0;
  uint64_t used = 0;
  uint64_t present = 0;
  uint64_t spare = 0;
  for (PageIndex page = 0; page < records_.size(); ++page) {
    const PageRecord& record = records_[page];
    if (record.state == PageState::kFree) continue;
    used += record.size;
    if (record.is_held) held += SlotAllocator::footprint(record.size);
    if (record.state == PageState::kReserved) reserved += record.size;
    if (record.pin == Pin::kHard) pinned += record.size;
    replicated += record.state == PageState::kPresent && record.replica_count > 1;
    uint64_t extents = 0;
    for (const Extent& extent : record.extents.span()) extents += extent.size;
    if (extents != record.size) return "the extents of a page do not add up to its size";
    const bool must_hold = record.state != PageState::kPresent || record.leases != kNoLease ||
                           record.pin == Pin::kHard || record.is_kept;
    if (must_hold != record.is_held) return "a page's held flag is wrong";
    if (record.state == PageState::kCondemned && record.leases == kNoLease) {
      return "a condemned page without leases was kept";
    }
    if (record.is_spare != spares_.contains(page)) return "a page's spare flag is wrong";
    if (record.is_spare) spare += SlotAllocator::footprint(record.size);
    if (record.is_spare && record.is_held) return "a spare page is held";
    if (record.state != PageState::kPresent) continue;
    ++present;
    if (find(record.space, record.key, hash_of(page)) != page) return "a page is not in the table";
  }
  if (present != table_.count()) return "the table has pages that are not present";
  if (spare != spares_.size_bytes()) return "spare_bytes is wrong";
  if (present != eviction_->page_count() + spares_.count())
    return "the eviction policy has other pages";
  if (held != held_bytes_) return "held_bytes is wrong";
  if (reserved != reserved_bytes_) return "reserved_bytes is wrong";
  if (pinned != pinned_bytes_) return "pinned_bytes is wrong";
  if (replicated != replicated_count_) return "replicated_count is wrong";
  if (used != allocator_.used_bytes()) return "used bytes differ from the allocator's";
  if (std::string wrong = check_tenants(); !wrong.empty()) return wrong;
  if (std::string wrong = allocator_.check_invariants(); !wrong.empty()) return wrong;
  return eviction_->check_invariants();
}

}  // namespace hicache
