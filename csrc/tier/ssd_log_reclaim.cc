// How a volume gets a region back: keep what was reused, forget the rest, erase.
#include <algorithm>

#include "tier/ssd_log.h"

namespace hicache {
namespace {

constexpr uint32_t kFreeRegionsMin = 3;  // Below this a region is reclaimed.
// Of a region, rewritten at most: with r of it kept, 1 / (1 - r) bytes are written per byte stored.
constexpr double kRewriteShareMax = 0.2;
constexpr uint32_t kReadsInFlightMax = 4;
constexpr uint64_t kRewriteTag = uint64_t{1} << 63;

}  // namespace

void SsdLog::reclaim(size_t volume, uint64_t now_ms) {
  VolumeState& state = volumes_[volume];
  if (!may_write_ || !state.volume->can_write()) return;
  if (state.reclaim.region == kNoRegion) {
    const bool is_wanted = state.is_low || state.volume->free_region_count() < kFreeRegionsMin;
    if (is_wanted && state.unrecovered_count == 0) begin_reclaim(volume, now_ms);
  }
  if (state.reclaim.region == kNoRegion) return;
  read_rewrites(state, volume, now_ms);
  finish_reclaim(state, now_ms);
}

void SsdLog::begin_reclaim(size_t volume, uint64_t now_ms) {
  VolumeState& state = volumes_[volume];
  const RegionIndex victim = index_.choose_victim([&](RegionIndex region) {
    const RegionName& name = regions_[region];
    return name.volume == volume &&
           state.volume->state(name.number) == SsdVolume::RegionState::kSealed &&
           !options_.is_leased(region);
  });
  if (victim == kNoRegion) return;
  const uint32_t number = regions_[victim].number;
  state.volume->begin_reclaim(number);
  state.reclaim = Reclaim{.region = victim, .unread = {}};
  // With little space left on the disk nothing is written to make room.
  const double share = state.is_low ? 0 : kRewriteShareMax;
  const auto bytes_max =
      static_cast<uint64_t>(share * static_cast<double>(state.volume->file().region_size_bytes));
  const std::vector<SsdPageIndex> kept =
      index_.choose_rewrites(victim, bytes_max, options_.is_in_dram);
  for (const SsdPageIndex page : kept) state.reclaim.unread.push_back(index_[page].place);

  std::unordered_set<SsdPageIndex> is_kept(kept.begin(), kept.end());
  for (const SsdPageIndex page : index_.pages_of(victim)) {
    if (is_kept.contains(page)) continue;
    counts_.eviction_age_s = now_ms / 1000 - index_[page].written_s;
    ++counts_.dropped_pages;
    index_.erase(page);
  }
  // A removal outlives its region while anything that it removes may still be on the disk.
  for (const SsdEntry& entry : state.volume->removals(number)) {
    if (!has_older_region(state, number, entry.sequence)) continue;
    state.removals.push_back(entry);
    removing_.insert(entry.sequence);
  }
}

bool SsdLog::has_older_region(const VolumeState& state, uint32_t number, uint64_t sequence) const {
  for (uint32_t other = 0; other < state.volume->region_count(); ++other) {
    const SsdVolume::RegionState region = state.volume->state(other);
    if (other == number || region == SsdVolume::RegionState::kFree) continue;
    // What is not recovered may be older.
    if (region == SsdVolume::RegionState::kUnknown || state.volume->sequence(other) < sequence) {
      return true;
    }
  }
  return false;
}

void SsdLog::read_rewrites(VolumeState& state, size_t volume, uint64_t now_ms) {
  while (!state.reclaim.unread.empty() && state.reclaim.outstanding < kReadsInFlightMax) {
    const SsdPlace place = state.reclaim.unread.front();
    state.reclaim.unread.pop_front();
    const SsdPageIndex found = index_.page_at(place);
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
  const SsdPageIndex now = index_.page_at(page.place);
  const bool is_wanted = now != kNoSsdPage && index_[now].sequence == page.sequence;
  const bool is_whole =
      error == 0 && options_.page_checksum(rewrite.memory.span().first(page.size)) == page.checksum;
  if (error == SsdVolume::kAbandoned) rewrite.memory.abandon();
  if (!is_wanted || !is_whole || !state.volume->can_write()) {
    if (is_wanted && !is_whole) {
      counts_.corrupt_pages += error == 0;
      index_.erase(now);
    }
    --state.reclaim.outstanding;
    return;
  }
  SsdVolume::PageWrite write;
  write.entry.key = page.key;
  write.entry.name_space = rewrite.name_space;
  write.entry.sequence = page.sequence;
  write.entry.size = page.size;
  write.entry.checksum = page.checksum;
  write.entry.parent_key_hash =
      page.parent_hash == 0 ? 0 : key_hash_of(page.space, page.parent_hash);
  write.space = page.space;
  write.parent_hash = page.parent_hash;
  write.parts = {{rewrite.memory.address(), rewrite.memory.size()}};
  write.memory = std::move(rewrite.memory);
  write.is_rewrite = true;
  state.rewrites.push_back(std::move(write));
}

void SsdLog::finish_reclaim(VolumeState& state, uint64_t now_ms) {
  Reclaim& reclaim = state.reclaim;
  if (reclaim.outstanding != 0 || !reclaim.unread.empty()) return;
  const uint32_t number = regions_[reclaim.region].number;
  if (state.volume->state(number) != SsdVolume::RegionState::kReclaiming) return;
  // What could not be rewritten goes too.
  counts_.dropped_pages += index_.drop_region(reclaim.region);
  // Its removals must stand elsewhere first, and its readers be gone.
  const std::span<const SsdEntry> removals = state.volume->removals(number);
  const bool is_carried =
      std::none_of(removals.begin(), removals.end(),
                   [this](const SsdEntry& entry) { return removing_.contains(entry.sequence); });
  if (is_carried && !options_.is_leased(reclaim.region)) state.volume->erase(number, now_ms);
}

void SsdLog::on_region_free(SsdVolume& volume, uint32_t) {
  volumes_[index_of(volume)].reclaim = Reclaim{};
}

}  // namespace hicache
