// A disk in memory that fails as disks do, and BlockDevices on it: for tests of what is built on
// them.
//
// Requests complete when they are polled, in seeded order; a write changes the file then. Planned
// faults: errors, requests that never complete, flipped bits, a full disk. Everything that changed
// a file is on record, so that the bytes that a power cut would have left behind at any moment can
// be had afterwards.
//
// Threads: any number of devices, each with its owner, on one disk. The same seed and the same
// calls give the same run if one thread makes them.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "io/block_device.h"
#include "io/event_fd.h"
#include "io/io_transfer.h"

namespace hicache::testing {

class FaultyDisk {
 public:
  static constexpr uint64_t kTornSize = 512;  // What a disk writes at once.
  static constexpr uint64_t kNever = UINT64_MAX;
  static constexpr int kFirstFd = 1'000'000;  // No number that the system gives out.

  struct Options {
    uint64_t seed;
    bool out_of_order = true;
    /// The disk's own cache loses or reorders what was not flushed by a durable write.
    bool volatile_cache = true;
    uint64_t capacity_bytes = kNever;  // Of all files: more is ENOSPC.
  };

  /// Something that changed a file. Moments count submissions and completions.
  struct Change {
    IoKind kind;
    int fd;
    uint64_t offset;
    uint64_t size;
    std::vector<uint8_t> bytes;  // Of writes.
    uint64_t submitted_at;
    uint64_t completed_at;  // kNever: in flight, abandoned, or failed.
  };

  explicit FaultyDisk(Options options) : options_(options), random_(options.seed) {}

  // --- files

  int add_file(std::vector<uint8_t> bytes = {}) {
    const std::lock_guard lock(mutex_);
    files_.push_back({bytes, bytes});
    return kFirstFd + static_cast<int>(files_.size()) - 1;
  }
  /// As a reader sees it now.
  std::vector<uint8_t> content(int fd) const {
    const std::lock_guard lock(mutex_);
    return files_[index_of(fd)].now;
  }
  void flip_bit(int fd, uint64_t offset, unsigned bit) {
    const std::lock_guard lock(mutex_);
    files_[index_of(fd)].now[offset] ^= static_cast<uint8_t>(1U << bit);
  }

  // --- faults. `nth`: of the requests of that kind submitted from now on, 0 is the next.

  void fail(IoKind kind, uint64_t nth, int error) { plan(kind, nth, error); }
  /// It never completes, and changes nothing while the power is on.
  void hang(IoKind kind, uint64_t nth) { plan(kind, nth, kHangs); }
  /// Nothing completes while it is true.
  void set_paused(bool paused) {
    const std::lock_guard lock(mutex_);
    is_paused_ = paused;
    for (const EventFd* event : events_) event->signal();
  }

  // --- power cuts

  /// In order of completion; then what has not completed, or failed in the middle of it.
  std::vector<Change> changes() const {
    const std::lock_guard lock(mutex_);
    return ordered(kNever);
  }
  /// Changes that completed.
  size_t completed_count() const {
    const std::lock_guard lock(mutex_);
    return completed(changes_);
  }

  /// A file after the first `count` changes of changes(), the next one torn after so many 512
  /// bytes.
  std::vector<uint8_t> image_after(int fd, size_t count, uint64_t torn_sectors = 0) const {
    const std::lock_guard lock(mutex_);
    std::vector<uint8_t> image = files_[index_of(fd)].before;
    const std::vector<Change> all = ordered(kNever);
    for (size_t i = 0; i < std::min(count, all.size()); ++i) {
      if (all[i].fd == fd) apply(all[i], image, std::vector<bool>());
    }
    if (count >= all.size() || all[count].fd != fd || torn_sectors == 0) return image;
    std::vector<bool> lost(all[count].size / kTornSize, true);
    std::fill_n(lost.begin(), std::min<uint64_t>(torn_sectors, lost.size()), false);
    apply(all[count], image, lost);
    return image;
  }

  /// A file after a power cut when the first `count` changes had completed, and no more. What was
  /// in flight then may have reached the disk, or parts of it; with a volatile cache, the same is
  /// true of what had completed and was not flushed.
  std::vector<uint8_t> image_after_power_cut(int fd, size_t count, uint64_t seed) const {
    const std::lock_guard lock(mutex_);
    std::mt19937_64 random(seed);
    std::vector<uint8_t> image = files_[index_of(fd)].before;
    const std::vector<Change> all = ordered(kNever);
    const uint64_t moment = count < completed(all) ? all[count].completed_at : moment_;
    for (const Change& change : ordered(moment)) {
      if (change.fd != fd) continue;
      const bool is_safe = change.completed_at < moment &&
                           (!options_.volatile_cache || is_flushed(all, change, moment));
      apply(change, image, is_safe ? std::vector<bool>() : random_loss(change, random));
    }
    return image;
  }

 private:
  friend class FaultyDevice;

  static constexpr int kHangs = -1;
  static constexpr size_t kKindCount = 5;

  struct File {
    std::vector<uint8_t> before;
    std::vector<uint8_t> now;
  };
  struct Fault {
    IoKind kind;
    uint64_t at;
    int error;
  };

  static size_t index_of(int fd) { return static_cast<size_t>(fd - kFirstFd); }
  bool is_file(int fd) const { return fd >= kFirstFd && index_of(fd) < files_.size(); }

  void plan(IoKind kind, uint64_t nth, int error) {
    const std::lock_guard lock(mutex_);
    faults_.push_back({kind, submitted_[static_cast<size_t>(kind)] + nth, error});
  }

  static size_t completed(const std::vector<Change>& changes) {
    return static_cast<size_t>(std::ranges::count_if(
        changes, [](const Change& change) { return change.completed_at != kNever; }));
  }

  /// Completed before `moment`, in that order; then what was submitted before it.
  std::vector<Change> ordered(uint64_t moment) const {
    std::vector<Change> found;
    std::ranges::copy_if(changes_, std::back_inserter(found),
                         [moment](const Change& change) { return change.submitted_at < moment; });
    std::ranges::stable_sort(found, {}, [moment](const Change& change) {
      return change.completed_at < moment ? change.completed_at : kNever;
    });
    return found;
  }

  /// Durable itself, or completed before one of the same file was submitted that completed before
  /// `moment`.
  static bool is_flushed(const std::vector<Change>& all, const Change& change, uint64_t moment) {
    return std::ranges::any_of(all, [&](const Change& other) {
      return other.kind == IoKind::kWriteDurable && other.fd == change.fd &&
             other.completed_at < moment &&
             (other.submitted_at == change.submitted_at ||
              change.completed_at < other.submitted_at);
    });
  }

  /// Whole, not at all, or in parts.
  static std::vector<bool> random_loss(const Change& change, std::mt19937_64& random) {
    const uint64_t fate = random() % 3;
    if (fate == 0) return {};
    // Space is set aside, or given back, as one.
    const bool is_whole = change.bytes.empty();
    std::vector<bool> lost(change.size / kTornSize, true);
    if (fate == 1 || is_whole) return lost;
    for (size_t i = 0; i < lost.size(); ++i) lost[i] = random() % 2 == 0;
    return lost;
  }

  /// `lost`: which 512 bytes of it did not make it; empty: all did.
  static void apply(const Change& change, std::vector<uint8_t>& image,
                    const std::vector<bool>& lost) {
    for (uint64_t at = 0; at < change.size; at += kTornSize) {
      if (!lost.empty() && lost[at / kTornSize]) continue;
      const uint64_t offset = change.offset + at;
      if (change.kind != IoKind::kDiscard && image.size() < offset + kTornSize) {
        image.resize(offset + kTornSize);
      }
      if (offset >= image.size()) break;
      if (change.kind == IoKind::kDiscard) {
        std::fill_n(image.begin() + static_cast<ptrdiff_t>(offset), kTornSize, 0);
      } else if (!change.bytes.empty()) {
        std::copy_n(change.bytes.begin() + static_cast<ptrdiff_t>(at), kTornSize,
                    image.begin() + static_cast<ptrdiff_t>(offset));
      }
    }
  }

  uint64_t used_bytes() const {
    uint64_t size = 0;
    for (const File& file : files_) size += file.now.size();
    return size;
  }

  const Options options_;
  mutable std::mutex mutex_;
  std::mt19937_64 random_;
  std::vector<File> files_;
  std::vector<Change> changes_;  // In order of submission.
  std::vector<Fault> faults_;
  std::array<uint64_t, kKindCount> submitted_{};
  uint64_t moment_ = 0;
  bool is_paused_ = false;
  std::vector<const EventFd*> events_;  // Of the devices.
};

class FaultyDevice : public BlockDevice {
 public:
  FaultyDevice(std::shared_ptr<FaultyDisk> disk, uint32_t depth)
      : disk_(std::move(disk)), depth_(depth), event_(EventFd::make()) {
    const std::lock_guard lock(disk_->mutex_);
    disk_->events_.push_back(&event_);
  }
  ~FaultyDevice() override {
    const std::lock_guard lock(disk_->mutex_);
    std::erase(disk_->events_, &event_);
  }

  bool submit(IoRequest request) override {
    const std::lock_guard lock(disk_->mutex_);
    if (in_flight_ == depth_) return false;
    ++in_flight_;
    Pending pending{std::move(request), 0, 0, monotonic_ns()};
    pending.error = error_of(pending.request);
    if (pending.error == 0) pending.error = take_fault(pending.request.kind);
    // A write that the disk reports as failed may have reached it in part.
    const bool may_change = pending.error <= 0 || pending.error == EIO;
    if (pending.request.kind != IoKind::kRead && may_change) record(pending);
    if (pending.error != FaultyDisk::kHangs) {
      pending_.push_back(std::move(pending));
      event_.signal();
    }
    return true;
  }

  size_t poll(std::span<IoCompletion> completions) override {
    const std::lock_guard lock(disk_->mutex_);
    event_.clear();
    size_t count = 0;
    while (!disk_->is_paused_ && count < completions.size() && !pending_.empty()) {
      const size_t index = disk_->options_.out_of_order ? disk_->random_() % pending_.size() : 0;
      Pending pending = std::move(pending_[index]);
      pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(index));
      const int error = pending.error == 0 ? complete(pending) : pending.error;
      completions[count++] = {pending.request.tag, error, monotonic_ns() - pending.begun_ns};
    }
    in_flight_ -= count;
    if (!disk_->is_paused_ && !pending_.empty()) event_.signal();
    return count;
  }

  bool wait(Deadline deadline) override {
    for (;;) {
      {
        const std::lock_guard lock(disk_->mutex_);
        if (!disk_->is_paused_ && !pending_.empty()) return true;
        if (in_flight_ == 0 || deadline.expired()) return false;
        event_.clear();
      }
      event_.wait(deadline);
    }
  }

  int event_fd() const override { return event_.get(); }
  size_t in_flight() const override { return in_flight_; }
  std::string_view engine_name() const override { return "faulty"; }

 private:
  struct Pending {
    IoRequest request;
    int error;
    size_t change;  // Index into the disk's, of what changes a file.
    uint64_t begun_ns;
  };

  int error_of(const IoRequest& request) const {
    const int error = request_error(request);
    return error != 0 || disk_->is_file(request.fd) ? error : EBADF;
  }

  int take_fault(IoKind kind) {
    const uint64_t number = disk_->submitted_[static_cast<size_t>(kind)]++;
    for (const FaultyDisk::Fault& fault : disk_->faults_) {
      if (fault.kind == kind && fault.at == number) return fault.error;
    }
    return 0;
  }

  void record(Pending& pending) {
    const IoRequest& request = pending.request;
    FaultyDisk::Change change{request.kind, request.fd,       request.offset,    request.size,
                              {},           disk_->moment_++, FaultyDisk::kNever};
    for (const iovec& part : request.parts) {
      const auto* const bytes = static_cast<const uint8_t*>(part.iov_base);
      change.bytes.insert(change.bytes.end(), bytes, bytes + part.iov_len);
    }
    pending.change = disk_->changes_.size();
    disk_->changes_.push_back(std::move(change));
  }

  int complete(Pending& pending) {
    const IoRequest& request = pending.request;
    std::vector<uint8_t>& now = disk_->files_[FaultyDisk::index_of(request.fd)].now;
    const uint64_t end = request.offset + request.size;
    if (request.kind == IoKind::kRead) {
      if (end > now.size()) return EIO;
      uint64_t at = request.offset;
      for (const iovec& part : request.parts) {
        std::memcpy(part.iov_base, now.data() + at, part.iov_len);
        at += part.iov_len;
      }
      return 0;
    }
    const uint64_t growth = end > now.size() ? end - now.size() : 0;
    FaultyDisk::Change& change = disk_->changes_[pending.change];
    if (request.kind != IoKind::kDiscard && growth != 0 &&
        disk_->used_bytes() + growth > disk_->options_.capacity_bytes) {
      return ENOSPC;
    }
    change.completed_at = disk_->moment_++;
    FaultyDisk::apply(change, now, {});
    return 0;
  }

  const std::shared_ptr<FaultyDisk> disk_;
  const uint32_t depth_;
  const EventFd event_;
  size_t in_flight_ = 0;
  std::deque<Pending> pending_;  // Hanging ones are only counted.
};

}  // namespace hicache::testing
