// The log's way to the disks: from the queues into groups, from the groups into the index.
#include <algorithm>

#include "tier/ssd_log.h"

namespace hicache {
namespace {

// One write of this size is as fast as the disk, and small enough that others get their turn.
constexpr uint64_t kGroupSectorsMax = 8 * kMiB / kSectorSize;
constexpr size_t kPartsMax = 1000;  // Of one request: the kernel takes 1024.

}  // namespace

SsdVolume::PageWrite SsdLog::page_write(Page page, uint64_t sequence) {
  SsdVolume::PageWrite write;
  write.entry.key = page.key;
  write.entry.name_space = page.name_space;
  write.entry.sequence = sequence;
  write.entry.size = page.size;
  write.entry.checksum = page.checksum;
  write.entry.parent_key_hash =
      page.parent_hash == 0 ? 0 : key_hash_of(page.space, page.parent_hash);
  write.space = page.space;
  write.parent_hash = page.parent_hash;
  write.parts = std::move(page.parts);
  write.memory = std::move(page.memory);
  write.tag = page.tag;
  return write;
}

void SsdLog::write(Page page) {
  writing_bytes_ += page.size;
  name_spaces_.try_emplace(page.space, page.name_space);
  const uint64_t hash = page_hash(page.space, page.key);
  queue_.push_back(page_write(std::move(page), next_sequence_++));
  queued_.emplace(hash, std::prev(queue_.end()));
}

SsdVolume::PageWrite SsdLog::take_queued(Queue::iterator page) {
  auto known = queued_.equal_range(page_hash(page->space, page->entry.key)).first;
  while (known->second != page) ++known;
  queued_.erase(known);
  SsdVolume::PageWrite taken = std::move(*page);
  queue_.erase(page);
  return taken;
}

void SsdLog::cancel_queued(SpaceIndex space, const Key* key) {
  const auto is_it = [&](const SsdVolume::PageWrite& write) {
    return write.space == space && (key == nullptr || write.entry.key == *key);
  };
  std::vector<Queue::iterator> found;
  if (key != nullptr) {
    const auto [first, last] = queued_.equal_range(page_hash(space, *key));
    for (auto known = first; known != last; ++known) {
      if (is_it(*known->second)) found.push_back(known->second);
    }
  } else {
    for (auto page = queue_.begin(); page != queue_.end(); ++page) {
      if (is_it(*page)) found.push_back(page);
    }
  }
  std::vector<uint64_t> cancelled;
  for (const Queue::iterator page : found) {
    writing_bytes_ -= page->entry.size;
    cancelled.push_back(take_queued(page).tag);
  }
  for (VolumeState& state : volumes_) {
    state.reclaim.outstanding -= static_cast<uint32_t>(std::erase_if(state.rewrites, is_it));
  }
  for (const uint64_t tag : cancelled) options_.on_written(tag, false);
}

/// No volume takes pages any more, or none takes those soon enough.
void SsdLog::refuse_queue() {
  queued_.clear();
  for (const SsdVolume::PageWrite& write : std::exchange(queue_, {})) {
    writing_bytes_ -= write.entry.size;
    options_.on_written(write.tag, false);
  }
}

/// There is no room for them, or no way: their pages go with their region.
void SsdLog::drop_rewrites(VolumeState& state) {
  state.reclaim.outstanding -= static_cast<uint32_t>(state.rewrites.size());
  state.rewrites.clear();
}

bool SsdLog::write_groups(VolumeState& state, uint64_t now_ms) {
  if (!state.volume->can_write()) {
    const std::deque<SsdEntry> removals = std::exchange(state.removals, {});
    state.carried_count = 0;
    queue_again(index_of(*state.volume), std::vector(removals.begin(), removals.end()));
    drop_rewrites(state);
    return false;
  }
  // What makes room comes first. Everything else leaves the last free region to it.
  if (!state.rewrites.empty() || !state.removals.empty()) {
    return write_group(state, state.rewrites, true, now_ms);
  }
  return !queue_.empty() && write_group(state, queue_, false, now_ms);
}

/// Free regions that only what makes room may use. Of one or two there is none to spare.
uint32_t SsdLog::spare_regions(const VolumeState& state) {
  return state.unrecovered_count == 0 && has_few_regions(*state.volume) ? 0 : 1;
}

bool SsdLog::has_few_regions(const SsdVolume& volume) {
  return volume.used_region_count() + volume.free_region_count() < kRegionCountMin;
}

bool SsdLog::write_group(VolumeState& state, Queue& from, bool is_rewrite, uint64_t now_ms) {
  SsdVolume& volume = *state.volume;
  // What does not fit an empty region fits none.
  const uint64_t sectors_max = std::min(kGroupSectorsMax, volume.page_size_max() / kSectorSize);
  const size_t removal_count = std::min(state.removals.size(), kGroupEntryCountMax);
  size_t count = 0;
  uint64_t sector_count = 0;
  size_t part_count = 1;
  for (const SsdVolume::PageWrite& page : from) {
    if (removal_count + count == kGroupEntryCountMax) break;
    const uint64_t sectors = sectors_of(page.entry.size);
    part_count += page.parts.size();
    if (count != 0 && (sector_count + sectors > sectors_max || part_count > kPartsMax)) break;
    sector_count += sectors;
    ++count;
  }
  const bool is_spared = volume.free_region_count() < spare_regions(state) + 1;
  // Where no region can be had now, what is left of the open one is filled.
  while (is_spared && !is_rewrite && count > 1 && !volume.open_fits(count, sector_count)) {
    sector_count -= sectors_of(std::next(from.begin(), --count)->entry.size);
  }
  const size_t entry_count = removal_count + count;
  if (is_spared && !volume.open_fits(entry_count, sector_count)) {
    // Only what is sealed can be reclaimed. With little space left nothing would come after it.
    if (!is_rewrite && volume.used_region_count() == 1 && !state.is_low) volume.seal(now_ms);
    const bool is_reclaim = state.carried_count != 0 || count != 0;
    if (!is_rewrite || (!is_reclaim && state.reclaim.region != kNoRegion)) return false;
    if (count != 0 && volume.free_region_count() == 0 && !volume.is_opening()) {
      drop_rewrites(state);
      return true;
    }
  }
  bool used_sequence = false;
  const bool is_ready =
      volume.make_ready(entry_count, sector_count, next_sequence_, &used_sequence, now_ms);
  next_sequence_ += used_sequence;
  if (!is_ready) return false;

  std::vector<SsdVolume::PageWrite> pages;
  for (; count != 0; --count) {
    if (is_rewrite) {
      pages.push_back(std::move(from.front()));
      from.pop_front();
      continue;
    }
    pages.push_back(take_queued(from.begin()));
    const SsdVolume::PageWrite& page = pages.back();
    in_flight_[page_hash(page.space, page.entry.key)] = {index_of(volume), page.entry.sequence};
  }
  const auto removals_end = state.removals.begin() + static_cast<ptrdiff_t>(removal_count);
  std::vector<SsdEntry> removals(state.removals.begin(), removals_end);
  state.removals.erase(state.removals.begin(), removals_end);
  state.carried_count -= std::min(state.carried_count, removal_count);
  volume.append(std::move(pages), std::move(removals), unix_time_s_, now_ms);
  return true;
}

void SsdLog::on_written(SsdVolume& volume, uint32_t region, SsdVolume::PageWrite& page, bool ok) {
  const size_t volume_index = index_of(volume);
  VolumeState& state = volumes_[volume_index];
  const uint64_t hash = page_hash(page.space, page.entry.key);
  SsdPage found;
  found.key = page.entry.key;
  found.sequence = page.entry.sequence;
  found.checksum = page.entry.checksum;
  found.parent_hash = page.parent_hash;
  found.space = page.space;
  found.size = static_cast<uint32_t>(page.entry.size);
  found.place = {region_index(volume_index, region), page.entry.first_sector};
  found.written_s = static_cast<uint32_t>(now_ms_ / 1000);
  const SsdIndex::Region& known = index_.region(found.place.region);
  if (known.page_count == 0) index_.begin_region(found.place.region, volume.sequence(region));
  if (page.is_rewrite) {
    --state.reclaim.outstanding;
    const SsdPageIndex old = index_.find(page.space, page.entry.key, hash);
    if (!ok || old == kNoSsdPage || index_[old].sequence != found.sequence) return;
    index_.erase(old);
    index_.insert(found);
    ++counts_.rewritten_pages;
    counts_.rewritten_bytes += found.size;
    return;
  }
  const auto in_flight = in_flight_.find(hash);
  // A newer one of this name may have been given to a volume since.
  const bool is_newest =
      in_flight != in_flight_.end() && in_flight->second.sequence == page.entry.sequence;
  const bool is_removed = !is_newest || in_flight->second.is_removed;
  if (is_newest) in_flight_.erase(in_flight);
  writing_bytes_ -= page.entry.size;
  // What a disk calls failed may lie there all the same, whole: a removal has to know of it.
  if (!ok) note_forgotten(hash, found.place.region);
  ok = ok && !is_removed && !ended_spaces_.contains(page.space);
  if (ok) {
    // Recovery may have found an older copy since it was queued.
    const SsdPageIndex older = index_.find(page.space, page.entry.key, hash);
    if (older != kNoSsdPage) {
      remove_older(page.entry.name_space, page.entry.key, found.sequence,
                   volume_of(index_[older].place.region));
    }
    index_.insert(found);
    ++counts_.written_pages;
    counts_.written_bytes += found.size;
  }
  if (page.is_damaged && options_.on_damaged) options_.on_damaged(page.tag);
  options_.on_written(page.tag, ok);
}

void SsdLog::on_removals_done(SsdVolume& volume, std::span<const SsdEntry> entries, bool ok) {
  if (!ok) {
    ++counts_.write_errors;
    return queue_again(index_of(volume), entries);
  }
  for (const SsdEntry& entry : entries) {
    const auto found = removing_.find(entry.sequence);
    if (found != removing_.end()) removing_.erase(found);
  }
}

}  // namespace hicache
