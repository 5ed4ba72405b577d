#include "tier/ssd_volume.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace hicache {
namespace {

constexpr uint32_t kNoRegionNumber = UINT32_MAX;
constexpr uint32_t kBadReadsMax = 16;
constexpr uint64_t kWatchIntervalMs = 1000;  // Of requests in flight, for their deadlines.
constexpr uint64_t kRetryMs = 100;           // After a write for which there was no memory.
constexpr uint32_t kRetriesMax = 600;        // Of one write: a minute.
constexpr uint64_t kSilenceMax = 6;          // In time limits: then the disk will not come back.
constexpr uint64_t kNever = UINT64_MAX;

}  // namespace

SsdVolume::SsdVolume(File file, Options options, std::unique_ptr<BlockDevice> device,
                     Listener& listener)
    : file_(std::move(file)),
      options_(options),
      listener_(listener),
      device_(std::move(device)),
      regions_(file_.region_count) {
  for (Region& region : regions_) region.space = Space::kUnsure;
}

SsdVolume::~SsdVolume() {
  device_.reset();
  for (auto& [tag, request] : requests_) abandon_memory(request);
}

uint32_t SsdVolume::free_region_count() const {
  if (!can_write()) return 0;
  const auto usable = std::count_if(free_.begin(), free_.end(), [this](uint32_t region) {
    return regions_[region].space != Space::kNone || may_grow_;
  });
  const uint32_t beyond = file_.region_count_max - std::min(file_.region_count_max, region_count());
  return static_cast<uint32_t>(usable) + (may_grow_ ? beyond : 0);
}

uint32_t SsdVolume::used_region_count() const {
  return static_cast<uint32_t>(
      std::count_if(regions_.begin(), regions_.end(), [](const Region& region) {
        return region.state != RegionState::kFree && region.state != RegionState::kUnknown;
      }));
}

bool SsdVolume::has_excess() const {
  for (uint32_t region = file_.region_count_max; region < region_count(); ++region) {
    if (regions_[region].state == RegionState::kSealed) return true;
  }
  return false;
}

uint64_t SsdVolume::page_size_max() const {
  constexpr uint64_t kOthers = kLeadSectors + 2 + footer_sectors(kGroupEntryCountMax);
  return file_.region_size_bytes - kOthers * kSectorSize;
}

// ---------------------------------------------------------------- recovery

void SsdVolume::recovered_free(uint32_t region, uint64_t now_ms) {
  regions_[region].state = RegionState::kFree;
  add_free(region, now_ms);
}

void SsdVolume::add_free(uint32_t region, uint64_t now_ms) {
  if (is_excess(region)) return discard(region, now_ms);
  free_.push_back(region);
}

void SsdVolume::recovered_sealed(uint32_t region, uint64_t sequence,
                                 std::vector<SsdEntry> removals) {
  Region& sealed = regions_[region];
  sealed.state = RegionState::kSealed;
  sealed.sequence = sequence;
  sealed.removals = std::move(removals);
}

void SsdVolume::seal_recovered(uint32_t region, uint64_t sequence, uint32_t sector_count,
                               std::vector<SsdEntry> entries, uint64_t now_ms) {
  Region& found = regions_[region];
  found.sequence = sequence;
  found.used_sectors = sector_count;
  found.entries = std::move(entries);
  std::copy_if(found.entries.begin(), found.entries.end(), std::back_inserter(found.removals),
               [](const SsdEntry& entry) { return entry.kind != SsdEntryKind::kPage; });
  found.state = RegionState::kSealing;
  seal_if_written(region, now_ms);
}

// ---------------------------------------------------------------- writing

bool SsdVolume::fits(const Region& region, size_t entry_count, uint64_t sector_count) const {
  const uint64_t lead = region.group_count == 0 ? kLeadSectors : 0;
  const uint64_t footer = footer_sectors(region.entries.size() + entry_count);
  // With its header, and its removals once more.
  const uint64_t needed = region.used_sectors + lead + 1 + sector_count + 1 + footer;
  return needed * kSectorSize <= file_.region_size_bytes;
}

bool SsdVolume::make_ready(size_t entry_count, uint64_t sector_count, uint64_t next_sequence,
                           bool* used_sequence, uint64_t now_ms) {
  *used_sequence = false;
  if (!can_write() || is_silent_ || groups_in_flight_ >= options_.write_depth) return false;
  if (open_ != kNoRegionNumber && !fits(regions_[open_], entry_count, sector_count)) seal(now_ms);
  if (open_ != kNoRegionNumber) {
    // Without its first group nothing of a region is found: that is safe before others follow.
    const auto& groups = regions_[open_].groups;
    return groups.empty() || groups.front()->first_sector != 0;
  }
  if (opening_ != kNoRegionNumber) return false;
  *used_sequence = open_region(next_sequence, now_ms);
  return open_ != kNoRegionNumber;
}

bool SsdVolume::open_region(uint64_t sequence, uint64_t now_ms) {
  uint32_t number = kNoRegionNumber;
  const auto find = [this](Space space) {
    return std::find_if(free_.begin(), free_.end(),
                        [this, space](uint32_t region) { return regions_[region].space == space; });
  };
  auto found = find(Space::kAllocated);
  if (found == free_.end()) found = find(Space::kUnsure);
  if (found == free_.end() && may_grow_) found = free_.begin();
  if (found != free_.end()) {
    number = *found;
    free_.erase(found);
  } else if (may_grow_ && region_count() < file_.region_count_max) {
    number = region_count();
    regions_.emplace_back();
  } else {
    return false;
  }
  Region& region = regions_[number];
  const Space space = region.space;
  region = Region{};
  region.sequence = sequence;
  region.space = space;
  if (space == Space::kAllocated) {
    region.state = RegionState::kOpen;
    open_ = number;
    return true;
  }
  region.state = RegionState::kOpening;
  opening_ = number;
  submit(
      {.purpose = Purpose::kAllocate, .region = number, .begun_ms = now_ms},
      {.kind = IoKind::kAllocate, .offset = offset_of(number, 0), .size = file_.region_size_bytes});
  return true;
}

void SsdVolume::seal(uint64_t now_ms) {
  if (open_ == kNoRegionNumber || !can_write()) return;
  const uint32_t region = std::exchange(open_, kNoRegionNumber);
  if (regions_[region].group_count == 0) {
    // What it was opened for went elsewhere.
    regions_[region].state = RegionState::kFree;
    free_.push_front(region);
    return;
  }
  regions_[region].state = RegionState::kSealing;
  seal_if_written(region, now_ms);
}

void SsdVolume::seal_older(uint64_t sequence, uint64_t now_ms) {
  if (open_ != kNoRegionNumber && regions_[open_].sequence < sequence) seal(now_ms);
}

void SsdVolume::seal_if_written(uint32_t number, uint64_t now_ms) {
  const Region& region = regions_[number];
  const bool is_written = region.state == RegionState::kSealing && region.groups.empty();
  if (is_written && can_write()) write_footer(number, now_ms);
}

bool SsdVolume::is_quiet() const {
  return open_ == kNoRegionNumber && opening_ == kNoRegionNumber && writing_bytes_ == 0 &&
         std::none_of(regions_.begin(), regions_.end(),
                      [](const Region& region) { return region.state == RegionState::kSealing; });
}

// ---------------------------------------------------------------- reuse

void SsdVolume::erase(uint32_t number, uint64_t now_ms) {
  Region& region = regions_[number];
  region.state = RegionState::kErasing;
  region.erasing_count = 2;
  auto zeros = std::make_shared<MappedMemory>(MappedMemory::make(kLeadSectors * kSectorSize));
  const uint64_t end = file_.region_size_bytes;
  for (const uint64_t size : {zeros->size(), kSectorSize}) {
    const bool is_lead = size != kSectorSize;
    submit({.purpose = Purpose::kErase,
            .region = number,
            .begun_ms = now_ms,
            .size_bytes = size,
            .memory = zeros},
           {.kind = IoKind::kWriteDurable,
            .offset = offset_of(number, 0) + (is_lead ? 0 : end - size),
            .size = size,
            .parts = {iovec{zeros->address(), size}}});
  }
}

void SsdVolume::shrink(uint64_t now_ms) {
  may_grow_ = false;
  // Until that is done nothing may be written there.
  for (const uint32_t number : std::exchange(free_, {})) {
    if (regions_[number].space == Space::kNone) {
      free_.push_back(number);
    } else {
      discard(number, now_ms);
    }
  }
}

/// Of a free region, which is in nobody's list meanwhile.
void SsdVolume::discard(uint32_t number, uint64_t now_ms) {
  regions_[number].space = Space::kNone;
  submit(
      {.purpose = Purpose::kDiscard, .region = number, .begun_ms = now_ms},
      {.kind = IoKind::kDiscard, .offset = offset_of(number, 0), .size = file_.region_size_bytes});
}

// ---------------------------------------------------------------- reading

void SsdVolume::read(uint32_t region, uint32_t first_sector, std::vector<iovec> parts, uint64_t tag,
                     uint64_t now_ms) {
  IoRequest io{
      .kind = IoKind::kRead, .offset = offset_of(region, first_sector), .parts = std::move(parts)};
  for (const iovec& part : io.parts) io.size += part.iov_len;
  ++reads_in_flight_;
  submit({.purpose = Purpose::kRead, .region = region, .begun_ms = now_ms, .read_tag = tag},
         std::move(io));
}

void SsdVolume::note_bad_read(const std::string& what) {
  if (++bad_reads_ >= kBadReadsMax && health_ != Health::kFailed) {
    fail(std::to_string(bad_reads_) + " reads in a row went wrong, the last: " + what);
  }
}

// ---------------------------------------------------------------- requests

void SsdVolume::submit(Request request, IoRequest io) {
  io.fd = file_.fd;
  io.tag = next_tag_++;
  if (request.purpose != Purpose::kRead) request.io = io;
  requests_.emplace(io.tag, std::move(request));
  waiting_.push_back(std::move(io));
  submit_waiting();
}

void SsdVolume::submit_waiting() {
  // A copy for the device: what it does not take must stay whole.
  while (device_ && !waiting_.empty() && device_->submit(waiting_.front())) waiting_.pop_front();
}

uint64_t SsdVolume::poll(uint64_t now_ms) {
  forgive_pause(now_ms);
  if (!device_) {
    fail("no I/O on it is possible: raise the limits on open files and processes");
    return kNever;
  }
  std::array<IoCompletion, 64> completions;
  bool answered = false;
  for (size_t count = completions.size(); device_ && count == completions.size();) {
    count = device_->poll(completions);
    answered = answered || count != 0;
    if (count != 0) answered_ms_ = now_ms;
    if (count != 0 && std::exchange(is_silent_, false)) {
      listener_.on_silence(*this, "the disk answers again");
    }
    for (size_t i = 0; i < count && device_; ++i) complete(completions[i]);
    submit_waiting();
  }
  if (device_ && !answered) judge_silence(now_ms);
  try_again(now_ms);
  if (!device_ || requests_.empty()) return kNever;
  if (!retries_.empty()) return retries_.front().due_ms;
  return now_ms + std::min(kWatchIntervalMs, std::max<uint64_t>(1, options_.io_timeout_ms / 4));
}

/// To be tried again, unless it has been too often; readers are told at once.
bool SsdVolume::put_off(Request& request, uint64_t tag) {
  if (request.purpose == Purpose::kRead || ++request.retry_count > kRetriesMax) return false;
  retries_.push_back({now_ms_ + kRetryMs, tag});
  return true;
}

void SsdVolume::try_again(uint64_t now_ms) {
  for (; !retries_.empty() && retries_.front().due_ms <= now_ms; retries_.pop_front()) {
    Request& request = requests_.at(retries_.front().tag);
    request.begun_ms = now_ms;
    waiting_.push_back(request.io);
  }
  submit_waiting();
}

/// The process was stopped, or its machine: requests are as old as they were, and a little more.
void SsdVolume::forgive_pause(uint64_t now_ms) {
  const uint64_t step_ms = now_ms - std::exchange(now_ms_, now_ms);
  const uint64_t step_max_ms =
      std::min(2 * kWatchIntervalMs, std::max<uint64_t>(1, options_.io_timeout_ms / 2));
  if (step_ms <= step_max_ms) return;
  for (auto& [tag, request] : requests_) {
    request.begun_ms = std::min(now_ms, request.begun_ms + (step_ms - step_max_ms));
  }
}

void SsdVolume::judge_silence(uint64_t now_ms) {
  uint64_t begun_ms = now_ms;
  for (const auto& [tag, request] : requests_) begun_ms = std::min(begun_ms, request.begun_ms);
  // One that answers others is slow, not silent: it takes new ones.
  const bool is_late = now_ms >= std::max(begun_ms, answered_ms_) + options_.io_timeout_ms;
  if (now_ms >= begun_ms + kSilenceMax * options_.io_timeout_ms) {
    return fail("a request did not complete within " +
                std::to_string(kSilenceMax * options_.io_timeout_ms) + " ms");
  }
  if (!is_late || std::exchange(is_silent_, true)) return;
  listener_.on_silence(*this, "the disk has not answered for " +
                                  std::to_string(options_.io_timeout_ms) +
                                  " ms; its pages are misses until it does");
}

void SsdVolume::complete(const IoCompletion& completion) {
  const auto found = requests_.find(completion.tag);
  if (found == requests_.end()) return;
  const bool is_passing = is_want_of_memory(completion.error);
  if (is_passing && put_off(found->second, completion.tag)) return;
  Request request = std::move(found->second);
  requests_.erase(found);
  const bool ok = completion.error == 0;
  Region& region = regions_[request.region];
  if (request.purpose == Purpose::kRead) {
    read_seconds_.add(completion.duration_ns);
    --reads_in_flight_;
    if (ok) bad_reads_ = 0;
    listener_.on_read(*this, request.read_tag, completion.error);
    if (!ok && !is_passing) note_bad_read(std::strerror(completion.error));
    return;
  }
  if (request.purpose == Purpose::kDiscard) {
    // It may fail: then the space stays ours.
    if (!is_excess(request.region)) free_.push_back(request.region);
    return;
  }
  if (!ok && !is_passing && request.purpose == Purpose::kAllocate) {
    // The disk is full: go on with the regions that there are.
    region.state = RegionState::kFree;
    opening_ = kNoRegionNumber;
    if (region.space == Space::kUnsure) {
      discard(request.region, now_ms_);  // What there was of it.
    } else {
      free_.push_back(request.region);
    }
    may_grow_ = false;
    listener_.on_health(
        *this, std::string("no space for another region: ") + std::strerror(completion.error));
    return;
  }
  if (!ok) return fail_write(std::move(request), completion);
  if (request.size_bytes != 0) {
    write_seconds_.add(completion.duration_ns);
    device_written_bytes_ += request.size_bytes;
  }
  switch (request.purpose) {
    case Purpose::kGroup:
      complete_group(request);
      break;
    case Purpose::kFooter:
      region.state = RegionState::kSealed;
      region.entries = {};
      break;
    case Purpose::kErase:
      if (--region.erasing_count != 0) break;
      region.removals = {};
      region.state = RegionState::kFree;
      region.space = Space::kAllocated;
      add_free(request.region, now_ms_);
      listener_.on_region_free(*this, request.region);
      break;
    case Purpose::kAllocate:
      region.space = Space::kAllocated;
      region.state = RegionState::kOpen;
      open_ = std::exchange(opening_, kNoRegionNumber);
      break;
    case Purpose::kDiscard:
    case Purpose::kRead:
      break;
  }
}

void SsdVolume::fail_write(Request request, const IoCompletion& completion) {
  if (completion.damaged != 0 && can_write()) {
    return write_sound_pages(std::move(request), completion.damaged);
  }
  fail_request(request);
  stop_writing(std::string("a write failed: ") + std::strerror(completion.error));
}

void SsdVolume::complete_group(Request& request) {
  Group& group = *request.group;
  group.is_done = true;
  --groups_in_flight_;
  writing_bytes_ -= group.size_bytes;
  for (PageWrite& page : group.pages) listener_.on_written(*this, group.region, page, true);
  group.pages.clear();
  // A scan finds a group only behind those before it.
  auto& groups = regions_[group.region].groups;
  while (!groups.empty() && groups.front()->is_done) {
    const auto first = std::move(groups.front());
    groups.pop_front();
    if (!first->removals.empty()) listener_.on_removals_done(*this, first->removals, true);
  }
  seal_if_written(group.region, now_ms_);
}

// ---------------------------------------------------------------- trouble

void SsdVolume::abandon_memory(Request& request) {
  if (request.memory) request.memory->abandon();
  if (!request.group) return;
  request.group->header.abandon();
  request.group->echo.abandon();
  for (PageWrite& page : request.group->pages) page.memory.abandon();
  for (MappedMemory& gap : request.group->gaps) gap.abandon();
}

void SsdVolume::fail_request(Request& request) {
  if (request.purpose == Purpose::kRead) {
    --reads_in_flight_;
    listener_.on_read(*this, request.read_tag, kAbandoned);
  }
  if (request.purpose != Purpose::kGroup) return;
  Group& group = *request.group;
  --groups_in_flight_;
  writing_bytes_ -= group.size_bytes;
  for (PageWrite& page : group.pages) listener_.on_written(*this, group.region, page, false);
  group.pages.clear();
}

void SsdVolume::stop_writing(const std::string& reason) {
  if (health_ != Health::kGood) return;
  health_ = Health::kReadOnly;
  open_ = kNoRegionNumber;
  // Removals that no scan may find any more are lost, also of groups that are still on their way.
  for (Region& region : regions_) {
    for (const auto& group : std::exchange(region.groups, {})) {
      if (!group->removals.empty()) listener_.on_removals_done(*this, group->removals, false);
    }
  }
  listener_.on_health(*this, reason);
}

void SsdVolume::fail(const std::string& reason) {
  if (health_ == Health::kFailed) return;
  device_.reset();
  waiting_.clear();
  retries_.clear();
  stop_writing(reason);
  health_ = Health::kFailed;
  for (auto& [tag, request] : std::exchange(requests_, {})) {
    abandon_memory(request);
    fail_request(request);
  }
  listener_.on_health(*this, reason);
}

}  // namespace hicache
