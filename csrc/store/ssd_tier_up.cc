// Pages on their way from the SSDs to the pool.
#include <algorithm>
#include <cstring>

#include "store/ssd_tier.h"

namespace hicache {
namespace {

constexpr size_t kWishesMax = 65536;
// In flight: enough to keep a disk busy. What is on its way when its reader comes, the reader has
// to wait for.
constexpr size_t kComingMax = 16;
constexpr uint64_t kComingBytesMax = 8 * kMiB;
// Readers come first, but where there are some all the time, not for ever: then few come up at
// once, beside the 32 reads that one reader has in flight.
constexpr uint64_t kPatienceMs = 400;
constexpr size_t kComingBesideMax = 4;
constexpr uint64_t kAgainDelayMs = 1000;  // Its reader is done by then.

}  // namespace

uint64_t SsdTier::staging_max_bytes() const {
  return static_cast<uint64_t>(options_.staging_share *
                               static_cast<double>(store_->reachable_bytes()));
}

void SsdTier::wish(const PageName& name, uint64_t size, uint64_t due_ms) {
  // More than that would push out of the pool what has just come.
  if (wishes_.size() >= kWishesMax || wishes_bytes_ + size > staging_max_bytes()) return;
  if (!wished_.insert(name.hash).second) return;
  wishes_.push_back({name.space, name.key, name.hash, size, due_ms});
  wishes_bytes_ += size;
  is_due_ = true;
}

void SsdTier::again(const PageName& name, uint64_t size, uint64_t now_ms) {
  if (agains_.size() >= kWishesMax) return;
  is_due_ = is_due_ || agains_.empty();  // Its time is not known to whoever calls advance().
  agains_.push_back({name.space, name.key, name.hash, size, now_ms + kAgainDelayMs});
}

bool SsdTier::fetch(SpaceIndex space, const Key& key) {
  const PageName name{space, key, page_hash(space, key)};
  const SsdPageIndex page = find(name);
  if (page == kNoSsdPage) return false;
  wish(name, log_->index()[page].size, now_ms_);
  return true;
}

uint64_t SsdTier::stage(uint64_t now_ms) {
  const bool is_beside = now_ms < staging_from_ms_;
  const size_t coming_max = is_beside ? kComingBesideMax : kComingMax;
  for (;;) {
    while (!wishes_.empty() && !wished_.contains(wishes_.front().hash)) take_wish();
    if (wishes_.empty()) {
      if (agains_.empty()) return UINT64_MAX;
      const Wish due = agains_.front();
      if (due.due_ms > now_ms) return due.due_ms;
      agains_.pop_front();
      wish({due.space, due.key, due.hash}, due.size, due.due_ms);
      continue;
    }
    const uint64_t patient_until_ms = wishes_.front().due_ms + kPatienceMs;
    if (is_beside && now_ms < patient_until_ms) return std::min(staging_from_ms_, patient_until_ms);
    // What is left waits for a read to complete, which calls.
    if (coming_.size() >= coming_max || coming_bytes_ >= kComingBytesMax) return UINT64_MAX;
    const Wish next = take_wish();
    wished_.erase(next.hash);
    begin_staging(next, now_ms);
  }
}

SsdTier::Wish SsdTier::take_wish() {
  const Wish next = wishes_.front();
  wishes_.pop_front();
  wishes_bytes_ -= next.size;
  return next;
}

void SsdTier::begin_staging(const Wish& wish, uint64_t now_ms) {
  const PageName name{wish.space, wish.key, wish.hash};
  const SsdPageIndex found = find(name);
  if (found == kNoSsdPage || store_->has_hash(wish.hash) || !store_->is_current(wish.space) ||
      coming_hashes_.contains(wish.hash)) {
    return;
  }
  const SsdPage below = log_->index()[found];
  const PageIndex page = store_->reserve_from_below(name, below.size, below.parent_hash, now_ms);
  if (page == kNoPage) return;
  std::vector<iovec> parts;
  MappedMemory memory;
  const std::span<const Extent> extents = store_->record(page).extents.span();
  constexpr size_t kPartsMax = 1000;  // The kernel takes 1024.
  if (SlotAllocator::shares_slots(extents) || extents.size() > kPartsMax) {
    // Small pages share slots with others, which a read of whole sectors would overwrite.
    memory = MappedMemory::make(sectors_of(below.size) * kSectorSize);
    if (!memory.valid()) return store_->drop_from_below(page);
    parts = {{memory.address(), memory.size()}};
  } else {
    for (const Extent& extent : extents) {
      parts.push_back({surroundings_.pool + extent.offset, sectors_of(extent.size) * kSectorSize});
    }
  }
  const RegionIndex region = below.place.region;
  if (region >= coming_by_region_.size()) coming_by_region_.resize(region + 1);
  ++coming_by_region_[region];
  coming_bytes_ += below.size;
  const uint64_t tag = next_tag_++;
  coming_hashes_[wish.hash] = tag;
  coming_[tag] = {page, below.place, below.checksum, below.size, wish.hash, std::move(memory)};
  log_->read(below, std::move(parts), tag, now_ms);
}

void SsdTier::after_read(uint64_t tag, int error) {
  const auto found = coming_.find(tag);
  Coming coming = std::move(found->second);
  coming_.erase(found);
  --coming_by_region_[coming.place.region];
  coming_bytes_ -= coming.size;
  // Taken out meanwhile: the page was removed.
  const auto wanted = coming_hashes_.find(coming.hash);
  const bool is_wanted = wanted != coming_hashes_.end() && wanted->second == tag;
  if (is_wanted) coming_hashes_.erase(wanted);
  if (error == SsdVolume::kAbandoned) {
    // Its room in the pool is lost, not reused, if it was to be read into that.
    if (coming.memory.valid()) store_->drop_from_below(coming.page);
    coming.memory.abandon();
    return;
  }
  if (error != 0) {
    store_->drop_from_below(coming.page);
    // Not now: the log is in the middle of it.
    if (!is_want_of_memory(error)) failed_places_.push_back(coming.place);
    return;
  }
  if (!is_wanted) return store_->drop_from_below(coming.page);
  const uint8_t* from = coming.memory.address();
  for (const Extent& extent : store_->record(coming.page).extents.span()) {
    if (!coming.memory.valid()) break;
    std::memcpy(surroundings_.pool + extent.offset, from, extent.size);
    from += extent.size;
  }
  // Not verified here: whoever reads it does, against the checksum that it was stored with.
  store_->commit_from_below(coming.page, coming.checksum, now_ms_);
  ++staged_pages_;
  staged_bytes_ += coming.size;
}

}  // namespace hicache
