// Pages on their way from the pool to the SSDs.
#include <algorithm>
#include <cstring>

#include "store/ssd_tier.h"

namespace hicache {
namespace {

constexpr uint64_t kFreeShare = 8;  // One part in that many of the pool is kept free for puts.
constexpr uint64_t kFreeMax = 4 * kGiB;
constexpr uint64_t kWritingMax = 128 * kMiB;  // Queued for the disks beyond what must leave.
constexpr uint64_t kWritingShare = 4;         // One part in that many of the pool at most.
constexpr int kPagesPerStep = 256;            // Then others have their turn.
constexpr size_t kUnwrittenMax = 1 << 20;
constexpr uint64_t kWrittenPatienceMs = 2000;  // A disk that wrote nothing since stands still.
constexpr uint64_t kAwaitedMs = 100;           // Puts that were told to come again do so by then.
constexpr uint64_t kNobodyWaitsMs = 2000;      // After one that waited in vain.
constexpr uint64_t kFlushPatienceMs = 10'000;  // While nothing is written.
constexpr size_t kPartsMax = 512;              // A page in more extents is gathered first.

uint64_t whole_sectors(uint64_t size) {
  return sectors_of(size) * kSectorSize;
}

}  // namespace

SsdTier::Ahead SsdTier::ahead_of(TenantIndex tenant) const {
  if (tenant == kNoGroup) {
    const uint64_t ready = store_->reachable_free_bytes() + store_->spare_bytes();
    const uint64_t awaited = now_ms_ < awaited_until_ms_ ? awaited_bytes_ : 0;
    const uint64_t ahead = std::min(store_->reachable_bytes() / kFreeShare, kFreeMax);
    return {.wanted_bytes = std::max(ahead, awaited),
            .ready_bytes = ready + leaving_bytes_,
            .writing_bytes = log_->writing_bytes(),
            .size_bytes = store_->reachable_bytes()};
  }
  const Tenant& who = store_->tenant(tenant);
  const auto found = leaving_by_tenant_.find(tenant);
  const uint64_t leaving = found == leaving_by_tenant_.end() ? 0 : found->second;
  const uint64_t left = who.limit_bytes - std::min(who.limit_bytes, who.used_bytes);
  const bool is_limited = who.limit_bytes != kNoQuota;
  return {.wanted_bytes = is_limited ? std::min(who.limit_bytes / kFreeShare, kFreeMax) : 0,
          .ready_bytes = left + store_->spare_bytes_of(tenant) + leaving,
          .writing_bytes = leaving,
          .size_bytes = who.limit_bytes};
}

uint64_t SsdTier::writing_max_bytes() const {
  // What is being written cannot be evicted: puts must find enough that can.
  return std::min(store_->reachable_bytes() / kWritingShare, kWritingMax);
}

void SsdTier::write_out_ahead(uint64_t now_ms) {
  if (!log_->can_write()) return;
  const bool has_more = !write_ahead(kNoGroup, now_ms);
  std::erase_if(crowded_, [&](TenantIndex tenant) { return write_ahead(tenant, now_ms); });
  is_due_ = is_due_ || has_more || !crowded_.empty();
}

bool SsdTier::write_ahead(TenantIndex tenant, uint64_t now_ms) {
  for (int i = 0; i < kPagesPerStep; ++i) {
    const Ahead ahead = ahead_of(tenant);
    if (ahead.ready_bytes >= ahead.wanted_bytes) return true;
    // Nothing may be written now: the pool is worth more full than empty.
    if (budget_.demand(now_ms) == WriteBudget::Demand::kRefuse) return true;
    const PageIndex victim =
        tenant == kNoGroup ? store_->next_victim(now_ms) : store_->next_victim_of(tenant);
    if (victim == kNoPage) return true;
    const PageRecord& record = store_->record(victim);
    const bool is_wanted = !record.has_expiry && store_->is_current(record.space) &&
                           !is_below(record, store_->hash_of(victim));
    // Whatever else is being written: of a pool of a few pages half can be evicted at any time.
    if (is_wanted && ahead.writing_bytes != 0 &&
        2 * (ahead.writing_bytes + record.size) > ahead.size_bytes) {
      return true;
    }
    const bool is_refused = is_wanted && !is_admitted(record, now_ms);
    const bool is_written =
        is_wanted && !is_refused && begin_write({victim, record.generation}, true);
    if (is_written) continue;
    // Soft-pinned ones leave when nothing else can: spare ones would leave first.
    if (record.pin == Pin::kSoft) return true;
    refused_pages_ += is_refused;
    store_->spare(victim);
  }
  return false;
}

bool SsdTier::takes_soon(const PageRecord* page, uint64_t wanted_bytes, uint64_t now_ms) {
  if (is_flushing_ || !log_->can_write() || now_ms < nobody_waits_until_ms_) return false;
  if (!writing_.empty() && now_ms >= written_ms_ + kWrittenPatienceMs) return false;
  if (page == nullptr) {
    if (leaving_bytes_ == 0) return false;
  } else if (page->has_expiry || page->size > log_->page_size_max() ||
             !store_->is_current(page->space) || !is_admitted(*page, now_ms) ||
             is_below(*page, page_hash(page->space, page->key))) {
    return false;
  }
  if (now_ms >= awaited_until_ms_) awaited_bytes_ = 0;
  awaited_bytes_ = std::max(awaited_bytes_, wanted_bytes);
  awaited_until_ms_ = now_ms + kAwaitedMs;
  is_due_ = true;
  return true;
}

void SsdTier::note_wait_over(bool found_room, uint64_t now_ms) {
  ++(found_room ? put_waits_ : put_waits_in_vain_);
  if (!found_room) nobody_waits_until_ms_ = now_ms + kNobodyWaitsMs;
}

bool SsdTier::is_admitted(const PageRecord& record, uint64_t now_ms) {
  // Whoever reads a page has read its parents: by this rule no page goes without its chain.
  const WriteBudget::Demand demand = budget_.demand(now_ms);
  return demand == WriteBudget::Demand::kNothing ||
         (demand == WriteBudget::Demand::kReuse && record.reads != 0);
}

void SsdTier::write_through(uint64_t now_ms) {
  while (unwritten_.size() > kUnwrittenMax) unwritten_.pop_front();
  while (!unwritten_.empty() && log_->can_write() && log_->writing_bytes() < writing_max_bytes()) {
    const PageRef ref = unwritten_.front();
    unwritten_.pop_front();
    if (!store_->is_present(ref)) continue;
    if (is_admitted(store_->record(ref.page), now_ms)) {
      begin_write(ref, false);
    } else {
      ++refused_pages_;
    }
  }
}

// ---------------------------------------------------------------- flush

void SsdTier::begin_flush() {
  if (is_flushing_) return;
  is_flushing_ = true;
  for (const PageRef& ref : store_->pages_to_keep()) add_flushing(ref);
  flush_retries_left_ = flushing_.size();
}

bool SsdTier::is_flush_over() const {
  return is_flushing_ && flushing_.empty() && (log_->is_quiet() || is_flush_given_up_);
}

uint64_t SsdTier::flush_left_bytes() const {
  if (!is_flushing_) return UINT64_MAX;
  if (is_flush_over()) return flush_lost_bytes_;
  return std::max<uint64_t>(1, flush_lost_bytes_ + flushing_bytes_ + log_->writing_bytes());
}

void SsdTier::write_flush(uint64_t now_ms) {
  if (!is_flushing_) return;
  if (!log_->can_write()) {
    if (log_->is_recovering()) return;  // Soon.
    lose_flushing();
  }
  watch_flush(now_ms);
  while (!flushing_.empty() && log_->writing_bytes() < writing_max_bytes()) {
    const PageRef ref = take_flushing();
    if (store_->is_present(ref)) begin_write(ref, false);
  }
  if (flushing_.empty() && !log_->is_quiet()) log_->seal_all();
}

void SsdTier::lose_flushing() {
  while (!flushing_.empty()) {
    const PageRef ref = take_flushing();
    if (store_->is_present(ref)) flush_lost_bytes_ += store_->record(ref.page).size;
  }
}

/// No room may come for what is left, however long it waits: then it is told, not waited for. A
/// disk that does not answer is not that; it is given up in its own time.
void SsdTier::watch_flush(uint64_t now_ms) {
  uint64_t written = 0;
  bool is_silent = false;
  for (size_t i = 0; i < log_->volume_count(); ++i) {
    written += log_->volume(i).device_written_bytes();
    is_silent = is_silent || log_->volume(i).is_silent();
  }
  const bool is_moving = written != std::exchange(flush_seen_bytes_, written);
  if (is_moving || is_silent || log_->is_recovering() || flush_moved_ms_ == 0) {
    flush_moved_ms_ = now_ms;
  }
  if (now_ms < flush_moved_ms_ + kFlushPatienceMs || is_flush_given_up_ || is_flush_over()) return;
  is_flush_given_up_ = true;
  surroundings_.on_notice("the flush to SSD has found no room for " +
                          std::to_string(kFlushPatienceMs / 1000) +
                          " s: what is left of it goes with the node");
  lose_flushing();
  log_->refuse_queue();
}

void SsdTier::add_flushing(PageRef ref) {
  // What is put meanwhile must not push it out before it is written.
  store_->set_kept(ref.page, true);
  flushing_.push_back(ref);
  flushing_bytes_ += store_->record(ref.page).size;
  flushing_sizes_.push_back(store_->record(ref.page).size);
}

PageRef SsdTier::take_flushing() {
  const PageRef ref = flushing_.front();
  flushing_.pop_front();
  flushing_bytes_ -= flushing_sizes_.front();
  flushing_sizes_.pop_front();
  if (store_->is_present(ref)) store_->set_kept(ref.page, false);
  return ref;
}

/// Another directory may take it.
void SsdTier::flush_again(PageRef ref) {
  if (!store_->is_present(ref) || !store_->is_current(store_->record(ref.page).space)) return;
  if (flush_retries_left_ == 0 || is_flush_given_up_) {
    flush_lost_bytes_ += store_->record(ref.page).size;
  } else {
    --flush_retries_left_;
    add_flushing(ref);
  }
}

// ---------------------------------------------------------------- one page

bool SsdTier::begin_write(PageRef ref, bool is_leaving) {
  const PageRecord& record = store_->record(ref.page);
  const uint64_t hash = store_->hash_of(ref.page);
  // Of a namespace that was cleared: written now it would be newer than its clearing, and a restart
  // would bring it back.
  if (!store_->is_current(record.space)) return false;
  if (record.has_expiry || record.size > log_->page_size_max() || !log_->can_write() ||
      is_below(record, hash) || !writing_hashes_.insert(hash).second) {
    return false;
  }
  // What lies below under this name is another page.
  if (log_->find(record.space, record.key, hash) != kNoSsdPage) remove(record.space, record.key);

  SsdLog::Page page{.space = record.space,
                    .name_space = store_->digest_of(record.space),
                    .key = record.key,
                    .size = record.size,
                    .checksum = record.checksum,
                    .parent_hash = record.parent_hash,
                    .parts = {},
                    .memory = {},
                    .tag = next_tag_++};
  const std::span<const Extent> extents = record.extents.span();
  if (SlotAllocator::shares_slots(extents) || extents.size() > kPartsMax) {
    page.memory = MappedMemory::make(whole_sectors(record.size));
    if (!page.memory.valid()) {
      writing_hashes_.erase(hash);
      return false;
    }
    uint8_t* to = page.memory.address();
    for (const Extent& extent : extents) {
      std::memcpy(to, surroundings_.pool + extent.offset, extent.size);
      to += extent.size;
    }
    page.parts = {{page.memory.address(), page.memory.size()}};
  } else {
    // All but the last are whole slots; the last has the rest of its slot behind it.
    for (const Extent& extent : extents) {
      page.parts.push_back({surroundings_.pool + extent.offset, whole_sectors(extent.size)});
    }
  }
  const uint64_t footprint = SlotAllocator::footprint(record.size);
  const TenantIndex tenant = store_->tenant_of_space(record.space);
  if (writing_.empty()) written_ms_ = now_ms_;
  writing_[page.tag] = {ref, hash, record.reads, is_leaving, footprint, tenant};
  if (is_leaving) {
    leaving_bytes_ += footprint;
    leaving_by_tenant_[tenant] += footprint;
  }
  store_->begin_write_out(ref.page);
  watch_->remember(page.name_space, store_->description_of(record.space));
  log_->write(std::move(page));
  return true;
}

void SsdTier::after_write(uint64_t tag, bool ok) {
  const auto found = writing_.find(tag);
  const WriteOut done = found->second;
  writing_.erase(found);
  writing_hashes_.erase(done.hash);
  if (ok) written_ms_ = now_ms_;
  if (done.is_leaving) {
    leaving_bytes_ -= done.footprint_bytes;
    const auto leaving = leaving_by_tenant_.find(done.tenant);
    leaving->second -= done.footprint_bytes;
    if (leaving->second == 0) leaving_by_tenant_.erase(leaving);
  }
  store_->end_write_out(done.ref.page);
  if (!ok && is_flushing_) flush_again(done.ref);
  // Read since, it is worth its place; not written, it waits for its turn again.
  const bool leaves = done.is_leaving && ok && store_->is_present(done.ref) &&
                      store_->record(done.ref.page).reads == done.reads;
  if (!leaves) return;
  const PageRecord& record = store_->record(done.ref.page);
  if (!record.is_held && record.pin != Pin::kSoft) store_->spare(done.ref.page);
}

}  // namespace hicache
