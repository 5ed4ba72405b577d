// A log on fake disks beside a plain statement of what it may say: which versions of a page were
// written, and which of them may never be seen again.
#pragma once

#include <gtest/gtest.h>
#include <sched.h>
#include <xxhash.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fake_disk.h"
#include "support.h"
#include "tier/ssd_log.h"

namespace hicache::testing {

inline uint64_t checksum_of(std::span<const uint8_t> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

/// HICACHE_SOAK of the environment: how many times as long random tests run.
inline uint64_t soak_rounds() {
  const char* soak = std::getenv("HICACHE_SOAK");
  return soak != nullptr ? std::max<uint64_t>(1, std::strtoull(soak, nullptr, 0)) : 1;
}

class LogRig {
 public:
  struct Shape {
    uint32_t volume_count = 2;
    uint64_t region_size = 64 * kKiB;
    uint32_t region_count_max = 10;
    uint32_t space_count = 2;
    uint32_t key_count = 60;
    uint64_t page_size_max = 24 * kKiB;
    bool has_large_pages = true;  // Some as large as a region takes them.
    uint64_t io_timeout_ms = 10'000;
  };
  using Images = std::vector<std::vector<uint8_t>>;
  using Name = std::pair<uint32_t, uint32_t>;  // Namespace, key.

  struct Version {
    uint64_t id = 0;  // Names its bytes.
    uint64_t size = 0;
    uint64_t checksum = 0;
    uint64_t removed_in_life = 0;
    bool is_gone = false;  // For good: its removal was acknowledged.
  };
  /// A page that somebody holds a lease on.
  struct Lease {
    RegionIndex region;
    int fd;
    uint64_t offset;
    std::vector<uint8_t> bytes;
  };

  LogRig(const Shape& shape, uint64_t stream)
      : shape_(shape), region_count_max_(shape.region_count_max), random_(stream), stream_(stream) {
    for (uint32_t i = 0; i < shape.volume_count; ++i) {
      disks_[kFirstFd + static_cast<int>(i)] = empty_disk();
    }
    for (uint32_t i = 0; i < shape.space_count; ++i) spaces_.push_back(next_space_++);
  }
  ~LogRig() { close(); }

  Random& random() { return random_; }
  SsdLog& log() { return *log_; }
  FakeDisk& disk(size_t volume) { return *disks_.at(kFirstFd + static_cast<int>(volume)); }
  uint64_t now_ms() const { return now_ms_; }
  size_t pending_count() const { return pending_.size(); }
  size_t lease_count() const { return leases_.size(); }
  const std::vector<std::string>& notices() const { return notices_; }
  uint64_t damaged_reads() const { return damaged_reads_; }
  /// Of clean lives bytes that are wrong are a mistake; else readers may find damage.
  void allow_damage() { damage_is_allowed_ = true; }
  /// Recovery goes no further than to the heads of the regions while it is held.
  void hold_recovery(bool yes) { holds_recovery_ = yes; }
  /// The size limit of the lives that begin from now on; at most that of the shape.
  void limit_regions(uint32_t count_max) { region_count_max_ = count_max; }
  void lease_everything(bool yes) { all_leased_ = yes; }
  std::vector<std::pair<uint64_t, int>>& reads_done() { return reads_done_; }
  /// How often the log has asked for the life of a namespace.
  uint64_t space_questions() const { return space_questions_; }

  Images images() const {
    Images images;
    for (const auto& [fd, disk] : disks_) images.push_back(disk->image());
    return images;
  }
  Images cut(Random& random) const {
    Images images;
    for (const auto& [fd, disk] : disks_) images.push_back(disk->cut(random));
    return images;
  }
  void put_images(const Images& images) {
    int fd = kFirstFd;
    for (const auto& image : images) disks_[fd++] = std::make_shared<FakeDisk>(image, size_max());
  }
  /// The same pages and promises, for another log on other disks.
  void adopt_oracle(const LogRig& other) {
    versions_ = other.versions_;
    life_ = other.life_;
  }

  /// A disk that damages the only entry of a removal brings back what was removed.
  void forget_promises() {
    for (auto& [name, versions] : versions_) {
      for (Version& version : versions) version.is_gone = false;
    }
  }

  std::vector<SsdVolume::File> files() const {
    std::vector<SsdVolume::File> files;
    for (const auto& [fd, disk] : disks_) {
      const uint64_t count = (disk->size() - kSuperblockSize) / shape_.region_size;
      files.push_back({.path = "disk" + std::to_string(fd - kFirstFd),
                       .fd = fd,
                       .log_id = log_id(fd),
                       .region_size_bytes = shape_.region_size,
                       .region_count = static_cast<uint32_t>(count),
                       .region_count_max = region_count_max_});
    }
    return files;
  }
  static LogId log_id(int fd) {
    LogId id{};
    id.fill(static_cast<uint8_t>(fd));
    return id;
  }

  /// Begins a life on what the disks hold.
  void open() {
    ++life_;
    SsdLog::Options options;
    options.files = files();
    options.make_device = [this, made = uint32_t{0}]() mutable {
      // First those of the volumes, then those of recovery.
      const bool is_lazy = made++ < shape_.volume_count;
      return std::make_unique<FakeDevice>(disks_, is_lazy, stream_ * 1000 + life_ * 10 + made);
    };
    options.page_checksum = checksum_of;
    options.space_of = [this](const NamespaceDigest& digest) {
      ++space_questions_;
      for (uint32_t i = 0; i < spaces_.size(); ++i) {
        if (digest_of(i) == digest) return spaces_[i];
      }
      return kAnySpace;
    };
    options.is_leased = [this](RegionIndex region) { return is_leased(region); };
    options.is_promised = [](RegionIndex) { return false; };
    options.is_in_dram = [](uint64_t) { return false; };
    options.on_written = [this](uint64_t tag, bool ok) { after_write(tag, ok); };
    options.on_read = [this](uint64_t tag, int error) { reads_done_.emplace_back(tag, error); };
    options.on_notice = [this](std::string notice) { notices_.push_back(std::move(notice)); };
    options.wake = [this] {
      while (holds_recovery_) sched_yield();
    };
    options.io_timeout_ms = shape_.io_timeout_ms;
    options.write_depth = 3;
    log_ = std::make_unique<SsdLog>(std::move(options), now_ms_);
  }

  /// Ends the life at once; what is on its way stays where it is.
  void close() {
    log_.reset();
    pending_.clear();
    writing_.clear();
    leases_.clear();
    removals_.clear();
  }

  void step(uint64_t ms = 1) {
    now_ms_ += ms;
    log_->advance(now_ms_, now_ms_ / 1000);
    note_acknowledged();
  }

  /// Steps until `is_true`; false if it does not become so.
  template <typename IsTrue>
  bool step_until(IsTrue is_true, uint64_t steps_max = 20'000) {
    for (uint64_t i = 0; i < steps_max; ++i) {
      if (is_true()) return true;
      step();
      if (log_->is_recovering()) sched_yield();
    }
    return is_true();
  }
  bool recover() {
    const Deadline deadline = Deadline::after_ms(20'000);
    while (log_->is_recovering() && !deadline.expired()) {
      step(0);
      sched_yield();
    }
    return !log_->is_recovering();
  }
  /// Nothing is on its way.
  bool settle() {
    return step_until(
        [this] { return pending_.empty() && log_->writing_bytes() == 0 && removals_.empty(); });
  }

  // --- what its users do

  /// False if the log cannot take the page now.
  bool write(Name name) {
    if (!log_->can_write() || writing_.contains(name)) return false;
    const uint64_t hash = hash_of(name);
    if (log_->find(space(name), key(name), hash) != kNoSsdPage) remove(name);
    Version version;
    version.id = ++next_id_;
    version.size = shape_.has_large_pages && random_.one_in(8)
                       ? random_.between(1, log_->page_size_max())
                       : random_.between(1, shape_.page_size_max);
    version.size = std::min(version.size, log_->page_size_max());
    const std::vector<uint8_t> bytes = bytes_of(version.id, version.size);
    version.checksum = checksum_of(bytes);
    SsdLog::Page page{.space = space(name),
                      .name_space = digest_of(name.first),
                      .key = key(name),
                      .size = version.size,
                      .checksum = version.checksum,
                      .parent_hash = name.second < 8 ? 0 : hash_of({name.first, name.second / 2}),
                      .parts = {},
                      .memory = MappedMemory::make(sectors_of(version.size) * kSectorSize),
                      .tag = version.id};
    std::copy(bytes.begin(), bytes.end(), page.memory.address());
    page.parts = {{page.memory.address(), page.memory.size()}};
    versions_[name].push_back(version);
    pending_[version.id] = name;
    writing_.insert(name);
    log_->write(std::move(page));
    return true;
  }

  uint64_t remove(Name name) {
    for (Version& version : versions_[name]) version.removed_in_life = life_;
    const uint64_t ticket = log_->remove(space(name), digest_of(name.first), key(name));
    // Of what an earlier removal is about, which is on its way still, nothing more is promised.
    const bool is_under_way = std::any_of(removals_.begin(), removals_.end(),
                                          [&](const Removal& other) { return other.name == name; });
    if (ticket != 0 || !is_under_way) removals_.push_back({ticket, name, versions_[name].size()});
    note_acknowledged();
    return ticket;
  }

  uint64_t clear(uint32_t name_space) {
    const SpaceIndex ended = std::exchange(spaces_[name_space], next_space_++);
    for (auto& [name, versions] : versions_) {
      if (name.first != name_space) continue;
      for (Version& version : versions) version.removed_in_life = life_;
    }
    const uint64_t ticket = log_->clear(ended, digest_of(name_space));
    for (const auto& [name, versions] : versions_) {
      if (name.first == name_space) removals_.push_back({ticket, name, versions.size()});
    }
    std::erase_if(writing_, [&](const Name& name) { return name.first == name_space; });
    note_acknowledged();
    return ticket;
  }

  /// A reader takes a page if it is there.
  void lease(Name name) {
    const SsdPageIndex found = find(name);
    if (found == kNoSsdPage) return;
    const SsdPage& page = log_->index()[found];
    const int fd = kFirstFd + static_cast<int>(log_->volume_of(page.place.region));
    const uint64_t offset = log_->file_offset(page);
    leases_.push_back({page.place.region, fd, offset, disks_[fd]->read(offset, page.size)});
    log_->index().note_read(found);
  }
  void release_one() {
    if (leases_.empty()) return;
    const Lease lease = leases_.front();
    leases_.erase(leases_.begin());
    EXPECT_EQ(disks_[lease.fd]->read(lease.offset, lease.bytes.size()) == lease.bytes, true)
        << "bytes changed under a lease, region " << lease.region;
  }
  void release_all() {
    while (!leases_.empty()) release_one();
  }

  // --- what must be true

  SsdPageIndex find(Name name) const { return log_->find(space(name), key(name), hash_of(name)); }

  /// The version that the log has of this page, or nothing. Whatever it says must be true.
  const Version* check(Name name) {
    const SsdPageIndex found = find(name);
    if (found == kNoSsdPage) return nullptr;
    const SsdPage& page = log_->index()[found];
    const Version* version = nullptr;
    for (const Version& known : versions_[name]) {
      if (known.checksum == page.checksum && known.size == page.size) version = &known;
    }
    if (version == nullptr) {
      ADD_FAILURE() << text(name) << " has a version that nobody wrote";
      return nullptr;
    }
    EXPECT_FALSE(version->is_gone) << text(name) << ": version " << version->id
                                   << " is back, although its removal was acknowledged";
    EXPECT_NE(version->removed_in_life, life_)
        << text(name) << ": version " << version->id << " is there after its removal";
    const int fd = kFirstFd + static_cast<int>(log_->volume_of(page.place.region));
    const auto bytes = disks_[fd]->read(log_->file_offset(page), page.size);
    if (checksum_of(bytes) != page.checksum) {
      ++damaged_reads_;
      EXPECT_TRUE(damage_is_allowed_) << text(name) << ": its bytes are not those that were stored";
      return nullptr;
    }
    EXPECT_TRUE(bytes == bytes_of(version->id, version->size)) << text(name) << ": wrong bytes";
    return version;
  }

  /// Checks every page; those that are there, by name, with the version's id.
  std::map<Name, uint64_t> check_all() {
    std::map<Name, uint64_t> there;
    for (const auto& [name, versions] : versions_) {
      if (const Version* version = check(name)) there[name] = version->id;
    }
    EXPECT_EQ(log_->index().check_invariants(), "");
    return there;
  }

  const Version& newest(Name name) { return versions_[name].back(); }

  /// Pages that no power cut can take away now.
  std::map<Name, uint64_t> stable_pages() {
    std::map<Name, uint64_t> there;
    for (const auto& [name, versions] : versions_) {
      const SsdPageIndex found = find(name);
      if (found == kNoSsdPage) continue;
      const SsdPage& page = log_->index()[found];
      const int fd = kFirstFd + static_cast<int>(log_->volume_of(page.place.region));
      if (!disks_[fd]->is_stable(log_->file_offset(page), sectors_of(page.size) * kSectorSize)) {
        continue;
      }
      for (const Version& version : versions) {
        if (version.checksum == page.checksum) there[name] = version.id;
      }
    }
    return there;
  }

  /// Every region is free or used, once everything was recovered.
  void check_space() const {
    for (size_t i = 0; i < log_->volume_count(); ++i) {
      const SsdVolume& volume = log_->volume(i);
      uint32_t free = 0;
      uint32_t open = 0;
      for (uint32_t region = 0; region < volume.region_count(); ++region) {
        free += volume.state(region) == SsdVolume::RegionState::kFree;
        open += volume.state(region) == SsdVolume::RegionState::kOpen;
      }
      EXPECT_EQ(free + volume.used_region_count(), volume.region_count());
      EXPECT_LE(volume.region_count(), shape_.region_count_max);
      EXPECT_LE(open, 1u);
    }
  }

  Name any_name() {
    return {static_cast<uint32_t>(random_.below(shape_.space_count)),
            static_cast<uint32_t>(random_.below(shape_.key_count))};
  }
  SpaceIndex space(Name name) const { return spaces_[name.first]; }
  static Key key(Name name) { return key_of(name.second); }
  uint64_t hash_of(Name name) const { return page_hash(space(name), key(name)); }
  static NamespaceDigest digest_of(uint32_t name_space) {
    NamespaceDigest digest;
    digest.bytes = key_of(1000 + name_space).bytes;
    return digest;
  }
  std::string text(Name name) const {
    return "life " + std::to_string(life_) + ", at " + std::to_string(now_ms_) + " ms, page " +
           std::to_string(name.first) + "/" + std::to_string(name.second);
  }

 private:
  struct Removal {
    uint64_t ticket;
    Name name;
    size_t version_count;
  };

  static constexpr int kFirstFd = 1000;

  uint64_t size_max() const {
    return kSuperblockSize + shape_.region_count_max * shape_.region_size;
  }
  std::shared_ptr<FakeDisk> empty_disk() const {
    return std::make_shared<FakeDisk>(std::vector<uint8_t>(kSuperblockSize), size_max());
  }
  bool is_leased(RegionIndex region) const {
    return all_leased_ || std::any_of(leases_.begin(), leases_.end(), [region](const Lease& lease) {
             return lease.region == region;
           });
  }

  void after_write(uint64_t tag, bool ok) {
    const auto found = pending_.find(tag);
    if (found == pending_.end()) {
      ADD_FAILURE() << "told twice of page " << tag;
      return;
    }
    const Name name = found->second;
    pending_.erase(found);
    writing_.erase(name);
    if (!ok) return;
    const SsdPageIndex page = find(name);
    ASSERT_NE(page, kNoSsdPage) << text(name) << ": written, but not in the index";
    const auto is_it = [&](const Version& version) { return version.id == tag; };
    const auto& versions = versions_[name];
    const auto version = std::find_if(versions.begin(), versions.end(), is_it);
    EXPECT_EQ(log_->index()[page].checksum, version->checksum) << text(name);
    EXPECT_NE(version->removed_in_life, life_) << text(name) << ": written after its removal";
  }

  void note_acknowledged() {
    std::erase_if(removals_, [this](const Removal& removal) {
      if (!log_->is_done(removal.ticket)) return false;
      if (removal.ticket != 0 && log_->is_lost(removal.ticket)) return true;
      auto& versions = versions_[removal.name];
      for (size_t i = 0; i < removal.version_count; ++i) versions[i].is_gone = true;
      return true;
    });
  }

  const Shape shape_;
  uint32_t region_count_max_;
  Random random_;
  const uint64_t stream_;
  FakeDevice::Disks disks_;
  std::unique_ptr<SsdLog> log_;
  std::atomic<bool> holds_recovery_{false};
  uint64_t now_ms_ = 1000;
  uint64_t life_ = 0;
  uint64_t next_id_ = 0;
  SpaceIndex next_space_ = 0;
  std::vector<SpaceIndex> spaces_;  // Present lives, by namespace.
  std::map<Name, std::vector<Version>> versions_;
  std::map<uint64_t, Name> pending_;  // Writes, by tag.
  std::set<Name> writing_;
  std::vector<Removal> removals_;  // Not acknowledged.
  std::vector<Lease> leases_;
  std::vector<std::string> notices_;
  std::vector<std::pair<uint64_t, int>> reads_done_;
  uint64_t damaged_reads_ = 0;
  uint64_t space_questions_ = 0;
  bool damage_is_allowed_ = false;
  bool all_leased_ = false;
};

}  // namespace hicache::testing
