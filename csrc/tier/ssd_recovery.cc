#include "tier/ssd_recovery.h"

#include <algorithm>
#include <array>

#include "base/clock.h"

namespace hicache {
namespace {

constexpr size_t kReadyMax = 64;          // Regions that wait for the owner.
constexpr uint32_t kHeadsPerBatch = 256;  // Regions whose two sectors are read together.
constexpr uint64_t kSequenceMax = uint64_t{1} << 62;  // No log gets there; more can be added.
// What cannot be read may be newer than all that can: removals must be newer still.
constexpr uint64_t kUnreadableGap = uint64_t{1} << 48;
constexpr uint64_t kWaits = 10;
constexpr uint64_t kScanSize = 1 * kMiB;  // Read at once while looking for the next group.

Sector sector_at(std::span<const uint8_t> bytes, size_t index) {
  return Sector(bytes.subspan(index * kSectorSize).first<kSectorSize>());
}

uint64_t offset_of(const SsdVolume::File& file, uint32_t region) {
  return kSuperblockSize + region * file.region_size_bytes;
}

}  // namespace

SsdRecovery::SsdRecovery(Options options)
    : options_(std::move(options)), device_(options_.make_device()), thread_([this] { run(); }) {}

SsdRecovery::~SsdRecovery() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  taken_.notify_all();
  thread_.join();
}

std::optional<uint64_t> SsdRecovery::max_sequence() const {
  std::lock_guard lock(mutex_);
  return max_sequence_;
}

std::optional<RecoveredRegion> SsdRecovery::take() {
  std::lock_guard lock(mutex_);
  if (ready_.empty()) return std::nullopt;
  RecoveredRegion region = std::move(ready_.front());
  ready_.pop_front();
  taken_.notify_all();
  return region;
}

bool SsdRecovery::is_finished() const {
  std::lock_guard lock(mutex_);
  return is_done_ && ready_.empty();
}

bool SsdRecovery::deliver(RecoveredRegion region) {
  std::unique_lock lock(mutex_);
  taken_.wait(lock, [this] { return stopping_ || ready_.size() < kReadyMax; });
  if (stopping_) return false;
  ready_.push_back(std::move(region));
  lock.unlock();
  options_.wake();
  return true;
}

void SsdRecovery::run() {
  std::vector<Head> heads;
  for (uint32_t volume = 0; volume < options_.files.size(); ++volume) {
    std::vector<Head> found = read_heads(volume);
    heads.insert(heads.end(), found.begin(), found.end());
    stuck_volumes_.push_back(std::exchange(is_stuck_, false));
  }
  std::sort(heads.begin(), heads.end(),
            [](const Head& a, const Head& b) { return a.sequence > b.sequence; });
  {
    std::lock_guard lock(mutex_);
    max_sequence_ = heads.empty() ? 0 : heads.front().sequence;
    const bool is_all = std::all_of(heads.begin(), heads.end(), [this](const Head& head) {
      return head.is_readable && !stuck_volumes_[head.volume];
    });
    if (!is_all) *max_sequence_ += kUnreadableGap;
  }
  options_.wake();
  for (const Head& head : heads) {
    if (stopping_ || !deliver(read_region(head))) break;
  }
  {
    std::lock_guard lock(mutex_);
    is_done_ = true;
  }
  options_.wake();
}

// ---------------------------------------------------------------- heads

std::vector<SsdRecovery::Head> SsdRecovery::read_heads(uint32_t volume) {
  const SsdVolume::File& file = options_.files[volume];
  std::vector<Head> heads;
  for (uint32_t region = 0; region < file.region_count; ++region) {
    heads.push_back(Head{.volume = volume, .region = region, .footer = {}});
  }
  for (size_t first = 0; first < heads.size() && !stopping_; first += kHeadsPerBatch) {
    const size_t count = std::min<size_t>(kHeadsPerBatch, heads.size() - first);
    read_heads_of(volume, std::span(heads).subspan(first, count));
  }
  return heads;
}

void SsdRecovery::read_heads_of(uint32_t volume, std::span<Head> heads) {
  const SsdVolume::File& file = options_.files[volume];
  MappedMemory sectors = MappedMemory::make(heads.size() * 2 * kSectorSize);
  const uint64_t last = file.region_size_bytes - kSectorSize;
  std::vector<bool> is_read(heads.size() * 2, false);
  size_t asked = 0;
  size_t answered = 0;
  while (answered < is_read.size() && sectors.valid() && device_ && !is_stuck_) {
    for (; asked < is_read.size(); ++asked) {
      const uint64_t offset = offset_of(file, heads[asked / 2].region) + (asked % 2) * last;
      const iovec part{sectors.address() + asked * kSectorSize, kSectorSize};
      if (!device_->submit({.kind = IoKind::kRead,
                            .fd = file.fd,
                            .offset = offset,
                            .size = kSectorSize,
                            .parts = {part},
                            .tag = asked})) {
        break;
      }
    }
    std::array<IoCompletion, 64> completions;
    const size_t count = device_->poll(completions);
    for (size_t i = 0; i < count; ++i) {
      is_read[completions[i].tag] = completions[i].error == 0;
      ++answered;
    }
    if (count == 0 && !wait()) is_stuck_ = true;
  }
  for (size_t i = 0; i < heads.size(); ++i) {
    const bool is_whole = is_read[2 * i] && is_read[2 * i + 1];
    heads[i].is_readable = is_read[2 * i] || is_read[2 * i + 1];
    if (!heads[i].is_readable) continue;
    // What could not be read is zeros: no head, no footer.
    judge(file, sector_at(sectors.span(), 2 * i), sector_at(sectors.span(), 2 * i + 1), heads[i]);
    // Free is only what is known to be.
    heads[i].is_readable = is_whole || heads[i].sequence != 0;
  }
  if (is_stuck_) {
    device_ = options_.make_device();
    sectors.abandon();
  }
}

void SsdRecovery::judge(const SsdVolume::File& file, Sector first, Sector last, Head& head) const {
  GroupHeader group;
  const bool has_head = decode(file.log_id, first, 0, file.region_size_bytes, group) &&
                        group.region_sequence <= kSequenceMax;
  head.has_footer = decode(file.log_id, last, file.region_size_bytes, head.footer) &&
                    head.footer.region_sequence <= kSequenceMax;
  if (has_head) {
    head.sequence = group.region_sequence;
    // The footer of an earlier life.
    if (head.footer.region_sequence != head.sequence) head.has_footer = false;
  } else if (head.has_footer) {
    // A damaged head, or a region that was not erased to the end: its footer speaks for it.
    head.sequence = head.footer.region_sequence;
  }
}

// ---------------------------------------------------------------- regions

RecoveredRegion SsdRecovery::read_region(const Head& head) {
  RecoveredRegion region;
  region.volume = head.volume;
  region.region = head.region;
  region.sequence = head.sequence;
  if (!head.is_readable || stuck_volumes_[head.volume]) {
    region.kind = RecoveredRegion::Kind::kUnreadable;
  } else if (head.sequence == 0) {
    region.kind = RecoveredRegion::Kind::kFree;
  } else if (head.has_footer && read_entries(head, region)) {
    region.kind = RecoveredRegion::Kind::kSealed;
  } else {
    region.kind = RecoveredRegion::Kind::kUnsealed;
    region.entries.clear();
    walk_groups(head, region);
  }
  if (std::exchange(is_stuck_, false)) {
    stuck_volumes_[head.volume] = true;
    region.kind = RecoveredRegion::Kind::kUnreadable;
  }
  return region;
}

bool SsdRecovery::read_entries(const Head& head, RecoveredRegion& region) {
  const SsdVolume::File& file = options_.files[head.volume];
  region.sector_count = head.footer.sector_count;
  const uint64_t size = (footer_sectors(head.footer.entry_count) - 1) * kSectorSize;
  if (buffer_.size() < size) buffer_ = MappedMemory::make(round_up(size, kMiB));
  if (!buffer_.valid()) return false;
  const uint64_t end = offset_of(file, head.region) + file.region_size_bytes - kSectorSize;
  const std::span<uint8_t> into = buffer_.span().first(size);
  return read(file.fd, end - size, into) && decode_entries(head.footer, into, region.entries);
}

void SsdRecovery::walk_groups(const Head& head, RecoveredRegion& region) {
  const SsdVolume::File& file = options_.files[head.volume];
  const uint64_t offset = offset_of(file, head.region);
  const auto sector_count = static_cast<uint32_t>(file.region_size_bytes / kSectorSize);
  MappedMemory window = MappedMemory::make(kScanSize);
  uint32_t window_first = 0;
  uint32_t window_count = 0;
  uint32_t next_number = 0;
  for (uint32_t at = 0; at < sector_count && !stopping_ && window.valid() && !is_stuck_;) {
    if (at < window_first || at >= window_first + window_count) {
      window_first = at;
      window_count = std::min<uint32_t>(kScanSize / kSectorSize, sector_count - at);
      const auto bytes = window.span().first(window_count * kSectorSize);
      if (!read(file.fd, offset + at * kSectorSize, bytes)) {
        at += window_count;
        continue;
      }
    }
    GroupHeader group;
    const Sector sector = sector_at(window.span(), at - window_first);
    // After a group that is damaged or torn the next sound one is looked for, sector by sector.
    if (!decode(file.log_id, sector, at, file.region_size_bytes, group) ||
        group.region_sequence != head.sequence || group.number < next_number) {
      ++at;
      continue;
    }
    next_number = group.number + 1;
    for (const SsdEntry& entry : group.entries) {
      const bool is_whole = entry.kind != SsdEntryKind::kPage || verify_page(file, offset, entry);
      if (is_whole) region.entries.push_back(entry);
      region.damaged_pages += !is_whole;
    }
    at += group.sector_count;
    region.sector_count = at;
  }
  if (is_stuck_) window.abandon();
}

bool SsdRecovery::verify_page(const SsdVolume::File& file, uint64_t region_offset,
                              const SsdEntry& entry) {
  const uint64_t size = sectors_of(entry.size) * kSectorSize;
  if (buffer_.size() < size) buffer_ = MappedMemory::make(round_up(size, kMiB));
  if (!buffer_.valid()) return false;
  const std::span<uint8_t> into = buffer_.span().first(size);
  return read(file.fd, region_offset + entry.first_sector * kSectorSize, into) &&
         options_.page_checksum(into.first(entry.size)) == entry.checksum;
}

bool SsdRecovery::wait() {
  for (uint64_t i = 0; i < kWaits; ++i) {
    if (device_->wait(Deadline::after_ms(options_.io_timeout_ms / kWaits + 1))) return true;
  }
  return false;
}

bool SsdRecovery::read(int fd, uint64_t offset, std::span<uint8_t> into) {
  if (is_stuck_) return false;
  const iovec part{into.data(), into.size()};
  IoRequest request{
      .kind = IoKind::kRead, .fd = fd, .offset = offset, .size = into.size(), .parts = {part}};
  if (!device_ || !device_->submit(std::move(request))) return false;
  if (!wait()) {
    is_stuck_ = true;
    device_ = options_.make_device();
    buffer_.abandon();
    return false;
  }
  IoCompletion completion{};
  return device_->poll(std::span(&completion, 1)) == 1 && completion.error == 0;
}

}  // namespace hicache
