// What PageStore offers to the tier below it: which pages leave, pages that go down, pages that
// come up.
#include <algorithm>
#include <utility>

#include "store/page_store.h"

namespace hicache {
namespace {

// Pages whose reader cannot do without them, and reads at once.
constexpr double kResidentFactor = 2;
constexpr double kLeasableShareMax = 0.9;

}  // namespace

const NamespaceDigest& PageStore::digest_of(SpaceIndex space) const {
  return namespaces_[namespaces_by_space_.at(space)].digest;
}

const std::string& PageStore::description_of(SpaceIndex space) const {
  return namespaces_[namespaces_by_space_.at(space)].description;
}

bool PageStore::is_current(SpaceIndex space) const {
  const auto found = namespaces_by_space_.find(space);
  return found != namespaces_by_space_.end() && space_of(found->second) == space;
}

bool PageStore::has_hash(uint64_t hash) const {
  return table_.find(hash, [&](PageIndex page) { return hash_of(page) == hash; }) != kNoPage;
}

Key PageStore::parent_key_of(PageIndex page) const {
  const uint64_t hash = records_[page].parent_hash;
  if (hash == 0) return Key();
  const PageIndex parent =
      table_.find(hash, [&](PageIndex other) { return hash_of(other) == hash; });
  return parent == kNoPage ? Key() : records_[parent].key;
}

bool PageStore::is_present(PageRef ref) const {
  return records_.contains(ref.page) && records_[ref.page].generation == ref.generation &&
         records_[ref.page].state == PageState::kPresent;
}

bool PageStore::is_evictable(PageIndex page) {
  PageRecord& record = records_[page];
  record.is_refused = record.is_held;
  return !record.is_held;
}

PageIndex PageStore::next_victim(uint64_t now_ms) {
  return eviction_->victim([this](PageIndex page) { return is_evictable(page); }, now_ms);
}

PageIndex PageStore::next_victim_of(TenantIndex tenant) {
  return eviction_->victim_of(tenant, [this](PageIndex page) { return is_evictable(page); });
}

void PageStore::spare(PageIndex page) {
  PageRecord& record = records_[page];
  eviction_->erase(page, EraseReason::kEvicted);
  record.is_spare = true;
  spares_.add(page, SlotAllocator::footprint(record.size), traits_of(page).group);
}

void PageStore::recall(PageIndex page, uint64_t now_ms) {
  PageRecord& record = records_[page];
  if (!std::exchange(record.is_spare, false)) return;
  spares_.remove(page);
  eviction_->insert(page, traits_of(page), now_ms);
}

void PageStore::evict(PageIndex page, uint64_t now_ms) {
  const PageRecord& record = records_[page];
  ++counts_.evicted_pages;
  counts_.evicted_bytes += record.size;
  counts_.eviction_age_ms = now_ms - record.inserted_ms;
  condemn(page, EraseReason::kEvicted);
}

void PageStore::begin_write_out(PageIndex page) {
  recall(page, 0);
  leases_.grant(LeaseKind::kWriteOut, own_session_, page, &records_[page].leases, 0);
  update_held(page);
}

void PageStore::end_write_out(PageIndex page) {
  leases_.release(LeaseKind::kWriteOut, own_session_, &records_[page].leases);
  after_lease_end(page, LeaseKind::kWriteOut);
}

void PageStore::set_kept(PageIndex page, bool is_kept) {
  recall(page, 0);
  records_[page].is_kept = is_kept;
  update_held(page);
}

std::vector<PageRef> PageStore::pages_to_keep() const {
  std::vector<PageRef> pages;
  for (const Namespace& name_space : namespaces_) {
    if (name_space.has_ended) continue;
    for (PageIndex page = spaces_.at(name_space.space).first; page != kNoPage;
         page = records_[page].next) {
      if (!records_[page].has_expiry) pages.push_back({page, records_[page].generation});
    }
  }
  std::sort(pages.begin(), pages.end(), [this](const PageRef& a, const PageRef& b) {
    const PageRecord& first = records_[a.page];
    const PageRecord& second = records_[b.page];
    const bool first_is_reused = first.reads != 0;
    const bool second_is_reused = second.reads != 0;
    if (first_is_reused != second_is_reused) return first_is_reused;
    // Parents came before their children, most often.
    return first.inserted_ms < second.inserted_ms;
  });
  return pages;
}

PageIndex PageStore::reserve_from_below(const PageName& name, uint64_t size, uint64_t parent_hash,
                                        uint64_t now_ms) {
  Extents extents;
  if (size > options_.capacity_bytes || !make_quota(name.space, size, now_ms) ||
      make_room(size, false, extents, now_ms) != Code::kOk) {
    return kNoPage;
  }
  return make_reservation(own_session_, name, size, parent_hash, std::move(extents), now_ms);
}

void PageStore::commit_from_below(PageIndex page, uint64_t checksum, uint64_t now_ms) {
  PageRecord& record = records_[page];
  if (!is_current(record.space) || find(record.space, record.key, hash_of(page)) != kNoPage) {
    drop_from_below(page);
    return;
  }
  unlink(sessions_[own_session_].reserved, page);
  reserved_bytes_ -= record.size;
  record.checksum = checksum;
  make_present(page, spaces_.at(record.space), now_ms);
}

void PageStore::drop_from_below(PageIndex page) {
  free_page(page);
}

std::vector<uint32_t> PageStore::missing(NamespaceIndex index, std::span<const Key> keys,
                                         uint64_t now_ms) const {
  const SpaceIndex space = namespaces_[index].space;
  std::vector<uint32_t> missing;
  for (size_t i = 0; i < keys.size(); ++i) {
    const uint64_t hash = page_hash(space, keys[i]);
    const bool is_here = find_live(space, keys[i], hash, now_ms) != kNoPage ||
                         (lower_ != nullptr && lower_->contains({space, keys[i], hash}));
    if (!is_here) missing.push_back(static_cast<uint32_t>(i));
  }
  return missing;
}

void PageStore::hold(SessionIndex session, PageIndex page, uint64_t now_ms) {
  leases_.grant(LeaseKind::kRead, session, page, &records_[page].leases, now_ms);
  update_held(page);
}

std::vector<PageRef> PageStore::hold_present(SessionIndex session, NamespaceIndex index,
                                             std::span<const Key> keys, uint64_t now_ms) {
  const SpaceIndex space = namespaces_[index].space;
  std::vector<PageRef> held;
  for (const Key& key : keys) {
    const PageIndex page = find_live(space, key, page_hash(space, key), now_ms);
    if (page == kNoPage) continue;
    hold(session, page, now_ms);
    held.push_back({page, records_[page].generation});
  }
  return held;
}

bool PageStore::promise(SessionIndex session, PageIndex page, uint64_t now_ms, bool is_resident) {
  PageRecord& record = records_[page];
  const bool renews = leases_.holds(LeaseKind::kLookup, session, record.leases);
  const double share = options_.lookup_lease_share * (is_resident ? kResidentFactor : 1);
  const uint64_t leasable = share_of_pool(std::min(share, kLeasableShareMax));
  if (!renews && lookup_leased_bytes_ + record.size > leasable) return false;
  leases_.grant(LeaseKind::kLookup, session, page, &record.leases, now_ms);
  if (!renews) lookup_leased_bytes_ += record.size;
  recall(page, now_ms);
  update_held(page);
  return true;
}

}  // namespace hicache
