// What SsdRecovery found, taken into the index a region at a time.
#include <algorithm>

#include "tier/ssd_log.h"

namespace hicache {
namespace {

constexpr size_t kEntriesPerStep = 4096;  // Then others have their turn.
// Between the largest sequence of a region and those of its entries: no region holds that many.
constexpr uint64_t kSequenceGap = uint64_t{1} << 32;

/// Of namespaces in the order of a region's entries: those of one follow each other.
class LastSpace {
 public:
  explicit LastSpace(const std::function<SpaceIndex(const NamespaceDigest&)>& space_of)
      : space_of_(space_of) {}

  SpaceIndex of(const NamespaceDigest& digest) {
    if (digest_ == nullptr || *digest_ != digest) {
      space_ = space_of_(digest);
      digest_ = &digest;
    }
    return space_;
  }

 private:
  const std::function<SpaceIndex(const NamespaceDigest&)>& space_of_;
  const NamespaceDigest* digest_ = nullptr;
  SpaceIndex space_ = kAnySpace;
};

}  // namespace

void SsdLog::recover(uint64_t now_ms) {
  if (!recovery_) return;
  if (!may_write_) {
    const auto max_sequence = recovery_->max_sequence();
    if (!max_sequence) return;
    if (*max_sequence != 0) set_sequence_base(*max_sequence + kSequenceGap);
    may_write_ = true;
  }
  size_t left = kEntriesPerStep;
  while (left != 0) {
    if (!taking_) {
      std::optional<RecoveredRegion> region = recovery_->take();
      if (!region) break;
      --left;
      begin_taking(std::move(*region), now_ms);
      continue;
    }
    const size_t taken = take_entries(left, now_ms);
    if (taken < left) finish_taking(now_ms);
    left -= taken;
  }
  if (taking_ || !recovery_->is_finished()) {
    if (left == 0) options_.wake();  // Else it wakes when there is more.
    return;
  }
  recovery_.reset();
  removed_.clear();
  cleared_.clear();
  counts_.recovery_ms = now_ms - recovery_begun_ms_;
}

/// Removals that came before must be newer than everything that the files hold.
void SsdLog::set_sequence_base(uint64_t base) {
  sequence_base_ = base;
  next_sequence_ += base;
  if (last_lost_ != 0) last_lost_ += base;
  if (renew_before_ != 0) renew_before_ += base;
  removing_.clear();
  for (VolumeState& state : volumes_) {
    for (SsdEntry& entry : state.removals) {
      entry.sequence += base;
      removing_.insert(entry.sequence);
    }
  }
  for (auto& [hash, sequence] : removed_) sequence += base;
  for (auto& [hash, sequence] : cleared_) sequence += base;
}

void SsdLog::begin_taking(RecoveredRegion region, uint64_t now_ms) {
  VolumeState& state = volumes_[region.volume];
  counts_.corrupt_pages += region.damaged_pages;
  if (region.kind == RecoveredRegion::Kind::kUnreadable) {
    ++counts_.read_errors;  // It stays unknown, and unused in this life.
    ++state.unreadable_count;
    --state.unrecovered_count;
    return;
  }
  const RegionIndex index = region_index(region.volume, region.region);
  if (region.kind == RecoveredRegion::Kind::kDamaged && state.volume->can_write()) {
    state.volume->erase(region.region, now_ms);  // Else the next start meets it again.
    --state.unrecovered_count;
    return;
  }
  if (region.kind == RecoveredRegion::Kind::kFree ||
      region.kind == RecoveredRegion::Kind::kDamaged) {
    state.volume->recovered_free(region.region, now_ms);
    --state.unrecovered_count;
    return;
  }
  const uint64_t sectors = region.sector_count + footer_sectors(region.entries.size());
  if (sectors * kSectorSize > state.volume->file().region_size_bytes) {
    ++counts_.corrupt_pages;  // Nothing that we wrote.
    region.entries.clear();
    region.sector_count = 1;
  }
  // A number beyond all that were given out would outlive every removal.
  counts_.corrupt_pages += std::erase_if(
      region.entries, [this](const SsdEntry& entry) { return entry.sequence >= sequence_base_; });
  index_.begin_region(index, region.sequence);
  taking_.emplace(Taking{.region = std::move(region)});
}

size_t SsdLog::take_entries(size_t count_max, uint64_t now_ms) {
  Taking& taking = *taking_;
  const std::span<const SsdEntry> entries = taking.region.entries;
  const auto next = [&entries](size_t& end, size_t most) {
    const size_t first = std::exchange(end, std::min(entries.size(), end + most));
    return entries.subspan(first, end - first);
  };
  const auto removals = next(taking.removals_end, count_max);
  take_removals(removals);
  const auto pages = next(taking.pages_end, count_max - removals.size());
  take_pages(pages, now_ms);
  return removals.size() + pages.size();
}

void SsdLog::finish_taking(uint64_t now_ms) {
  RecoveredRegion region = std::move(taking_->region);
  taking_.reset();
  VolumeState& state = volumes_[region.volume];
  --state.unrecovered_count;
  if (state.volume->health() == SsdVolume::Health::kFailed) return;
  if (region.kind == RecoveredRegion::Kind::kUnsealed) {
    state.volume->seal_recovered(region.region, region.sequence, region.sector_count,
                                 std::move(region.entries), now_ms);
    return;
  }
  std::erase_if(region.entries,
                [](const SsdEntry& entry) { return entry.kind == SsdEntryKind::kPage; });
  state.volume->recovered_sealed(region.region, region.sequence, std::move(region.entries));
}

void SsdLog::take_pages(std::span<const SsdEntry> entries, uint64_t now_ms) {
  const uint32_t volume = taking_->region.volume;
  if (volumes_[volume].volume->health() == SsdVolume::Health::kFailed) return;
  const RegionIndex region = volumes_[volume].regions[taking_->region.region];
  LastSpace spaces(options_.space_of);
  for (const SsdEntry& entry : entries) {
    if (entry.kind != SsdEntryKind::kPage || is_removed(entry)) continue;
    const SpaceIndex space = spaces.of(entry.name_space);
    if (space == kAnySpace) {
      volumes_[volume].has_unkept = true;
      continue;
    }
    name_spaces_.try_emplace(space, entry.name_space);
    SsdPage page;
    page.key = entry.key;
    page.sequence = entry.sequence;
    page.checksum = entry.checksum;
    page.parent_hash = entry.parent_key_hash == 0 ? 0 : page_hash(space, entry.parent_key_hash);
    page.space = space;
    page.size = static_cast<uint32_t>(entry.size);
    page.place = {region, entry.first_sector};
    page.written_s = static_cast<uint32_t>(now_ms / 1000);
    settle_copies(entry, page, volume);
    counts_.recovered_pages += index_.insert(page) != SsdIndex::Inserted::kOlder;
  }
}

/// Of a page that lies on the disks twice only the newest copy is known from now on. The other one
/// must not come back once that has been forgotten.
void SsdLog::settle_copies(const SsdEntry& entry, const SsdPage& page, size_t volume) {
  const uint64_t hash = page_hash(page.space, page.key);
  const SsdPageIndex known = index_.find(page.space, page.key, hash);
  if (known == kNoSsdPage) return;
  const uint64_t known_sequence = index_[known].sequence;
  if (known_sequence == page.sequence) {  // Written anew, and its old region not erased yet.
    note_forgotten(hash, page.place.region);
    return;
  }
  const bool is_older = page.sequence < known_sequence;
  remove_older(entry.name_space, entry.key, std::max(known_sequence, page.sequence),
               is_older ? volume : volume_of(index_[known].place.region));
}

/// Its removal had not reached the disk, or there was none.
void SsdLog::remove_older(const NamespaceDigest& name_space, const Key& key, uint64_t sequence,
                          size_t volume) {
  SsdEntry removal;
  removal.kind = SsdEntryKind::kRemoved;
  removal.name_space = name_space;
  removal.key = key;
  removal.sequence = sequence;
  queue_removal(volume, removal);
}

void SsdLog::take_removals(std::span<const SsdEntry> entries) {
  LastSpace spaces(options_.space_of);
  for (const SsdEntry& entry : entries) {
    if (entry.kind == SsdEntryKind::kPage) continue;
    auto& table = entry.kind == SsdEntryKind::kRemoved ? removed_ : cleared_;
    uint64_t& sequence = table[removal_hash(entry)];
    sequence = std::max(sequence, entry.sequence);
    if (entry.kind != SsdEntryKind::kRemoved) continue;
    // A page that was rewritten may have come in already, from a newer region.
    const SpaceIndex space = spaces.of(entry.name_space);
    if (space == kAnySpace) continue;
    const SsdPageIndex page = index_.find(space, entry.key);
    if (page != kNoSsdPage && index_[page].sequence < entry.sequence) index_.erase(page);
  }
}

bool SsdLog::is_removed(const SsdEntry& entry) const {
  SsdEntry asked = entry;
  asked.kind = SsdEntryKind::kRemoved;
  const auto removed = removed_.find(removal_hash(asked));
  if (removed != removed_.end() && entry.sequence < removed->second) return true;
  asked.kind = SsdEntryKind::kCleared;
  const auto cleared = cleared_.find(removal_hash(asked));
  return cleared != cleared_.end() && entry.sequence < cleared->second;
}

uint64_t SsdLog::removal_hash(const SsdEntry& entry) {
  const uint64_t name_space = page_hash_detail::mix(entry.name_space.hash());
  if (entry.kind == SsdEntryKind::kCleared) return name_space;
  return page_hash_detail::mix(name_space ^ entry.key.hash());
}

}  // namespace hicache
