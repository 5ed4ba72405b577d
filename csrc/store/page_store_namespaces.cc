// Namespaces of a PageStore: they open, are cleared, and end to make room for others.
#include <algorithm>

#include "store/page_store.h"

namespace hicache {
namespace {

constexpr size_t kNamespaceCountMax = 65536;
// Numbers are not given out twice: connections go on naming namespaces that ended by theirs.
constexpr size_t kNamespaceNumbersMax = 1 << 24;
constexpr size_t kCandidatesMax = 1024;  // Found with one look at all namespaces.

}  // namespace

std::optional<NamespaceIndex> PageStore::find_namespace(const NamespaceDigest& digest) const {
  const auto known = namespaces_by_digest_.find(digest.hash());
  if (known == namespaces_by_digest_.end()) return std::nullopt;
  for (const NamespaceIndex candidate : known->second) {
    if (namespaces_[candidate].digest == digest) return candidate;
  }
  return std::nullopt;
}

Result<NamespaceIndex> PageStore::open_namespace(const NamespaceDigest& digest,
                                                 std::string description) {
  if (const std::optional<NamespaceIndex> known = find_namespace(digest)) {
    // One that an SSD named may have come without.
    Namespace& found = namespaces_[*known];
    if (found.description.empty() && !description.empty()) {
      set_tenant(spaces_.at(found.space), tenants_.join(tenant_of(description)));
      found.description = std::move(description);
    }
    found.used = ++uses_;
    return *known;
  }
  if (is_full_of_namespaces() || namespaces_.size() >= kNamespaceNumbersMax) {
    return Status(Code::kNoSpace, "the node already has " + std::to_string(namespace_count_) +
                                      " namespaces, and has had " +
                                      std::to_string(namespaces_.size()) + "; restart it");
  }
  const auto index = static_cast<NamespaceIndex>(namespaces_.size());
  namespaces_by_digest_[digest.hash()].push_back(index);
  const TenantIndex tenant = tenants_.join(tenant_of(description));
  namespaces_.push_back({digest, std::move(description), next_space_, ++uses_});
  ++namespace_count_;
  namespaces_by_space_[next_space_] = index;
  spaces_[next_space_++].tenant = tenant;
  return index;
}

bool PageStore::is_full_of_namespaces() const {
  return namespace_count_ >= kNamespaceCountMax;
}

SpaceIndex PageStore::use(NamespaceIndex index) {
  namespaces_[index].used = ++uses_;
  return namespaces_[index].space;
}

NamespaceIndex PageStore::least_used_namespace() {
  for (;;) {
    while (!least_used_.empty()) {
      const auto [used, index] = least_used_.back();
      least_used_.pop_back();
      if (has_namespace(index) && namespaces_[index].used == used) return index;
    }
    for (NamespaceIndex index = 0; index < namespaces_.size(); ++index) {
      if (has_namespace(index)) least_used_.emplace_back(namespaces_[index].used, index);
    }
    const size_t count = std::min(kCandidatesMax, least_used_.size());
    std::partial_sort(least_used_.begin(), least_used_.begin() + static_cast<ptrdiff_t>(count),
                      least_used_.end());
    least_used_.resize(count);
    std::reverse(least_used_.begin(), least_used_.end());
  }
}

void PageStore::end_namespace(NamespaceIndex index) {
  clear(index);
  Namespace& ended = namespaces_[index];
  tenants_.leave(spaces_.at(ended.space).tenant);
  spaces_.erase(ended.space);
  namespaces_by_space_.erase(ended.space);
  const auto known = namespaces_by_digest_.find(ended.digest.hash());
  std::erase(known->second, index);
  if (known->second.empty()) namespaces_by_digest_.erase(known);
  ended.description = {};
  ended.has_ended = true;
  --namespace_count_;
}

uint64_t PageStore::clear(NamespaceIndex index) {
  Namespace& name_space = namespaces_[index];
  Space& cleared = spaces_.at(name_space.space);
  const uint64_t count = cleared.count;
  // From now on it is nobody's: it goes before anybody's page is evicted.
  Tenant& tenant = tenants_[cleared.tenant];
  tenant.used_bytes -= cleared.used_bytes;
  tenant.reserved_bytes -= cleared.reserved_bytes;
  tenant.page_count -= count;
  cleared.is_counted = false;
  const TenantIndex tenant_index = cleared.tenant;
  cleared_spaces_.push_back(name_space.space);
  name_space.space = next_space_;
  namespaces_by_space_[next_space_] = index;
  spaces_[next_space_++].tenant = tenant_index;
  counts_.cleared_pages += count;
  if (listener_ != nullptr) listener_->space_ended(cleared_spaces_.back(), name_space.digest);
  drop_cleared(kDropPerStep);
  return count;
}

bool PageStore::drop_cleared(uint64_t count_max) {
  bool dropped = false;
  while (!cleared_spaces_.empty() && count_max != 0) {
    const PageList& list = spaces_.at(cleared_spaces_.back());
    while (list.first != kNoPage && count_max-- != 0) {
      condemn(list.first, EraseReason::kRemoved);
      dropped = true;
    }
    if (list.first != kNoPage) return dropped;
    spaces_.erase(cleared_spaces_.back());
    namespaces_by_space_.erase(cleared_spaces_.back());
    cleared_spaces_.pop_back();
  }
  return dropped;
}

}  // namespace hicache
