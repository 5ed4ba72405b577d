#include "store/page_store.h"

#include <algorithm>
#include <utility>

namespace hicache {
namespace {

constexpr size_t kExpirePerStep = 1024;   // Pages of one expiry, however many there are.
constexpr size_t kPrefetchDistance = 16;  // Records in flight while keys are looked up.
constexpr uint64_t kExpectedPageSize = 256 * kKiB;
constexpr size_t kExpectedPagesMax = 1 << 22;

}  // namespace

PageStore::PageStore(Options options)
    : options_(std::move(options)),
      reachable_bytes_(options_.capacity_bytes),
      table_(std::min<uint64_t>(options_.capacity_bytes / kExpectedPageSize, kExpectedPagesMax)),
      leases_(LeaseTable::Options{{options_.lookup_lease_ttl_ms, options_.read_lease_ttl_ms}}),
      eviction_(make_eviction(options_.eviction, options_.capacity_bytes, options_.seed)),
      own_session_(open_session()) {}

// ---------------------------------------------------------------- keys, namespaces, sessions

uint64_t PageStore::hash_of(PageIndex page) const {
  return page_hash(records_[page].space, records_[page].key);
}

PageIndex PageStore::find_live(SpaceIndex space, const Key& key, uint64_t hash,
                               uint64_t now_ms) const {
  const PageIndex page = find(space, key, hash);
  if (page == kNoPage || !records_[page].has_expiry) return page;
  return records_[page].expires_ms <= now_ms ? kNoPage : page;
}

PageIndex PageStore::find(SpaceIndex space, const Key& key, uint64_t hash) const {
  return table_.find(hash, [&](PageIndex page) {
    return records_[page].space == space && records_[page].key == key;
  });
}

void PageStore::set_capacity(uint64_t bytes) {
  if (reachable_bytes_ == options_.capacity_bytes) reachable_bytes_ = bytes;
  options_.capacity_bytes = bytes;
  eviction_->set_capacity(bytes);
}

uint64_t PageStore::share_of_pool(double share) const {
  return static_cast<uint64_t>(share * static_cast<double>(reachable_bytes_));
}

void PageStore::prefetch(SpaceIndex space, std::span<const Key> keys,
                         std::vector<uint64_t>& hashes) const {
  hashes.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    hashes[i] = page_hash(space, keys[i]);
    table_.prefetch(hashes[i]);
  }
}

inline void PageStore::prefetch_records(size_t i, bool with_leases) const {
  // The leases hang on the records, so they are asked for half as far ahead.
  if (with_leases && i + kPrefetchDistance / 2 < hashes_.size()) {
    const PageIndex near = table_.guess(hashes_[i + kPrefetchDistance / 2]);
    if (near != kNoPage) leases_.prefetch(records_[near].leases);
  }
  if (i + kPrefetchDistance < hashes_.size()) {
    const PageIndex far = table_.guess(hashes_[i + kPrefetchDistance]);
    if (far != kNoPage) records_.prefetch(far);
  }
}

SessionIndex PageStore::open_session() {
  if (free_sessions_.empty()) {
    sessions_.emplace_back();
    return static_cast<SessionIndex>(sessions_.size() - 1);
  }
  const SessionIndex session = free_sessions_.back();
  free_sessions_.pop_back();
  sessions_[session] = Session{};
  return session;
}

void PageStore::close_session(SessionIndex session, uint64_t now_ms) {
  expire_leases(now_ms);
  leases_.end_session(
      session, [this](PageIndex page) { return &records_[page].leases; },
      [this](PageIndex page, LeaseKind kind) { after_lease_end(page, kind); });
  while (sessions_[session].reserved.first != kNoPage) {
    const PageIndex page = sessions_[session].reserved.first;
    abort(session, {page, records_[page].generation});
  }
  sessions_[session].is_open = false;
  free_sessions_.push_back(session);
}

// ---------------------------------------------------------------- look-up, lease, release

void PageStore::lookup(SessionIndex session, NamespaceIndex index, std::span<const Key> keys,
                       LookupFlags flags, uint64_t now_ms, std::vector<Code>& codes) {
  advance(now_ms);
  ++counts_.lookup_requests;
  const SpaceIndex space = use(index);
  codes.assign(keys.size(), Code::kNotFound);
  prefetch(space, keys, hashes_);
  bool is_chained = true;
  for (size_t i = 0; i < keys.size(); ++i) {
    prefetch_records(i, flags.lease);
    const PageIndex page = find_live(space, keys[i], hashes_[i], now_ms);
    if (page == kNoPage) {
      if (lower_ != nullptr &&
          lower_->lookup(session, {space, keys[i], hashes_[i]}, flags.lease, now_ms)) {
        if (flags.resident) {
          is_chained = false;
          ++counts_.lookup_miss_pages;
          continue;
        }
        codes[i] = Code::kOk;
        ++counts_.lookup_hit_pages;
        continue;
      }
      if (!flags.prefix) {
        ++counts_.lookup_miss_pages;
        continue;
      }
      counts_.lookup_miss_pages += keys.size() - i;
      return;
    }
    const bool is_promised = flags.lease && promise(session, page, now_ms, flags.resident);
    const bool counts = is_promised || !flags.lease || !flags.resident;
    is_chained &= counts;
    if (flags.prefix ? is_chained : counts) {
      codes[i] = Code::kOk;
      ++counts_.lookup_hit_pages;
    } else {
      ++counts_.lookup_miss_pages;
    }
  }
}

void PageStore::lease(SessionIndex session, NamespaceIndex index, std::span<const Key> keys,
                      bool read_now, uint64_t now_ms, std::vector<Location>& locations) {
  advance(now_ms);
  ++counts_.get_requests;
  const SpaceIndex space = use(index);
  locations.assign(keys.size(), Location{});
  found_pages_.clear();
  found_spares_.clear();
  prefetch(space, keys, hashes_);
  for (size_t i = 0; i < keys.size(); ++i) {
    const PageIndex page = find_live(space, keys[i], hashes_[i], now_ms);
    if (page == kNoPage) {
      const bool is_below =
          lower_ != nullptr &&
          lower_->lease(session, {space, keys[i], hashes_[i]}, read_now, now_ms, locations[i]);
      if (locations[i].code == Code::kOk) {
        ++counts_.get_hit_pages;
        counts_.get_hit_bytes += locations[i].size;
      } else if (!is_below) {
        ++counts_.get_miss_pages;
      }
      continue;
    }
    PageRecord& record = records_[page];
    leases_.grant(LeaseKind::kRead, session, page, &record.leases, now_ms);
    update_held(page);
    ++counts_.get_hit_pages;
    counts_.get_hit_bytes += record.size;
    if (record.reads != UINT8_MAX) ++record.reads;
    (record.is_spare ? found_spares_ : found_pages_).push_back(page);
    locations[i].code = Code::kOk;
    locations[i].ref = {page, record.generation};
    locations[i].size = record.size;
    locations[i].checksum = record.checksum;
    locations[i].extents = record.extents.span();
  }
  eviction_->access(found_pages_, now_ms);
  // Coming back is the use of these. Most often they are the end of the chain.
  for (const PageIndex page : found_spares_) recall(page, now_ms);
}

void PageStore::release(SessionIndex session, std::span<const PageRef> refs, uint64_t now_ms) {
  for (const PageRef& ref : refs) {
    if (!records_.contains(ref.page)) continue;
    PageRecord& record = records_[ref.page];
    // A reference of an earlier life of this record: its lease ended long ago.
    if (record.generation != ref.generation) continue;
    if (leases_.holds(LeaseKind::kLookup, session, record.leases)) {
      leases_.release(LeaseKind::kLookup, session, &record.leases);
      lookup_leased_bytes_ -= record.size;
    }
    leases_.release(LeaseKind::kRead, session, &record.leases);
    if (record.leases == kNoLease && record.state == PageState::kCondemned) {
      free_page(ref.page);
    } else {
      update_held(ref.page);
    }
  }
  expire_leases(now_ms);
}

void PageStore::after_lease_end(PageIndex page, LeaseKind kind) {
  PageRecord& record = records_[page];
  if (kind == LeaseKind::kLookup) lookup_leased_bytes_ -= record.size;
  if (record.leases == kNoLease && record.state == PageState::kCondemned) {
    free_page(page);
  } else {
    update_held(page);
  }
}

void PageStore::update_held(PageIndex page) {
  PageRecord& record = records_[page];
  const bool held = record.state == PageState::kReserved || record.state == PageState::kCondemned ||
                    record.leases != kNoLease || record.pin == Pin::kHard || record.is_kept;
  if (held == record.is_held) return;
  record.is_held = held;
  if (held) {
    held_bytes_ += SlotAllocator::footprint(record.size);
  } else {
    held_bytes_ -= SlotAllocator::footprint(record.size);
    if (std::exchange(record.is_refused, false)) eviction_->note_evictable(page);
  }
}

// ---------------------------------------------------------------- reserve, commit, abort

void PageStore::reserve(SessionIndex session, NamespaceIndex index, std::span<const Key> keys,
                        std::span<const uint64_t> sizes, const ReserveOptions& options,
                        uint64_t now_ms, std::vector<Placement>& placements) {
  advance(now_ms);
  ++counts_.put_requests;
  const SpaceIndex space = use(index);
  placements.clear();
  if (options.space != kAnySpace && options.space != space) {  // Cleared since the put began.
    placements.assign(keys.size(), Placement{Code::kCancelled, {kNoPage, 0}, {}});
    return;
  }
  found_pages_.clear();
  uint64_t parent_hash = options.parent ? page_hash(space, *options.parent) : 0;
  std::vector<PageIndex> existing;
  bool is_busy = false;
  for (size_t i = 0; i < keys.size(); ++i) {
    PageIndex page = kNoPage;
    const Code code = is_busy ? Code::kBusy
                              : reserve_one(session, space, keys[i], sizes[i], parent_hash, options,
                                            now_ms, &page);
    is_busy = code == Code::kBusy;
    if (code == Code::kAlreadyExists && page != kNoPage) existing.push_back(page);
    Placement placement{code, {kNoPage, 0}, {}};
    if (code == Code::kOk) placement.ref = {page, records_[page].generation};
    placements.push_back(placement);
    if (options.chained) parent_hash = page_hash(space, keys[i]);
  }
  // Only now: a record's extents stay put, but a page found present may have been evicted above.
  for (Placement& placement : placements) {
    if (placement.code == Code::kOk)
      placement.extents = records_[placement.ref.page].extents.span();
  }
  std::erase_if(existing,
                [this](PageIndex page) { return records_[page].state != PageState::kPresent; });
  eviction_->access(existing, now_ms);
}

Code PageStore::reserve_one(SessionIndex session, SpaceIndex space, const Key& key, uint64_t size,
                            uint64_t parent_hash, const ReserveOptions& options, uint64_t now_ms,
                            PageIndex* page) {
  if (!options.replace) {
    *page = find(space, key, page_hash(space, key));
    const bool is_below = *page == kNoPage && lower_ != nullptr &&
                          lower_->put_again({space, key, page_hash(space, key)});
    if (*page != kNoPage || is_below) {
      ++counts_.put_existing_pages;
      if (*page != kNoPage && records_[*page].is_spare) {
        recall(*page, now_ms);
        *page = kNoPage;  // That is its use: it is not to be noted again.
      }
      return Code::kAlreadyExists;
    }
  }
  const auto pinnable = share_of_pool(options_.hard_pin_share);
  Extents extents;
  const bool is_refused = size > options_.capacity_bytes ||  // First: what follows adds sizes up.
                          (options.pin == Pin::kHard && pinned_bytes_ + size > pinnable);
  if (!is_refused && !make_quota(space, size, now_ms)) {
    ++counts_.put_over_quota_pages;
    return Code::kOverQuota;
  }
  const Code room =
      is_refused ? Code::kNoSpace : make_room(size, options.may_wait, extents, now_ms);
  if (room != Code::kOk) {
    counts_.put_no_space_pages += room == Code::kNoSpace;
    return room;
  }
  const PageName name{space, key, page_hash(space, key)};
  *page = make_reservation(session, name, size, parent_hash, std::move(extents), now_ms);
  records_[*page].pin = options.pin;
  if (options.pin == Pin::kHard) pinned_bytes_ += size;
  set_expiry(*page, now_ms + options_.reservation_ttl_ms);
  return Code::kOk;
}

PageIndex PageStore::make_reservation(SessionIndex session, const PageName& name, uint64_t size,
                                      uint64_t parent_hash, Extents extents, uint64_t now_ms) {
  const PageIndex page = records_.take();
  PageRecord& record = records_[page];
  ++record.generation;
  record.key = name.key;
  record.size = size;
  record.parent_hash = parent_hash;
  record.inserted_ms = now_ms;
  record.extents = PageExtents(std::move(extents));
  record.space = name.space;
  record.session = session;
  record.state = PageState::kReserved;
  extent_heap_bytes_ += record.extents.heap_size_bytes();
  reserved_bytes_ += size;
  charge(name.space, size);
  link(sessions_[session].reserved, page);
  update_held(page);
  return page;
}

Code PageStore::commit(SessionIndex session, PageRef ref, uint64_t checksum,
                       const CommitOptions& options, uint64_t now_ms) {
  if (!is_reservation(session, ref)) return Code::kCancelled;
  PageRecord& record = records_[ref.page];
  auto space = spaces_.find(record.space);
  const bool cleared_meanwhile = space == spaces_.end() || !space->second.is_counted;
  if (cleared_meanwhile) {
    abort(session, ref);
    return Code::kCancelled;
  }
  const uint64_t hash = hash_of(ref.page);
  const PageIndex present = find(record.space, record.key, hash);
  if (present != kNoPage && !options.replace) {
    abort(session, ref);
    --counts_.aborted_pages;
    ++counts_.put_existing_pages;
    return Code::kAlreadyExists;
  }
  if (present != kNoPage) condemn(present, EraseReason::kRemoved);
  unlink(sessions_[session].reserved, ref.page);
  reserved_bytes_ -= record.size;
  record.checksum = checksum;
  record.replica_count = options.replica_count;
  replicated_count_ += record.replica_count > 1;
  const uint64_t ttl_max_ms = UINT64_MAX - now_ms;
  set_expiry(ref.page, options.ttl_ms == 0 ? 0 : now_ms + std::min(options.ttl_ms, ttl_max_ms));
  make_present(ref.page, space->second, now_ms);
  ++counts_.put_stored_pages;
  counts_.put_stored_bytes += record.size;
  return Code::kOk;
}

void PageStore::make_present(PageIndex page, Space& space, uint64_t now_ms) {
  PageRecord& record = records_[page];
  const uint64_t hash = hash_of(page);
  record.state = PageState::kPresent;
  link(space, page);
  const uint64_t footprint = SlotAllocator::footprint(record.size);
  space.reserved_bytes -= footprint;
  tenants_[space.tenant].reserved_bytes -= footprint;
  ++tenants_[space.tenant].page_count;
  table_.reserve_one([this](PageIndex other) { return hash_of(other); });
  table_.insert(hash, page);
  eviction_->insert(page, traits_of(page), now_ms);
  update_held(page);
  if (listener_ != nullptr) listener_->page_changed(record.space, record.key);
}

bool PageStore::is_reservation(SessionIndex session, PageRef ref) const {
  if (!records_.contains(ref.page)) return false;
  const PageRecord& record = records_[ref.page];
  return record.generation == ref.generation && record.state == PageState::kReserved &&
         record.session == session;
}

std::span<const Extent> PageStore::extents_of(SessionIndex session, PageRef ref) const {
  if (!is_reservation(session, ref)) return {};
  return records_[ref.page].extents.span();
}

void PageStore::abort(SessionIndex session, PageRef ref, bool backed) {
  if (!is_reservation(session, ref)) return;
  ++counts_.aborted_pages;
  free_page(ref.page, backed);
}

Code PageStore::make_room(uint64_t size, bool may_wait, Extents& extents, uint64_t now_ms) {
  const uint64_t footprint = SlotAllocator::footprint(size);
  const auto refusal = [&] {
    const bool waits = may_wait && lower_ != nullptr && footprint <= allocator_.size_bytes() &&
                       lower_->takes_soon(nullptr, footprint, now_ms);
    return waits ? Code::kBusy : Code::kNoSpace;
  };
  while (!allocator_.allocate(size, extents)) {
    if (drop_cleared(kDropPerStep)) continue;
    if (options_.grow && options_.grow()) continue;
    // Evict nothing for a page that would not fit anyway.
    if (held_bytes_ + footprint > allocator_.size_bytes()) return refusal();
    const PageIndex spare = spares_.first();
    const PageIndex victim = spare != kNoPage ? spare : next_victim(now_ms);
    if (victim == kNoPage) return refusal();
    const bool waits = may_wait && spare == kNoPage && lower_ != nullptr &&
                       lower_->takes_soon(&records_[victim], footprint, now_ms);
    if (waits) return Code::kBusy;
    if (lower_ != nullptr) lower_->leaving(records_[victim]);
    evict(victim, now_ms);
  }
  return Code::kOk;
}

// ---------------------------------------------------------------- leaving

void PageStore::condemn(PageIndex page, EraseReason reason) {
  PageRecord& record = records_[page];
  if (listener_ != nullptr) listener_->page_changed(record.space, record.key);
  table_.erase(hash_of(page), page, [this](PageIndex other) { return hash_of(other); });
  if (std::exchange(record.is_spare, false)) {
    spares_.remove(page);
  } else {
    eviction_->erase(page, reason);
  }
  Space& space = spaces_.at(record.space);
  unlink(space, page);
  if (space.is_counted) --tenants_[space.tenant].page_count;
  set_expiry(page, 0);
  replicated_count_ -= record.replica_count > 1;
  record.state = PageState::kCondemned;
  if (record.leases == kNoLease) {
    free_page(page);
  } else {
    update_held(page);
  }
}

void PageStore::free_page(PageIndex page, bool backed) {
  PageRecord& record = records_[page];
  if (record.state == PageState::kReserved) {
    unlink(sessions_[record.session].reserved, page);
    reserved_bytes_ -= record.size;
    set_expiry(page, 0);
  }
  discharge(record);
  if (record.pin == Pin::kHard) pinned_bytes_ -= record.size;
  if (record.is_held) held_bytes_ -= SlotAllocator::footprint(record.size);
  extent_heap_bytes_ -= record.extents.heap_size_bytes();
  if (backed) {
    allocator_.release(record.extents.span());
  } else {
    allocator_.retire(record.extents.span());
  }
  records_.give_back(page);
}

Code PageStore::remove(NamespaceIndex index, const Key& key) {
  const SpaceIndex space = use(index);
  const PageIndex page = find(space, key, page_hash(space, key));
  if (page == kNoPage) return Code::kNotFound;
  ++counts_.removed_pages;
  condemn(page, EraseReason::kRemoved);
  return Code::kOk;
}

Code PageStore::set_pin(NamespaceIndex index, const Key& key, Pin pin, uint64_t now_ms) {
  const SpaceIndex space = use(index);
  const uint64_t hash = page_hash(space, key);
  const PageIndex page = find(space, key, hash);
  if (page == kNoPage) return Code::kNotFound;
  PageRecord& record = records_[page];
  if (record.pin == pin) return Code::kOk;
  const auto pinnable = share_of_pool(options_.hard_pin_share);
  if (pin == Pin::kHard && pinned_bytes_ + record.size > pinnable) return Code::kNoSpace;
  recall(page, now_ms);
  if (record.pin == Pin::kHard) pinned_bytes_ -= record.size;
  if (pin == Pin::kHard) pinned_bytes_ += record.size;
  const bool soft_changes = (record.pin == Pin::kSoft) != (pin == Pin::kSoft);
  record.pin = pin;
  if (soft_changes) {
    eviction_->erase(page, EraseReason::kRemoved);
    eviction_->insert(page, traits_of(page), now_ms);
  }
  update_held(page);
  return Code::kOk;
}

void PageStore::report_corrupt(PageRef ref) {
  if (!records_.contains(ref.page)) return;
  const PageRecord& record = records_[ref.page];
  if (record.generation != ref.generation || record.state != PageState::kPresent) return;
  ++counts_.corrupt_pages;
  condemn(ref.page, EraseReason::kRemoved);
}

// ---------------------------------------------------------------- time

uint64_t PageStore::advance(uint64_t now_ms) {
  expire_leases(now_ms);
  expire_pages(now_ms);
  drop_cleared(kDropPerStep);
  const bool is_tidying = group_pages() || trim_tenants(now_ms);
  if (!cleared_spaces_.empty() || has_expired(now_ms) || is_tidying) return now_ms;
  uint64_t next = leases_.next_expiry_ms();
  if (!expiry_order_.empty()) next = std::min(next, expiry_order_.begin()->first);
  return next;
}

void PageStore::expire_leases(uint64_t now_ms) {
  leases_.expire(
      now_ms, [this](PageIndex page) { return &records_[page].leases; },
      [this](PageIndex page, LeaseKind kind) { after_lease_end(page, kind); });
}

bool PageStore::has_expired(uint64_t now_ms) const {
  return !expiry_order_.empty() && expiry_order_.begin()->first <= now_ms;
}

void PageStore::expire_pages(uint64_t now_ms) {
  for (size_t left = kExpirePerStep; left != 0 && has_expired(now_ms); --left) {
    const PageIndex page = expiry_order_.begin()->second;
    const PageRecord& record = records_[page];
    if (record.state == PageState::kReserved) {
      abort(record.session, {page, record.generation});
    } else {
      ++counts_.expired_pages;
      condemn(page, EraseReason::kRemoved);
    }
  }
}

void PageStore::set_expiry(PageIndex page, uint64_t expires_ms) {
  PageRecord& record = records_[page];
  if (record.expires_ms != 0) expiry_order_.erase({record.expires_ms, page});
  record.expires_ms = expires_ms;
  record.has_expiry = expires_ms != 0;
  if (record.has_expiry) expiry_order_.emplace(expires_ms, page);
}

// ---------------------------------------------------------------- lists

void PageStore::link(PageList& list, PageIndex page) {
  PageRecord& record = records_[page];
  record.previous = kNoPage;
  record.next = list.first;
  if (list.first != kNoPage) records_[list.first].previous = page;
  list.first = page;
  ++list.count;
  list.size_bytes += record.size;
}

void PageStore::unlink(PageList& list, PageIndex page) {
  PageRecord& record = records_[page];
  if (record.previous == kNoPage) {
    list.first = record.next;
  } else {
    records_[record.previous].next = record.next;
  }
  if (record.next != kNoPage) records_[record.next].previous = record.previous;
  record.previous = record.next = kNoPage;
  --list.count;
  list.size_bytes -= record.size;
}

}  // namespace hicache
