// A disk in memory, with the cache that a real one has and loses: what was written is seen by reads
// at once, and survives a power cut only once it was flushed. Checks what it is asked to do: writes
// lie inside the file, do not overlap while they are on their way, and their memory stays as it is.
//
// Threads: a disk is shared by devices of several threads; each device has one owner.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "io/block_device.h"
#include "support.h"

namespace hicache::testing {

class FakeDisk {
 public:
  static constexpr int kNever = -1;
  static constexpr uint64_t kTornSize = 512;  // What a disk writes whole.

  struct Write {
    uint64_t id = 0;
    uint64_t offset = 0;
    std::vector<uint8_t> bytes;
    bool is_done = false;
    uint64_t done_at = 0;
  };

  explicit FakeDisk(std::vector<uint8_t> image, uint64_t size_max = UINT64_MAX)
      : stable_(image), now_(std::move(image)), size_max_(size_max) {}

  /// Of a request when it is submitted: 0, an errno, or kNever. Called under the disk's mutex.
  std::function<int(const IoRequest&)> outcome_of = [](const IoRequest&) { return 0; };
  /// Of a write: its checks that do not hold, by bit, as a device that copies would find them.
  std::function<uint32_t(const IoRequest&)> damage_of = [](const IoRequest&) { return 0; };
  /// After each step of a write; for tests of one thread.
  std::function<void()> on_write_step = [] {};

  uint64_t size() const {
    const std::lock_guard lock(mutex_);
    return now_.size();
  }
  std::vector<uint8_t> image() const {
    const std::lock_guard lock(mutex_);
    return now_;
  }
  void set_outcome(std::function<int(const IoRequest&)> outcome) {
    const std::lock_guard lock(mutex_);
    outcome_of = std::move(outcome);
  }
  /// While it is true nothing completes.
  void set_paused(bool paused) { is_paused_ = paused; }
  uint64_t write_count() const { return next_id_; }

  /// Bytes whose space was given back, and not set aside again.
  uint64_t hole_bytes() const {
    const std::lock_guard lock(mutex_);
    uint64_t sum = 0;
    for (const auto& [offset, size] : holes_) sum += size;
    return sum;
  }

  /// What a power cut now leaves: of what is not flushed each write as a whole, in part, or not.
  std::vector<uint8_t> cut(Random& random) const {
    const std::lock_guard lock(mutex_);
    std::vector<uint8_t> left = stable_;
    const uint64_t mood = random.below(4);  // All lost, all kept, each for itself.
    for (const Write& write : writes_) {
      const uint64_t fate = mood < 2 ? mood : random.below(3);
      if (fate == 0) continue;
      for (uint64_t at = 0; at < write.bytes.size(); at += kTornSize) {
        if (fate == 2 && random.one_in(2)) continue;
        std::copy_n(write.bytes.begin() + static_cast<ptrdiff_t>(at), kTornSize,
                    left.begin() + static_cast<ptrdiff_t>(write.offset + at));
      }
    }
    return left;
  }

  /// No power cut changes these bytes any more.
  bool is_stable(uint64_t offset, uint64_t size) const {
    const std::lock_guard lock(mutex_);
    return std::none_of(writes_.begin(), writes_.end(), [&](const Write& write) {
      return write.offset < offset + size && offset < write.offset + write.bytes.size();
    });
  }

  std::vector<uint8_t> read(uint64_t offset, uint64_t size) const {
    const std::lock_guard lock(mutex_);
    if (offset + size > now_.size()) return {};
    const auto first = now_.begin() + static_cast<ptrdiff_t>(offset);
    return {first, first + static_cast<ptrdiff_t>(size)};
  }

 private:
  friend class FakeDevice;

  struct Job {
    IoRequest request;
    int outcome = 0;
    uint64_t write_id = 0;
    uint64_t submitted_at = 0;
  };

  static bool is_write(IoKind kind) {
    return kind == IoKind::kWrite || kind == IoKind::kWriteDurable;
  }

  static std::vector<uint8_t> gather(const IoRequest& request) {
    std::vector<uint8_t> bytes;
    for (const iovec& part : request.parts) {
      const auto* from = static_cast<const uint8_t*>(part.iov_base);
      bytes.insert(bytes.end(), from, from + part.iov_len);
    }
    return bytes;
  }

  Job begin(IoRequest request) {
    const std::lock_guard lock(mutex_);
    Job job{.request = std::move(request), .submitted_at = ++tick_};
    const IoRequest& asked = job.request;
    job.outcome = outcome_of(asked);
    EXPECT_EQ(asked.offset % kSectorSize, 0u);
    EXPECT_EQ(asked.size % kSectorSize, 0u);
    if (is_write(asked.kind)) {
      check_write(asked);
      for (const auto& [offset, size] : holes_) {
        EXPECT_FALSE(offset < asked.offset + asked.size && asked.offset < offset + size)
            << "a write to where no space is set aside: " << asked.offset;
      }
      job.write_id = ++next_id_;
      writes_.push_back({.id = job.write_id, .offset = asked.offset, .bytes = gather(asked)});
      EXPECT_EQ(writes_.back().bytes.size(), asked.size);
    } else if (asked.kind == IoKind::kDiscard) {
      check_write(asked);
      job.write_id = ++next_id_;
      writes_.push_back(
          {.id = job.write_id, .offset = asked.offset, .bytes = std::vector<uint8_t>(asked.size)});
    }
    return job;
  }

  void check_write(const IoRequest& asked) const {
    EXPECT_LE(asked.offset + asked.size, now_.size()) << "a write beyond the end of the file";
    for (const Write& write : writes_) {
      const bool overlaps = write.offset < asked.offset + asked.size &&
                            asked.offset < write.offset + write.bytes.size();
      EXPECT_FALSE(overlaps && !write.is_done)
          << "two writes on their way to one place: " << write.offset << " and " << asked.offset;
    }
  }

  int end(const Job& job) {
    const std::lock_guard lock(mutex_);
    const IoRequest& asked = job.request;
    ++tick_;
    switch (asked.kind) {
      case IoKind::kRead:
        return job.outcome != 0 ? job.outcome : end_read(asked);
      case IoKind::kAllocate: {
        if (job.outcome != 0) return job.outcome;
        const uint64_t size = asked.offset + asked.size;
        if (size > size_max_) return ENOSPC;
        holes_.erase(asked.offset);
        if (size > now_.size()) {
          now_.resize(size);
          stable_.resize(size);
        }
        return 0;
      }
      case IoKind::kWrite:
      case IoKind::kWriteDurable:
      case IoKind::kDiscard:
        end_write(job);
        if (asked.kind == IoKind::kDiscard && job.outcome == 0) holes_[asked.offset] = asked.size;
        return job.outcome;
    }
    return EINVAL;
  }

  int end_read(const IoRequest& asked) const {
    uint64_t at = asked.offset;
    for (const iovec& part : asked.parts) {
      if (at + part.iov_len > now_.size()) return EIO;
      std::memcpy(part.iov_base, now_.data() + at, part.iov_len);
      at += part.iov_len;
    }
    return 0;
  }

  void end_write(const Job& job) {
    const auto found = std::find_if(writes_.begin(), writes_.end(),
                                    [&](const Write& write) { return write.id == job.write_id; });
    if (job.request.kind != IoKind::kDiscard) {
      EXPECT_EQ(gather(job.request), found->bytes) << "the memory of a write changed under it";
    }
    found->is_done = true;
    found->done_at = tick_;
    // Of one that failed some sectors may have come through.
    for (uint64_t at = 0; at < found->bytes.size(); at += kTornSize) {
      if (job.outcome != 0 && (at / kTornSize + job.write_id) % 3 == 0) continue;
      put(now_, *found, at);
    }
    if (job.request.kind != IoKind::kWriteDurable || job.outcome != 0) return;
    std::erase_if(writes_, [&](const Write& write) {
      const bool is_flushed = write.is_done && write.done_at <= job.submitted_at;
      if (!is_flushed && write.id != job.write_id) return false;
      for (uint64_t at = 0; at < write.bytes.size(); at += kTornSize) put(stable_, write, at);
      return true;
    });
  }

  static void put(std::vector<uint8_t>& into, const Write& write, uint64_t at) {
    std::copy_n(write.bytes.begin() + static_cast<ptrdiff_t>(at), kTornSize,
                into.begin() + static_cast<ptrdiff_t>(write.offset + at));
  }

  mutable std::mutex mutex_;
  std::vector<uint8_t> stable_;
  std::vector<uint8_t> now_;
  const uint64_t size_max_;
  std::map<uint64_t, uint64_t> holes_;  // Sizes, by offset; discards and allocations are alike.
  std::deque<Write> writes_;            // Not flushed, in the order in which they were submitted.
  std::atomic<bool> is_paused_{false};
  uint64_t next_id_ = 0;
  uint64_t tick_ = 0;
};

/// Serves requests for disks by descriptor. A lazy one completes them in any order, and some of
/// them later; the other kind at once, so that wait() has nothing to wait for.
class FakeDevice : public BlockDevice {
 public:
  using Disks = std::map<int, std::shared_ptr<FakeDisk>>;

  FakeDevice(Disks disks, bool is_lazy, uint64_t stream, uint32_t depth = 16)
      : disks_(std::move(disks)), is_lazy_(is_lazy), random_(stream), depth_(depth) {}

  bool submit(IoRequest request) override {
    if (in_flight() == depth_) return false;
    FakeDisk& disk = *disks_.at(request.fd);
    if (const uint32_t damaged = disk.damage_of(request); damaged != 0) {
      damaged_.push_back({request.tag, EBADMSG, 0, damaged});
      return true;
    }
    FakeDisk::Job job = disk.begin(std::move(request));
    (job.outcome == FakeDisk::kNever ? hanging_ : due_).push_back(std::move(job));
    disk.on_write_step();
    return true;
  }

  size_t poll(std::span<IoCompletion> completions) override {
    size_t count = 0;
    for (; count < completions.size() && !damaged_.empty(); ++count) {
      completions[count] = damaged_.front();
      damaged_.pop_front();
    }
    while (count < completions.size() && !due_.empty()) {
      if (is_lazy_ && random_.one_in(3)) break;
      const uint64_t chosen = is_lazy_ ? random_.below(due_.size()) : 0;
      FakeDisk& disk = *disks_.at(due_[chosen].request.fd);
      if (disk.is_paused_) break;
      const FakeDisk::Job job = std::move(due_[chosen]);
      due_.erase(due_.begin() + static_cast<ptrdiff_t>(chosen));
      completions[count++] = {job.request.tag, disk.end(job), 0};
      if (job.request.kind != IoKind::kRead) disk.on_write_step();
    }
    return count;
  }

  bool wait(Deadline deadline) override {
    if (!due_.empty() || !damaged_.empty()) return true;
    while (!hanging_.empty() && !deadline.expired()) {
      const timespec pause{0, 1'000'000};
      nanosleep(&pause, nullptr);
    }
    return false;
  }

  int event_fd() const override { return -1; }
  size_t in_flight() const override { return due_.size() + hanging_.size() + damaged_.size(); }
  std::string_view engine_name() const override { return "fake"; }

 private:
  const Disks disks_;
  const bool is_lazy_;
  Random random_;
  const uint32_t depth_;
  std::deque<FakeDisk::Job> due_;
  std::deque<FakeDisk::Job> hanging_;
  std::deque<IoCompletion> damaged_;
};

}  // namespace hicache::testing
