// Tenants of a PageStore: what each uses is counted, and who is at its quota makes room with its
// own pages.
#include <algorithm>

#include "store/page_store.h"

namespace hicache {
namespace {

constexpr PageIndex kGroupPerStep = 4096;  // Records looked at: well below 1 ms.
constexpr int kGroupStepsPerPut = 16;
constexpr uint64_t kTrimPerStep = 256;
constexpr uint64_t kTrimPerPut = 1024;
constexpr uint64_t kCrowdedShare = 8;  // One part in that many of a quota is left.

}  // namespace

void PageStore::set_quotas(Quotas quotas) {
  tenants_.set_quotas(std::move(quotas));
  if (tenants_.has_quotas() && !has_groups_) {
    has_groups_ = true;
    ungrouped_ = 0;
  }
  untrimmed_.clear();
  for (TenantIndex tenant = 0; tenant < tenants_.end(); ++tenant) {
    if (tenants_[tenant].used_bytes > tenants_[tenant].limit_bytes) untrimmed_.push_back(tenant);
  }
}

// ---------------------------------------------------------------- counting

void PageStore::charge(SpaceIndex space, uint64_t size) {
  const uint64_t footprint = SlotAllocator::footprint(size);
  Space& own = spaces_.at(space);
  own.used_bytes += footprint;
  own.reserved_bytes += footprint;
  Tenant& tenant = tenants_[own.tenant];
  tenant.used_bytes += footprint;
  tenant.reserved_bytes += footprint;
  if (lower_ == nullptr || tenant.limit_bytes == kNoQuota) return;
  const uint64_t left = tenant.limit_bytes - std::min(tenant.limit_bytes, tenant.used_bytes);
  if (left < tenant.limit_bytes / kCrowdedShare) lower_->crowded(own.tenant);
}

void PageStore::discharge(const PageRecord& record) {
  const auto found = spaces_.find(record.space);
  if (found == spaces_.end() || !found->second.is_counted) return;
  const uint64_t footprint = SlotAllocator::footprint(record.size);
  Space& own = found->second;
  Tenant& tenant = tenants_[own.tenant];
  own.used_bytes -= footprint;
  tenant.used_bytes -= footprint;
  if (record.state != PageState::kReserved) return;
  own.reserved_bytes -= footprint;
  tenant.reserved_bytes -= footprint;
}

/// Its description became known. What is above the new tenant's quota then stays until that puts.
void PageStore::set_tenant(Space& space, TenantIndex tenant) {
  Tenant& before = tenants_[space.tenant];
  before.used_bytes -= space.used_bytes;
  before.reserved_bytes -= space.reserved_bytes;
  before.page_count -= space.count;
  tenants_.leave(space.tenant);
  space.tenant = tenant;
  tenants_[tenant].used_bytes += space.used_bytes;
  tenants_[tenant].reserved_bytes += space.reserved_bytes;
  tenants_[tenant].page_count += space.count;
  if (has_groups_) ungrouped_ = 0;
}

uint64_t PageStore::quota_left_bytes(NamespaceIndex index) const {
  const Tenant& tenant = tenants_[spaces_.at(namespaces_[index].space).tenant];
  return tenant.limit_bytes - std::min(tenant.limit_bytes, tenant.used_bytes);
}

std::vector<Tenant> PageStore::tenant_use(size_t count_max) const {
  if (!tenants_.has_quotas()) return {};
  std::vector<std::pair<uint64_t, TenantIndex>> order;
  for (TenantIndex i = 0; i < tenants_.end(); ++i) {
    const bool is_limited = tenants_[i].limit_bytes != kNoQuota;
    if (tenants_[i].namespace_count == 0 || !is_limited) continue;
    order.emplace_back(UINT64_MAX - tenants_[i].used_bytes, i);
  }
  count_max = std::min(count_max, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(count_max), order.end());
  order.resize(count_max);
  std::vector<Tenant> use;
  for (const auto& [unused, i] : order) use.push_back(tenants_[i]);
  return use;
}

// ---------------------------------------------------------------- making room

PageTraits PageStore::traits_of(PageIndex page) const {
  const PageRecord& record = records_[page];
  return {.key_hash = hash_of(page),
          .parent_hash = record.parent_hash,
          .size_bytes = record.size,
          .is_soft_pinned = record.pin == Pin::kSoft,
          .group = has_groups_ ? spaces_.at(record.space).tenant : kNoGroup};
}

bool PageStore::group_pages() {
  if (ungrouped_ == kNoPage) return false;
  const PageIndex end = std::min(records_.size(), ungrouped_ + kGroupPerStep);
  for (; ungrouped_ < end; ++ungrouped_) {
    if (records_[ungrouped_].state != PageState::kPresent) continue;
    const TenantIndex tenant = spaces_.at(records_[ungrouped_].space).tenant;
    if (records_[ungrouped_].is_spare) {
      spares_.set_group(ungrouped_, tenant);
    } else {
      eviction_->set_group(ungrouped_, tenant);
    }
  }
  if (ungrouped_ < records_.size()) return true;
  ungrouped_ = kNoPage;
  return false;
}

bool PageStore::evict_of(TenantIndex tenant, uint64_t now_ms) {
  const PageIndex spare = spares_.first_of(tenant);
  const PageIndex victim = spare != kNoPage ? spare : next_victim_of(tenant);
  if (victim == kNoPage) return false;
  if (!spaces_.at(records_[victim].space).is_counted) {  // Of a namespace that was cleared.
    condemn(victim, EraseReason::kRemoved);
    return true;
  }
  if (lower_ != nullptr) lower_->leaving(records_[victim]);
  ++counts_.quota_evicted_pages;
  evict(victim, now_ms);
  return true;
}

bool PageStore::make_quota(SpaceIndex space, uint64_t size, uint64_t now_ms) {
  const Tenant& tenant = tenants_[spaces_.at(space).tenant];
  const uint64_t footprint = SlotAllocator::footprint(size);
  if (footprint > tenant.limit_bytes) return false;
  if (tenant.used_bytes <= tenant.limit_bytes - footprint) return true;
  // Evict nothing for a page that the pool has no room for anyway: that is told next.
  if (held_bytes_ + footprint > std::max(reachable_bytes_, allocator_.size_bytes())) return true;
  int steps_left = kGroupStepsPerPut;
  for (uint64_t evicted = 0; tenant.used_bytes > tenant.limit_bytes - footprint; ++evicted) {
    // The quota has become far less: one put does not do all the work.
    if (evicted >= kTrimPerPut && tenant.used_bytes > tenant.limit_bytes) return false;
    if (evict_of(spaces_.at(space).tenant, now_ms)) continue;
    if (ungrouped_ == kNoPage || steps_left-- == 0) return false;
    group_pages();
  }
  return true;
}

bool PageStore::trim_tenants(uint64_t now_ms) {
  for (uint64_t left = kTrimPerStep; !untrimmed_.empty() && left != 0; --left) {
    const TenantIndex index = untrimmed_.back();
    const bool is_above = tenants_[index].used_bytes > tenants_[index].limit_bytes;
    // What is held leaves when the tenant puts again.
    if (!is_above || !evict_of(index, now_ms)) untrimmed_.pop_back();
  }
  return !untrimmed_.empty();
}

std::string PageStore::check_tenants() const {
  std::vector<Tenant> seen(tenants_.end());
  const auto count = [&](const PageRecord& record, Tenant& tenant) {
    const uint64_t footprint = SlotAllocator::footprint(record.size);
    tenant.used_bytes += footprint;
    tenant.reserved_bytes += record.state == PageState::kReserved ? footprint : 0;
    tenant.page_count += record.state == PageState::kPresent;
  };
  for (PageIndex page = 0; page < records_.size(); ++page) {
    const PageRecord& record = records_[page];
    const auto space = spaces_.find(record.space);
    const bool is_there = record.state != PageState::kFree && space != spaces_.end();
    if (is_there && space->second.is_counted) count(record, seen[space->second.tenant]);
  }
  for (const Namespace& name_space : namespaces_) {
    if (name_space.has_ended) continue;
    const TenantIndex tenant = spaces_.at(name_space.space).tenant;
    ++seen[tenant].namespace_count;
    if (tenants_[tenant].name != tenant_of(name_space.description)) return "a tenant is another's";
  }
  for (TenantIndex i = 0; i < tenants_.end(); ++i) {
    const Tenant& told = tenants_[i];
    if (told.used_bytes != seen[i].used_bytes || told.reserved_bytes != seen[i].reserved_bytes ||
        told.page_count != seen[i].page_count || told.namespace_count != seen[i].namespace_count) {
      return "what tenant '" + told.name + "' uses is counted wrong";
    }
  }
  return "";
}

}  // namespace hicache
