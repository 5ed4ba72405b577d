#include "store/ssd_tier.h"

#include <algorithm>

#include "base/clock.h"
#include "transfer/checksum_copy.h"
#include "transfer/staging_device.h"

namespace hicache {
namespace {

constexpr uint32_t kDeviceDepth = 64;
constexpr uint32_t kGroupsInFlight = 4;  // Of 8 MiB, per volume: a disk is busy, queues stay short.
// With copies, so much more: two groups are being copied while the disk has its four.
constexpr uint32_t kGroupsCopied = 2;
constexpr uint64_t kCopiedMax = 10 * kMiB;  // A group and its header, in whole huge pages.
constexpr uint64_t kIoTimeoutMs = 10'000;   // A disk that takes longer is broken.
constexpr uint64_t kRegionsPerVolumeMin = 8;
constexpr uint64_t kLooksIntervalMs = 500;  // At what the watch has seen.
constexpr uint32_t kPollMaxMs = 1000;
constexpr uint64_t kReadersTurnMs = 100;  // The disks are a reader's for so long after each page.

uint64_t region_size_for(const SsdTier::Options& options, uint64_t limit_bytes) {
  const uint64_t largest = limit_bytes / kRegionsPerVolumeMin / kRegionSizeMin * kRegionSizeMin;
  return std::clamp(std::min(options.region_size_bytes, largest), kRegionSizeMin, kRegionSizeMax);
}

}  // namespace

Result<std::unique_ptr<SsdTier>> SsdTier::open(Options options, Surroundings surroundings,
                                               uint64_t now_ms) {
  std::vector<std::shared_ptr<const SsdDirectory>> directories;
  for (const Directory& directory : options.directories) {
    auto opened = SsdDirectory::open(
        {.path = directory.path,
         .size_limit_bytes = directory.size_limit_bytes,
         .region_size_bytes = region_size_for(options, directory.size_limit_bytes)});
    if (!opened.ok()) return opened.status();
    directories.push_back(std::move(opened.value()));
  }
  const auto device = BlockDevice::make({.engine = options.engine, .depth = kDeviceDepth});
  if (!device.ok()) return device.status();
  return std::unique_ptr<SsdTier>(
      new SsdTier(std::move(options), std::move(surroundings), std::move(directories), now_ms));
}

SsdTier::SsdTier(Options options, Surroundings surroundings,
                 std::vector<std::shared_ptr<const SsdDirectory>> directories, uint64_t now_ms)
    : options_(std::move(options)),
      surroundings_(std::move(surroundings)),
      directories_(std::move(directories)),
      budget_(options_.write_budget_bytes, now_ms),
      now_ms_(now_ms),
      region_leases_(
          LeaseTable::Options{{options_.lookup_lease_ttl_ms, options_.read_lease_ttl_ms}}) {
  log_ = std::make_unique<SsdLog>(log_options(), now_ms);
  watch_ = std::make_unique<SsdWatch>(directories_, surroundings_.wake);
}

SsdTier::~SsdTier() {
  for (auto& [tag, coming] : coming_) coming.memory.abandon();
}

SsdLog::Options SsdTier::log_options() {
  SsdLog::Options options;
  for (const auto& directory : directories_) {
    options.files.push_back(
        {.path = directory->path(),
         .fd = directory->fd(),
         .log_id = directory->log_id(),
         .region_size_bytes = directory->region_size_bytes(),
         .region_count = static_cast<uint32_t>(directory->region_count()),
         .region_count_max = static_cast<uint32_t>(directory->region_count_max())});
  }
  const bool copies = surroundings_.copies_writes;
  options.make_device = [engine = options_.engine, copies]() -> std::unique_ptr<BlockDevice> {
    auto device = BlockDevice::make({.engine = engine, .depth = kDeviceDepth});
    if (!device.ok()) return nullptr;
    if (!copies) return std::move(device.value());
    return StagingDevice::make({.depth = kDeviceDepth,
                                .buffer_size = kCopiedMax,
                                .buffer_count = kGroupsInFlight + kGroupsCopied},
                               std::move(device.value()));
  };
  options.page_checksum = [](std::span<const uint8_t> bytes) {
    return page_checksum(bytes.data(), bytes.size());
  };
  options.space_of = [this](const NamespaceDigest& digest) {
    const auto index = store_->open_namespace(digest, watch_->description_of(digest));
    return index.ok() ? store_->space_of(index.value()) : kAnySpace;
  };
  options.is_leased = [this](RegionIndex region) { return is_leased(region); };
  options.is_promised = [this](RegionIndex region) {
    return has_lease(LeaseKind::kLookup, region);
  };
  options.is_in_dram = [this](uint64_t hash) { return store_->has_hash(hash); };
  options.on_written = [this](uint64_t tag, bool ok) { after_write(tag, ok); };
  options.on_read = [this](uint64_t tag, int error) { after_read(tag, error); };
  options.on_notice = surroundings_.on_notice;
  options.wake = surroundings_.wake;
  options.io_timeout_ms = kIoTimeoutMs;
  options.on_damaged = [this](uint64_t tag) { damaged_.push_back(writing_.at(tag).ref); };
  options.write_depth = kGroupsInFlight + (copies ? kGroupsCopied : 0);
  return options;
}

Result<std::vector<Fd>> SsdTier::open_for_readers() const {
  std::vector<Fd> readers;
  for (const auto& directory : directories_) {
    Result<Fd> reader = directory->open_for_readers();
    if (!reader.ok()) return reader.status();
    readers.push_back(std::move(reader.value()));
  }
  return readers;
}

std::vector<int> SsdTier::event_fds() const {
  std::vector<int> fds;
  for (size_t i = 0; i < log_->volume_count(); ++i) fds.push_back(log_->volume(i).event_fd());
  return fds;
}

// ---------------------------------------------------------------- pages

bool SsdTier::put_again(const PageName& name) {
  const SsdPageIndex page = find(name);
  if (page == kNoSsdPage) return false;
  log_->index().note_read(page);
  return true;
}

bool SsdTier::lookup(SessionIndex session, const PageName& name, bool leases, uint64_t now_ms) {
  const SsdPageIndex page = find(name);
  if (page == kNoSsdPage) return false;
  if (leases) {
    const RegionIndex region = log_->index()[page].place.region;
    region_leases_.grant(LeaseKind::kLookup, session, region, &leases_of(region), now_ms);
    if (options_.staging) wish(name, log_->index()[page].size, now_ms);
  }
  return true;
}

bool SsdTier::lease(SessionIndex session, const PageName& name, bool read_now, uint64_t now_ms,
                    PageLocation& location) {
  const SsdPageIndex found = find(name);
  if (found == kNoSsdPage) return false;
  if (!read_now && coming_hashes_.contains(name.hash)) {
    location.code = Code::kBusy;
    return true;
  }
  wished_.erase(name.hash);  // The reader is faster.
  const SsdPage& page = log_->index()[found];
  const RegionIndex region = page.place.region;
  region_leases_.grant(LeaseKind::kRead, session, region, &leases_of(region), now_ms);
  location.code = Code::kOk;
  location.ref = {region | kSsdRefBit, log_->token_of(page)};
  location.size = page.size;
  location.checksum = page.checksum;
  location.device = static_cast<uint8_t>(log_->volume_of(region) + 1);
  location.in_file = {log_->file_offset(page), page.size};
  location.extents = std::span(&location.in_file, 1);
  if (options_.staging) again(name, page.size, now_ms);
  staging_from_ms_ = now_ms + kReadersTurnMs;
  log_->index().note_read(found);
  ++hit_pages_;
  hit_bytes_ += page.size;
  return true;
}

bool SsdTier::is_below(const PageRecord& record, uint64_t hash) const {
  const SsdPageIndex page = log_->find(record.space, record.key, hash);
  if (page == kNoSsdPage) return false;
  const SsdPage& below = log_->index()[page];
  return below.checksum == record.checksum && below.size == record.size;
}

void SsdTier::leaving(const PageRecord& record) {
  const uint64_t hash = page_hash(record.space, record.key);
  // Of a spare one that was decided before.
  const bool was_wanted = !record.has_expiry && record.size <= log_->page_size_max();
  if (was_wanted && !record.is_spare && !is_below(record, hash)) ++overrun_pages_;
  note_reuse(record, hash);
}

void SsdTier::note_reuse(const PageRecord& record, uint64_t hash) {
  if (record.reads != 0 && is_below(record, hash)) {
    log_->index().note_read(log_->find(record.space, record.key, hash));
  }
}

void SsdTier::report_corrupt(PageRef ref) {
  is_due_ = true;
  log_->drop_damaged(ref.page & ~kSsdRefBit, ref.generation);
}

void SsdTier::report_corrupt(const PageRecord& record) {
  const uint64_t hash = page_hash(record.space, record.key);
  if (!is_below(record, hash)) return;
  is_due_ = true;
  log_->drop_damaged(log_->index()[log_->find(record.space, record.key, hash)].place);
}

uint64_t SsdTier::note_stored(PageRef ref, bool replaced, uint64_t now_ms) {
  now_ms_ = now_ms;
  is_due_ = true;
  const PageRecord& record = store_->record(ref.page);
  const uint64_t ticket = replaced ? remove(record.space, record.key) : 0;
  if (record.size > log_->page_size_max()) {
    ++oversize_pages_;
    surroundings_.on_notice(
        "pages larger than " + std::to_string(log_->page_size_max()) +
        " bytes, of which a region of each SSD directory has room, are kept in memory alone: for " +
        "larger ones start anew with a larger ssd_region_size and at least eight of it per " +
        "directory");
    return ticket;
  }
  if (options_.write_through && !record.has_expiry) unwritten_.push_back(ref);
  return ticket;
}

uint64_t SsdTier::remove(SpaceIndex space, const Key& key) {
  is_due_ = true;
  const uint64_t hash = page_hash(space, key);
  wished_.erase(hash);
  coming_hashes_.erase(hash);
  return log_->remove(space, store_->digest_of(space), key);
}

uint64_t SsdTier::clear(SpaceIndex ended, const NamespaceDigest& digest) {
  is_due_ = true;
  return log_->clear(ended, digest);
}

// ---------------------------------------------------------------- leases of regions

LeaseIndex& SsdTier::leases_of(RegionIndex region) {
  if (region >= leases_by_region_.size()) leases_by_region_.resize(region + 1, kNoLease);
  return leases_by_region_[region];
}

bool SsdTier::has_lease(LeaseKind kind, RegionIndex region) const {
  return region < leases_by_region_.size() && region_leases_.has(kind, leases_by_region_[region]);
}

bool SsdTier::is_leased(RegionIndex region) const {
  const bool is_coming = region < coming_by_region_.size() && coming_by_region_[region] != 0;
  return is_coming || has_lease(LeaseKind::kRead, region);
}

void SsdTier::release(SessionIndex session, PageRef ref) {
  const RegionIndex region = ref.page & ~kSsdRefBit;
  if (region >= leases_by_region_.size()) return;
  is_due_ = true;  // It may have been waited for.
  region_leases_.release(LeaseKind::kRead, session, &leases_by_region_[region]);
}

void SsdTier::close_session(SessionIndex session) {
  is_due_ = true;
  region_leases_.end_session(
      session, [this](PageIndex region) { return &leases_by_region_[region]; },
      [](PageIndex, LeaseKind) {});
}

void SsdTier::expire_leases(uint64_t now_ms) {
  region_leases_.expire(
      now_ms, [this](PageIndex region) { return &leases_by_region_[region]; },
      [](PageIndex, LeaseKind) {});
}

// ---------------------------------------------------------------- time

uint64_t SsdTier::advance(uint64_t now_ms) {
  now_ms_ = now_ms;
  is_due_ = false;
  expire_leases(now_ms);
  take_free_space(now_ms);
  uint64_t next_ms = log_->advance(now_ms, unix_time_s());
  for (const SsdPlace& place : std::exchange(failed_places_, {})) log_->drop_damaged(place);
  for (const PageRef& ref : std::exchange(damaged_, {})) store_->report_corrupt(ref);
  write_flush(now_ms);
  // The last thing that a node does is to write what it has; then its disks come to rest. What was
  // written makes room for puts meanwhile.
  if (!is_flushing_ || !flushing_.empty()) write_through(now_ms);
  if (!is_flushing_) write_out_ahead(now_ms);
  next_ms = std::min(next_ms, stage(now_ms));
  next_ms = std::min(next_ms, log_->advance(now_ms, unix_time_s()));
  uint64_t written = 0;
  for (size_t i = 0; i < log_->volume_count(); ++i) {
    written += log_->volume(i).device_written_bytes();
  }
  budget_.spend(written - std::exchange(spent_bytes_, written), now_ms);
  next_ms = std::min(next_ms, region_leases_.next_expiry_ms());
  return std::min(next_ms, now_ms + kPollMaxMs);
}

bool SsdTier::is_idle() const {
  for (size_t i = 0; i < log_->volume_count(); ++i) {
    const SsdVolume& volume = log_->volume(i);
    // One that failed was given up with what was on its way.
    if (volume.health() == SsdVolume::Health::kFailed || !volume.is_idle()) return false;
  }
  return true;
}

void SsdTier::take_free_space(uint64_t now_ms) {
  if (now_ms < next_look_ms_) return;
  next_look_ms_ = now_ms + kLooksIntervalMs;
  const std::vector<SsdWatch::State> states = watch_->states();
  for (size_t i = 0; i < states.size(); ++i) {
    if (states[i].is_gone) log_->note_gone(i);
    if (states[i].free_bytes == UINT64_MAX) continue;
    log_->note_free_space(i, states[i].free_bytes, options_.directories[i].free_min_bytes, now_ms);
  }
}

DurationHistogram SsdTier::read_seconds() const {
  DurationHistogram all;
  for (size_t i = 0; i < log_->volume_count(); ++i) all.add(log_->volume(i).read_seconds());
  return all;
}

DurationHistogram SsdTier::write_seconds() const {
  DurationHistogram all;
  for (size_t i = 0; i < log_->volume_count(); ++i) all.add(log_->volume(i).write_seconds());
  return all;
}

void SsdTier::add_stats(NodeStats& stats, uint64_t now_ms) {
  const SsdLog::Counts& counts = log_->counts();
  for (size_t i = 0; i < log_->volume_count(); ++i) {
    const SsdVolume& volume = log_->volume(i);
    const uint64_t region_size = volume.file().region_size_bytes;
    const bool is_used = volume.health() == SsdVolume::Health::kGood;
    stats.ssd_directories += is_used ? 1 : 0;
    stats.ssd_failed_directories += is_used ? 0 : 1;
    stats.ssd_size_bytes += volume.file().region_count_max * region_size;
    stats.ssd_used_bytes += volume.used_region_count() * region_size;
    stats.ssd_device_written_bytes += volume.device_written_bytes();
  }
  stats.ssd_live_bytes = log_->index().live_bytes();
  stats.ssd_pages = log_->index().page_count();
  stats.ssd_index_size_bytes = log_->index().memory_size_bytes();
  stats.ssd_recovering = log_->is_recovering();
  stats.ssd_recovery_ms = counts.recovery_ms;
  stats.ssd_recovered_pages = counts.recovered_pages;
  stats.ssd_writing_bytes = log_->writing_bytes();
  const uint64_t left = flush_left_bytes();
  stats.ssd_flush_left_bytes = left == UINT64_MAX ? 0 : left;
  stats.ssd_eviction_age_s = counts.eviction_age_s;
  stats.ssd_written_last_day_bytes = budget_.written_last_day_bytes(now_ms);
  const uint64_t budget_left = budget_.left_bytes(now_ms);
  stats.ssd_budget_left_bytes = budget_left == UINT64_MAX ? 0 : budget_left;
  stats.ssd_hit_pages = hit_pages_;
  stats.ssd_hit_bytes = hit_bytes_;
  stats.ssd_written_pages = counts.written_pages;
  stats.ssd_written_bytes = counts.written_bytes;
  stats.ssd_rewritten_pages = counts.rewritten_pages;
  stats.ssd_rewritten_bytes = counts.rewritten_bytes;
  stats.ssd_refused_pages = refused_pages_;
  stats.ssd_overrun_pages = overrun_pages_;
  stats.ssd_put_waits = put_waits_;
  stats.ssd_put_waits_in_vain = put_waits_in_vain_;
  stats.ssd_oversize_pages = oversize_pages_;
  stats.ssd_dropped_pages = counts.dropped_pages;
  stats.ssd_staged_pages = staged_pages_;
  stats.ssd_staged_bytes = staged_bytes_;
  stats.ssd_corrupt_pages = counts.corrupt_pages;
  stats.ssd_read_errors = counts.read_errors;
  stats.ssd_write_errors = counts.write_errors;
}

}  // namespace hicache
