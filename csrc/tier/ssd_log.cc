#include "tier/ssd_log.h"

#include <algorithm>
#include <array>

namespace hicache {
namespace {

constexpr size_t kExpectedPages = 1 << 16;
constexpr size_t kDropPerStep = 1024;           // Pages of ended spaces, per advance().
constexpr uint32_t kRegionsDroppedPerStep = 8;  // Of a volume that failed.
constexpr uint64_t kSoonMs = 1;

}  // namespace

SsdLog::SsdLog(Options options, uint64_t now_ms)
    : options_(std::move(options)),
      index_(kExpectedPages),
      page_size_max_(UINT64_MAX),
      now_ms_(now_ms),
      recovery_begun_ms_(now_ms) {
  SsdVolume::Listener& listener = *this;
  for (const SsdVolume::File& file : options_.files) {
    VolumeState state;
    state.volume = std::make_unique<SsdVolume>(
        file, SsdVolume::Options{options_.io_timeout_ms, options_.write_depth},
        options_.make_device(), listener);
    state.unrecovered_count = state.volume->region_count();
    page_size_max_ = std::min(page_size_max_, state.volume->page_size_max());
    volumes_.push_back(std::move(state));
  }
  recovery_ = std::make_unique<SsdRecovery>(
      SsdRecovery::Options{options_.files, options_.make_device, options_.page_checksum,
                           options_.io_timeout_ms, options_.wake});
}

SsdLog::~SsdLog() {
  for (auto& [tag, rewrite] : rewriting_) rewrite.memory.abandon();
}

size_t SsdLog::index_of(const SsdVolume& volume) const {
  size_t index = 0;
  while (volumes_[index].volume.get() != &volume) ++index;
  return index;
}

RegionIndex SsdLog::region_index(size_t volume, uint32_t number) {
  std::vector<RegionIndex>& known = volumes_[volume].regions;
  while (known.size() <= number) {
    regions_.push_back({static_cast<uint32_t>(volume), static_cast<uint32_t>(known.size())});
    known.push_back(index_.add_region());
  }
  return known[number];
}

uint64_t SsdLog::file_offset(const SsdPage& page) const {
  const RegionName& name = regions_[page.place.region];
  return volumes_[name.volume].volume->offset_of(name.number, page.place.first_sector);
}

bool SsdLog::can_write() const {
  return may_write_ && std::any_of(volumes_.begin(), volumes_.end(), [](const VolumeState& state) {
           return state.volume->can_write();
         });
}

SsdPageIndex SsdLog::find(SpaceIndex space, const Key& key, uint64_t hash) const {
  const SsdPageIndex page = index_.find(space, key, hash);
  if (page == kNoSsdPage) return page;
  const SsdVolume& volume = *volumes_[volume_of(index_[page].place.region)].volume;
  const bool is_there = volume.health() != SsdVolume::Health::kFailed && !volume.is_silent();
  return is_there ? page : kNoSsdPage;
}

bool SsdLog::is_quiet() const {
  return writing_bytes_ == 0 && removing_.empty() &&
         std::all_of(volumes_.begin(), volumes_.end(), [](const VolumeState& state) {
           return !state.volume->can_write() || state.volume->is_quiet();
         });
}

uint64_t SsdLog::advance(uint64_t now_ms, uint64_t unix_time_s) {
  now_ms_ = now_ms;
  unix_time_s_ = unix_time_s;
  uint64_t next_ms = UINT64_MAX;
  for (VolumeState& state : volumes_) next_ms = std::min(next_ms, state.volume->poll(now_ms));
  recover(now_ms);
  for (size_t volume = 0; volume < volumes_.size(); ++volume) reclaim(volume, now_ms);
  if (may_write_) {
    for (VolumeState& state : volumes_) state.volume->seal_older(renew_before_, now_ms);
    bool wrote = true;
    while (wrote) {
      wrote = false;
      for (size_t i = 0; i < volumes_.size(); ++i) {
        wrote = write_groups(volumes_[next_volume_++ % volumes_.size()], now_ms) || wrote;
      }
    }
    if (!can_write()) refuse_queue();
    if (sealing_all_ && queue_.empty()) {
      for (VolumeState& state : volumes_) {
        // What waits may need the room that is left, and find no other region.
        if (state.removals.empty() && state.rewrites.empty()) state.volume->seal(now_ms);
      }
      sealing_all_ = !is_quiet();  // A region may be opening still.
    }
  }
  if (drop_lost_pages()) next_ms = std::min(next_ms, now_ms + kSoonMs);
  return next_ms;
}

bool SsdLog::drop_lost_pages() {
  if (!dropping_spaces_.empty() && !index_.drop_space(dropping_spaces_.back(), kDropPerStep)) {
    name_spaces_.erase(dropping_spaces_.back());
    dropping_spaces_.pop_back();
  }
  bool has_more = !dropping_spaces_.empty();
  for (VolumeState& state : volumes_) {
    if (state.volume->health() != SsdVolume::Health::kFailed) continue;
    for (uint32_t i = 0; i < kRegionsDroppedPerStep; ++i) {
      if (state.dropped_count == state.regions.size()) break;
      counts_.dropped_pages += index_.drop_region(state.regions[state.dropped_count++]);
    }
    has_more = has_more || state.dropped_count < state.regions.size();
  }
  return has_more;
}

// ---------------------------------------------------------------- forgetting

SsdEntry SsdLog::removal(SsdEntryKind kind, const NamespaceDigest& name_space, const Key& key) {
  SsdEntry entry;
  entry.kind = kind;
  entry.name_space = name_space;
  entry.key = key;
  entry.sequence = next_sequence_++;
  return entry;
}

size_t SsdLog::keeper_of(size_t volume) const {
  if (volumes_[volume].volume->can_write()) return volume;
  size_t keeper = 0;
  while (keeper < volumes_.size() && !volumes_[keeper].volume->can_write()) ++keeper;
  return keeper;
}

void SsdLog::queue_removal(size_t volume, const SsdEntry& entry) {
  const size_t keeper = keeper_of(volume);
  if (keeper == volumes_.size()) {
    // The page is out of reach for now; after a restart it may be back.
    ++counts_.write_errors;
    last_lost_ = std::max(last_lost_, entry.sequence);
    has_lost_clear_ = has_lost_clear_ || entry.kind == SsdEntryKind::kCleared;
    return;
  }
  std::deque<SsdEntry>& removals = volumes_[keeper].removals;
  if (!removals.empty() && removals.back() == entry) return;  // For another volume.
  removals.push_back(entry);
  removing_.insert(entry.sequence);
}

void SsdLog::queue_again(size_t volume, std::span<const SsdEntry> entries) {
  for (const SsdEntry& entry : entries) {
    const auto found = removing_.find(entry.sequence);
    if (found != removing_.end()) removing_.erase(found);
    queue_removal(volume, entry);
  }
}

void SsdLog::note_forgotten(uint64_t hash, RegionIndex region) {
  auto& forgotten = volumes_[volume_of(region)].forgotten;
  const auto [first, last] = forgotten.equal_range(hash);
  const bool is_known =
      std::any_of(first, last, [region](const auto& page) { return page.second == region; });
  if (!is_known) forgotten.emplace(hash, region);
}

void SsdLog::forget(SsdPageIndex page) {
  const SsdPage& record = index_[page];
  note_forgotten(page_hash(record.space, record.key), record.place.region);
  index_.erase(page);
}

uint64_t SsdLog::remove(SpaceIndex space, const NamespaceDigest& name_space, const Key& key) {
  cancel_queued(space, &key);
  const uint64_t hash = page_hash(space, key);
  std::vector<size_t> holders;
  const SsdPageIndex page = index_.find(space, key, hash);
  if (page != kNoSsdPage) {
    const size_t holder = volume_of(index_[page].place.region);
    holders.push_back(holder);
    // If it cannot be kept, whoever tries again is to hear the same.
    keeper_of(holder) == volumes_.size() ? forget(page) : index_.erase(page);
  }
  if (const auto found = in_flight_.find(hash); found != in_flight_.end()) {
    found->second.is_removed = true;
    holders.push_back(found->second.volume);
  }
  for (size_t volume = 0; volume < volumes_.size(); ++volume) {
    const VolumeState& state = volumes_[volume];
    const bool may_hold_it = has_lost_clear_ || state.has_unkept || state.unreadable_count != 0;
    if (may_hold_it || state.forgotten.contains(hash)) holders.push_back(volume);
  }
  const SsdEntry entry = removal(SsdEntryKind::kRemoved, name_space, key);
  if (is_recovering()) {
    // It may lie anywhere in what was not read yet.
    removed_[removal_hash(entry)] = entry.sequence;
    holders.clear();
    for (size_t volume = 0; volume < volumes_.size(); ++volume) holders.push_back(volume);
  }
  std::sort(holders.begin(), holders.end());
  holders.erase(std::unique(holders.begin(), holders.end()), holders.end());
  for (const size_t volume : holders) queue_removal(volume, entry);
  if (!holders.empty()) return entry.sequence;
  // An earlier removal of the same page may still be on its way.
  return removing_.empty() ? 0 : *removing_.rbegin();
}

uint64_t SsdLog::clear(SpaceIndex ended, const NamespaceDigest& name_space) {
  cancel_queued(ended, nullptr);
  ended_spaces_.insert(ended);
  dropping_spaces_.push_back(ended);
  const SsdEntry entry = removal(SsdEntryKind::kCleared, name_space, Key{});
  if (is_recovering()) cleared_[removal_hash(entry)] = entry.sequence;
  for (size_t volume = 0; volume < volumes_.size(); ++volume) queue_removal(volume, entry);
  return entry.sequence;
}

void SsdLog::drop_damaged(SsdPlace place) {
  if (place.region >= regions_.size()) return;
  const SsdPageIndex page = index_.page_at(place);
  if (page == kNoSsdPage) return;
  ++counts_.corrupt_pages;
  forget(page);
}

uint32_t SsdLog::token_of(const SsdPage& page) const {
  const uint64_t life = page_hash_detail::mix(index_.region(page.place.region).sequence);
  return static_cast<uint32_t>(page_hash_detail::mix(life ^ page.place.first_sector));
}

void SsdLog::drop_damaged(RegionIndex region, uint32_t token) {
  if (region >= regions_.size()) return;
  for (const SsdPageIndex page : index_.pages_of(region)) {
    if (token_of(index_[page]) == token) return drop_damaged(index_[page].place);
  }
}

// ---------------------------------------------------------------- reading

void SsdLog::read(const SsdPage& page, std::vector<iovec> parts, uint64_t tag, uint64_t now_ms) {
  const RegionName& name = regions_[page.place.region];
  volumes_[name.volume].volume->read(name.number, page.place.first_sector, std::move(parts), tag,
                                     now_ms);
}

void SsdLog::on_read(SsdVolume&, uint64_t tag, int error) {
  if (error != 0) ++counts_.read_errors;
  const auto found = rewriting_.find(tag);
  if (found == rewriting_.end()) return options_.on_read(tag, error);
  Rewrite rewrite = std::move(found->second);
  rewriting_.erase(found);
  finish_rewrite(std::move(rewrite), error);
}

// ---------------------------------------------------------------- volumes

void SsdLog::on_health(SsdVolume& volume, const std::string& reason) {
  if (!volume.can_write()) renew_before_ = next_sequence_;
  std::string notice = volume.file().path + ": " + reason;
  if (volume.health() == SsdVolume::Health::kReadOnly) {
    ++counts_.write_errors;
    notice += "; nothing more is written to it, what it holds is still read";
  } else if (volume.health() == SsdVolume::Health::kFailed) {
    notice += "; it is not used any more, its pages are misses";
  }
  options_.on_notice(std::move(notice));
}

void SsdLog::on_silence(SsdVolume& volume, const std::string& notice) {
  options_.on_notice(volume.file().path + ": " + notice);
}

void SsdLog::note_free_space(size_t index, uint64_t free_bytes, uint64_t free_min_bytes,
                             uint64_t now_ms) {
  VolumeState& state = volumes_[index];
  const uint64_t region_size = state.volume->file().region_size_bytes;
  if (free_bytes < free_min_bytes) {
    if (!std::exchange(state.is_low, true)) {
      options_.on_notice(
          state.volume->file().path +
          ": its file system has less free space than ssd_free_min; the log shrinks");
    }
    state.volume->shrink(now_ms);
  } else if (free_bytes >= free_min_bytes + 2 * region_size) {
    state.is_low = false;
    state.volume->allow_growth();
  }
}

void SsdLog::note_gone(size_t index) {
  volumes_[index].volume->fail("the file was removed from its directory");
}

}  // namespace hicache
