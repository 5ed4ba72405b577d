#include "tier/ssd_recovery.h"

#include <algorithm>
#include <array>

#include "base/clock.h"

namespace hicache {
namespace {

constexpr size_t kReadyMax = 64;          // Regions that wait for the owner.
constexpr uint32_t kHeadsPerBatch = 256;  // Regions whose lead and footer are read together.
constexpr uint32_t kHeadSectors = kLeadSectors + 1;
constexpr uint64_t kSequenceMax = uint64_t{1} << 62;  // No log gets there; more can be added.
// What cannot be read may be newer than all that can: removals must be newer still.
constexpr uint64_t kUnreadableGap = uint64_t{1} << 48;
constexpr uint64_t kWaits = 10;
constexpr uint64_t kScanSize = 1 * kMiB;    // Read at once while looking for the next group.
constexpr uint32_t kSingleReadsMax = 1024;  // Of a region's sectors, where larger reads fail.

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
      return head.is_readable && !head.is_damaged && !stuck_volumes_[head.volume];
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
  constexpr uint64_t kHeadSize = kHeadSectors * kSectorSize;
  constexpr uint64_t kLeadSize = kLeadSectors * kSectorSize;
  MappedMemory sectors = MappedMemory::make(heads.size() * kHeadSize);
  const uint64_t last = file.region_size_bytes - kSectorSize;
  std::vector<bool> is_read(heads.size() * 2, false);
  size_t asked = 0;
  size_t answered = 0;
  while (answered < is_read.size() && sectors.valid() && device_ && !is_stuck_) {
    for (; asked < is_read.size(); ++asked) {
      const bool is_lead = asked % 2 == 0;
      const uint64_t offset = offset_of(file, heads[asked / 2].region) + (is_lead ? 0 : last);
      uint8_t* const into = sectors.address() + asked / 2 * kHeadSize + (is_lead ? 0 : kLeadSize);
      const iovec part{into, is_lead ? kLeadSize : kSectorSize};
      if (!device_->submit({.kind = IoKind::kRead,
                            .fd = file.fd,
                            .offset = offset,
                            .size = part.iov_len,
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
    // What cannot be read is zeros: no head, no footer.
    const std::span<uint8_t> bytes = sectors.span().subspan(i * kHeadSize, kHeadSize);
    const std::span<uint8_t> lead = bytes.first(kLeadSize);
    const bool is_whole = is_read[2 * i] && is_read[2 * i + 1];
    if (!is_read[2 * i]) read_singly(file.fd, offset_of(file, heads[i].region), lead);
    judge(file, lead, sector_at(bytes, kLeadSectors), heads[i]);
    // Free is only what is known to be, and damaged what was read.
    heads[i].is_readable = is_whole || heads[i].sequence != 0;
  }
  if (is_stuck_) {
    device_ = options_.make_device();
    sectors.abandon();
  }
}

void SsdRecovery::read_singly(int fd, uint64_t offset, std::span<uint8_t> into) {
  for (uint64_t at = 0; at < into.size() && !is_stuck_ && !stopping_; at += kSectorSize) {
    const std::span<uint8_t> sector = into.subspan(at, kSectorSize);
    if (read(fd, offset + at, sector) || is_stuck_) continue;
    std::fill(sector.begin(), sector.end(), uint8_t{0});
  }
}

void SsdRecovery::judge(const SsdVolume::File& file, std::span<const uint8_t> lead, Sector last,
                        Head& head) const {
  const auto is_of_some_life = [](uint64_t sequence) {
    return sequence != 0 && sequence <= kSequenceMax;
  };
  const Sector first = sector_at(lead, 0);
  GroupHeader group;
  bool has_head = decode(file.log_id, first, 0, file.region_size_bytes, group) &&
                  is_of_some_life(group.region_sequence);
  for (uint32_t i = 1; i < kLeadSectors && !has_head; ++i) {
    has_head = decode(file.log_id, sector_at(lead, i), i, file.region_size_bytes, group) &&
               is_lead(group, i) && is_of_some_life(group.region_sequence);
  }
  head.has_footer = decode(file.log_id, last, file.region_size_bytes, head.footer) &&
                    is_of_some_life(head.footer.region_sequence);
  if (has_head) {
    head.sequence = group.region_sequence;
    // The footer of an earlier life.
    if (head.footer.region_sequence != head.sequence) head.has_footer = false;
  } else if (head.has_footer) {
    // A damaged lead, or a region that was not erased to the end: its footer speaks for it.
    head.sequence = head.footer.region_sequence;
  } else {
    head.is_damaged = !is_zero(first);
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
  } else if (head.is_damaged) {
    region.kind = RecoveredRegion::Kind::kDamaged;
    region.damaged_pages = 1;
  } else if (head.sequence == 0) {
    region.kind = RecoveredRegion::Kind::kFree;
  } else if (head.has_footer && read_entries(head, region)) {
    region.kind = RecoveredRegion::Kind::kSealed;
  } else {
    region.kind = RecoveredRegion::Kind::kUnsealed;
    region.entries.clear();
    region.sector_count = 0;
    single_reads_left_ = kSingleReadsMax;
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
  Window window{.memory = MappedMemory::make(kScanSize)};
  uint32_t next_number = 0;
  uint64_t missed = 0;  // Groups before `at` that told nothing.
  for (uint32_t at = 0; at < sector_count && !stopping_ && window.memory.valid() && !is_stuck_;) {
    if (!window.has(at)) fill(window, head, at);
    GroupHeader group;
    const Sector sector = sector_at(window.memory.span(), at - window.first);
    // After a group that is damaged or torn the next sound one is looked for, sector by sector.
    const bool is_sound = decode(file.log_id, sector, at, file.region_size_bytes, group);
    if (!is_sound || group.region_sequence != head.sequence || group.number < next_number) {
      const bool is_due = at == std::max(region.sector_count, kLeadSectors);
      missed += is_due && !is_sound && was_group(file.log_id, head.sequence, sector);
      ++at;
      continue;
    }
    if (is_lead(group, at)) {
      next_number = group.number + 1;
    } else {
      // Each has a sector at least.
      const uint32_t due = std::max(region.sector_count, kLeadSectors);
      const uint64_t passed = std::min(group.number - next_number, at > due ? at - due : 0);
      region.damaged_pages += std::max(std::exchange(missed, 0), passed);
      next_number = group.number + 1;
      take_group(file, offset, group, region);
    }
    at += group.sector_count;
    region.sector_count = at;
  }
  region.damaged_pages += missed;
  if (is_stuck_) window.memory.abandon();
}

void SsdRecovery::fill(Window& window, const Head& head, uint32_t first) {
  const SsdVolume::File& file = options_.files[head.volume];
  const uint64_t sector_count = file.region_size_bytes / kSectorSize;
  window.first = first;
  window.count =
      static_cast<uint32_t>(std::min<uint64_t>(kScanSize / kSectorSize, sector_count - first));
  const auto bytes = window.memory.span().first(window.count * kSectorSize);
  const uint64_t offset = offset_of(file, head.region) + first * kSectorSize;
  if (read(file.fd, offset, bytes) || is_stuck_) return;
  // One bad sector must not hide the others, but a bad disk does not take for ever.
  std::fill(bytes.begin(), bytes.end(), uint8_t{0});
  if (single_reads_left_ < window.count) return;
  single_reads_left_ -= window.count;
  read_singly(file.fd, offset, bytes);
}

void SsdRecovery::take_group(const SsdVolume::File& file, uint64_t region_offset,
                             const GroupHeader& group, RecoveredRegion& region) {
  for (const SsdEntry& entry : group.entries) {
    if (entry.kind != SsdEntryKind::kPage) {
      // Removals stand twice, one group behind the other; a footer holds them once.
      const size_t looked_at = std::min(region.entries.size(), kGroupEntryCountMax);
      const auto last = std::span(region.entries).last(looked_at);
      if (std::find(last.begin(), last.end(), entry) == last.end()) region.entries.push_back(entry);
    } else if (verify_page(file, region_offset, entry)) {
      region.entries.push_back(entry);
    } else {
      ++region.damaged_pages;
    }
  }
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
