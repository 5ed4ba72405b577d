// How a volume gets a region back: keep what was reused, forget the rest, erase.
#include <algorithm>

#include "tier/ssd_log.h"

namespace hicache {
namespace {

constexpr uint32_t kFreeRegionsMin = 3;     // Below this a region is reclaimed.
constexpr uint32_t kFreeRegionsUrgent = 2;  // Below this also one that look-ups have promised.
// Of a region, rewritten at most: with r of it kept, 1 / (1 - r) bytes are written per byte stored.
constexpr double kRewriteShareMax = 0.2;
constexpr uint32_t kReadsInFlightMax = 4;
constexpr uint64_t kReadersPatienceMs = 60'000;  // Then removals are at risk rather than writes.
constexpr uint64_t kRewriteTag = uint64_t{1} << 63;

}  // namespace

void SsdLog::reclaim(size_t volume, uint64_t now_ms) {
  VolumeState& state = volumes_[volume];
  if (!may_write_ || !state.volume->can_write()) return;
  if (state.reclaim.region == kNoRegion) {
    const uint32_t wanted = has_few_regions(*state.volume) ? 1 : kFreeRegionsMin;
    const bool is_wanted = state.volume->free_region_count() < wanted || state.volume->has_excess();
    if (is_wanted && state.unrecovered_count == 0) begin_reclaim(volume, now_ms);
  }
  if (state.reclaim.region == kNoRegion) return;
  read_rewrites(state, volume, now_ms);
  finish_reclaim(volume, now_ms);
}

/// The smallest sequence of all regions but this one that may hold something; 0 if one may be older
/// than all. Pages move between volumes when they are written anew: removals of one volume are
/// about the pages of all.
uint64_t SsdLog::oldest_sequence_but(RegionIndex region) const {
  uint64_t oldest = UINT64_MAX;
  for (size_t volume = 0; volume < volumes_.size(); ++volume) {
    const VolumeState& state = volumes_[volume];
    for (uint32_t number = 0; number < state.volume->region_count(); ++number) {
      const SsdVolume::RegionState now = state.volume->state(number);
      const bool is_it = number < state.regions.size() && state.regions[number] == region;
      if (is_it || now == SsdVolume::RegionState::kFree) continue;
      if (now == SsdVolume::RegionState::kUnknown) return 0;
      oldest = std::min(oldest, state.volume->sequence(number));
    }
  }
  return oldest;
}

RegionIndex SsdLog::choose_victim(size_t volume, uint64_t now_ms) {
  VolumeState& state = volumes_[volume];
  std::vector<RegionIndex> sealed;
  for (uint32_t number = 0; number < state.volume->region_count(); ++number) {
    if (state.volume->state(number) != SsdVolume::RegionState::kSealed) continue;
    const RegionIndex region = region_index(volume, number);
    // It may never have held a page.
    if (index_.region(region).page_count == 0) {
      index_.begin_region(region, state.volume->sequence(number));
    }
    sealed.push_back(region);
  }
  if (sealed.empty()) return kNoRegion;
  const auto oldest =
      *std::min_element(sealed.begin(), sealed.end(), [this](RegionIndex left, RegionIndex right) {
        return index_.region(left).sequence < index_.region(right).sequence;
      });
  if (state.reclaim.is_forced) return choose_forced(volume, std::move(sealed), now_ms);
  const bool has_room = state.volume->free_region_count() >= kFreeRegionsMin;
  if (has_room) {  // Then it is for those beyond the size limit, oldest first.
    std::erase_if(sealed, [&](RegionIndex region) {
      return !state.volume->is_excess(regions_[region].number) || options_.is_leased(region);
    });
    const auto first =
        std::min_element(sealed.begin(), sealed.end(), [this](RegionIndex left, RegionIndex right) {
          return index_.region(left).sequence < index_.region(right).sequence;
        });
    return first == sealed.end() ? kNoRegion : *first;
  }
  const bool spares_promised = state.volume->free_region_count() >= kFreeRegionsUrgent;
  const auto is_eligible = [&](RegionIndex region) {
    return std::binary_search(sealed.begin(), sealed.end(), region) &&
           !options_.is_leased(region) && !(spares_promised && options_.is_promised(region));
  };
  // One of removals alone takes as much room as it gives, unless it is the oldest.
  const RegionIndex victim = index_.choose_victim([&](RegionIndex region) {
    return is_eligible(region) && (region == oldest || index_.region(region).page_count != 0 ||
                                   state.volume->removals(regions_[region].number).empty());
  });
  return victim != kNoRegion ? victim : index_.choose_victim(is_eligible);
}

/// The volume has no room for what must outlive a region. Of those without such removals the
/// oldest, and readers of it are waited for; else the oldest of all, whose removals another volume
/// takes. On a volume alone the oldest has none: they are about what was older still.
RegionIndex SsdLog::choose_forced(size_t volume, std::vector<RegionIndex> sealed, uint64_t now_ms) {
  std::sort(sealed.begin(), sealed.end(), [this](RegionIndex left, RegionIndex right) {
    return index_.region(left).sequence < index_.region(right).sequence;
  });
  const uint64_t oldest = oldest_sequence_but(kNoRegion);
  for (const RegionIndex region : sealed) {
    const bool is_oldest = index_.region(region).sequence == oldest;
    const uint64_t other = is_oldest ? oldest_sequence_but(region) : oldest;
    const auto removals = volumes_[volume].volume->removals(regions_[region].number);
    const auto is_needed = [other](const SsdEntry& entry) { return entry.sequence > other; };
    if (std::any_of(removals.begin(), removals.end(), is_needed)) continue;
    if (!options_.is_leased(region)) return region;
    uint64_t& until_ms = volumes_[volume].readers_until_ms;
    if (until_ms == 0) until_ms = now_ms + kReadersPatienceMs;
    if (now_ms < until_ms) return kNoRegion;
  }
  std::erase_if(sealed, [this](RegionIndex region) { return options_.is_leased(region); });
  return sealed.empty() ? kNoRegion : sealed.front();
}

size_t SsdLog::roomy_but(size_t volume) const {
  for (size_t other = 0; other < volumes_.size(); ++other) {
    const SsdVolume& candidate = *volumes_[other].volume;
    const bool can_take = other != volume && candidate.can_write() && !candidate.is_silent();
    const bool has_room = candidate.open_fits(1, 0) || candidate.free_region_count() != 0;
    if (can_take && has_room) return other;
  }
  return volume;
}

SsdPageIndex SsdLog::find_same(const SsdPage& page) const {
  const SsdPageIndex found = index_.find(page.space, page.key);
  return found != kNoSsdPage && index_[found].place == page.place ? found : kNoSsdPage;
}

void SsdLog::begin_reclaim(size_t volume, uint64_t now_ms) {
  VolumeState& state = volumes_[volume];
  state.reclaim.is_forced = state.volume->free_region_count() == 0;
  const RegionIndex victim = choose_victim(volume, now_ms);
  if (victim == kNoRegion) return;
  state.readers_until_ms = 0;
  const uint32_t number = regions_[victim].number;
  state.volume->begin_reclaim(number);
  state.reclaim.region = victim;
  // With little space left on the disk nothing is written to make room.
  const double share = state.is_low || state.reclaim.is_forced ? 0 : kRewriteShareMax;
  const auto bytes_max =
      static_cast<uint64_t>(share * static_cast<double>(state.volume->file().region_size_bytes));
  const std::vector<SsdPageIndex> kept =
      index_.choose_rewrites(victim, bytes_max, options_.is_in_dram);
  for (const SsdPageIndex page : kept) state.reclaim.unread.push_back(index_[page]);

  std::unordered_set<SsdPageIndex> is_kept(kept.begin(), kept.end());
  for (const SsdPageIndex page : index_.pages_of(victim)) {
    if (is_kept.contains(page)) continue;
    counts_.eviction_age_s = now_ms / 1000 - index_[page].written_s;
    ++counts_.dropped_pages;
    forget(page);
  }
  // A removal outlives its region while anything that it removes may still be on a disk. It goes
  // first: rewrites may find no room.
  const uint64_t oldest = oldest_sequence_but(victim);
  state.reclaim.keeper = state.reclaim.is_forced ? roomy_but(volume) : volume;
  for (const SsdEntry& entry : state.volume->removals(number)) {
    if (oldest >= entry.sequence) continue;
    volumes_[state.reclaim.keeper].removals.push_front(entry);
    ++volumes_[state.reclaim.keeper].carried_count;
    removing_.insert(entry.sequence);
  }
}

void SsdLog::read_rewrites(VolumeState& state, size_t volume, uint64_t now_ms) {
  while (!state.reclaim.unread.empty() && state.reclaim.outstanding < kReadsInFlightMax) {
    const SsdPageIndex found = find_same(state.reclaim.unread.front());
    state.reclaim.unread.pop_front();
    if (found == kNoSsdPage) continue;
    const SsdPage& page = index_[found];
    MappedMemory memory = MappedMemory::make(sectors_of(page.size) * kSectorSize);
    if (!memory.valid()) continue;  // No memory: the page is forgotten with its region.
    const std::vector<iovec> parts{{memory.address(), memory.size()}};
    const uint64_t tag = kRewriteTag | next_rewrite_tag_++;
    rewriting_.emplace(tag, Rewrite{volume, page, name_spaces_.at(page.space), std::move(memory)});
    ++state.reclaim.outstanding;
    read(page, parts, tag, now_ms);
  }
}

void SsdLog::finish_rewrite(Rewrite rewrite, int error) {
  VolumeState& state = volumes_[rewrite.volume];
  const SsdPage& page = rewrite.page;
  const SsdPageIndex now = find_same(page);
  // Of a space that ended nothing may be written into a region newer than its end.
  const bool is_wanted = now != kNoSsdPage && index_[now].sequence == page.sequence &&
                         !ended_spaces_.contains(page.space);
  const bool is_whole =
      error == 0 && options_.page_checksum(rewrite.memory.span().first(page.size)) == page.checksum;
  if (error == SsdVolume::kAbandoned) rewrite.memory.abandon();
  if (!is_wanted || !is_whole || !state.volume->can_write()) {
    if (is_wanted && !is_whole) {
      counts_.corrupt_pages += error == 0;
      forget(now);
    }
    --state.reclaim.outstanding;
    return;
  }
  const std::vector<iovec> parts{{rewrite.memory.address(), rewrite.memory.size()}};
  SsdVolume::PageWrite write = page_write({.space = page.space,
                                           .name_space = rewrite.name_space,
                                           .key = page.key,
                                           .size = page.size,
                                           .checksum = page.checksum,
                                           .parent_hash = page.parent_hash,
                                           .parts = parts,
                                           .memory = std::move(rewrite.memory),
                                           .tag = 0},
                                          page.sequence);
  write.is_rewrite = true;
  state.rewrites.push_back(std::move(write));
}

void SsdLog::finish_reclaim(size_t volume, uint64_t now_ms) {
  VolumeState& state = volumes_[volume];
  Reclaim& reclaim = state.reclaim;
  if (reclaim.outstanding != 0 || !reclaim.unread.empty()) return;
  const uint32_t number = regions_[reclaim.region].number;
  if (state.volume->state(number) != SsdVolume::RegionState::kReclaiming) return;
  // What could not be rewritten goes too.
  for (const SsdPageIndex page : index_.pages_of(reclaim.region)) {
    ++counts_.dropped_pages;
    forget(page);
  }
  // Its removals must stand elsewhere first, and its readers be gone.
  const std::span<const SsdEntry> removals = state.volume->removals(number);
  const bool is_carried =
      std::none_of(removals.begin(), removals.end(),
                   [this](const SsdEntry& entry) { return removing_.contains(entry.sequence); });
  // Where nothing has room for them, the region's own is all there is.
  const bool is_stuck = reclaim.is_forced &&
                        (reclaim.keeper == volume || !volumes_[reclaim.keeper].volume->can_write());
  if ((is_carried || is_stuck) && !options_.is_leased(reclaim.region)) {
    state.volume->erase(number, now_ms);
  }
}

void SsdLog::on_region_free(SsdVolume& volume, uint32_t number) {
  VolumeState& state = volumes_[index_of(volume)];
  const RegionIndex region = state.regions[number];
  std::erase_if(state.forgotten, [region](const auto& page) { return page.second == region; });
  if (state.reclaim.region == region) state.reclaim = Reclaim{};
}

}  // namespace hicache
