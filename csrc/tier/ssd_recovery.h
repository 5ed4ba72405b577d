// Reads what the log's files hold after a start, newest region first, on a thread of its own.
//
// First the lead and the footer of every region: that tells which are free and in which order the
// others were written. Then, of the sealed ones, the entries that stand before the footer; the
// pages are not touched, readers verify them. A region without a footer (the node was killed while
// filling it) or with damaged entries is walked from group to group, and each of its pages
// verified. One whose lead and footer are damaged is given up: what lies in it may be of a life
// that is over.
//
// Newest first, so that whoever takes the regions in this order knows of every removal before it
// sees what was removed.
//
// Threads: the owner calls; a bounded number of regions waits for it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "io/block_device.h"
#include "io/mapped_memory.h"
#include "tier/ssd_format.h"
#include "tier/ssd_volume.h"

namespace hicache {

struct RecoveredRegion {
  enum class Kind : uint8_t { kFree, kSealed, kUnsealed, kDamaged, kUnreadable };

  uint32_t volume = 0;
  uint32_t region = 0;
  Kind kind = Kind::kFree;
  uint64_t sequence = 0;
  uint32_t sector_count = 0;  // Of its groups.
  std::vector<SsdEntry> entries;
  uint64_t damaged_pages = 0;  // At least so many: a group without its header tells no number.
};

class SsdRecovery {
 public:
  struct Options {
    std::vector<SsdVolume::File> files;
    std::function<std::unique_ptr<BlockDevice>()> make_device;
    std::function<uint64_t(std::span<const uint8_t>)> page_checksum;
    uint64_t io_timeout_ms;
    std::function<void()> wake;  // There is something to take. Called on the thread.
  };

  explicit SsdRecovery(Options options);
  /// Ends the thread; waits for at most one read, or for its time limit.
  ~SsdRecovery();

  /// No region of the files has a larger sequence; known once every head was read.
  std::optional<uint64_t> max_sequence() const;
  /// The next region, if one is ready.
  std::optional<RecoveredRegion> take();
  /// Everything was taken.
  bool is_finished() const;

 private:
  struct Head {
    uint32_t volume;
    uint32_t region;
    uint64_t sequence = 0;
    bool is_readable = true;
    bool is_damaged = false;  // Neither free nor of a life that is known.
    bool has_footer = false;
    RegionFooter footer;
  };

  /// Sectors of a region, read at once.
  struct Window {
    MappedMemory memory;
    uint32_t first = 0;
    uint32_t count = 0;
    bool has(uint32_t sector) const { return sector >= first && sector < first + count; }
  };

  void run();
  std::vector<Head> read_heads(uint32_t volume);
  void read_heads_of(uint32_t volume, std::span<Head> heads);
  /// Sector by sector what could not be read at once; those that cannot be read become zeros.
  void read_singly(int fd, uint64_t offset, std::span<uint8_t> into);
  void judge(const SsdVolume::File& file, std::span<const uint8_t> lead, Sector last,
             Head& head) const;
  RecoveredRegion read_region(const Head& head);
  bool read_entries(const Head& head, RecoveredRegion& region);
  void walk_groups(const Head& head, RecoveredRegion& region);
  void fill(Window& window, const Head& head, uint32_t first);
  void take_group(const SsdVolume::File& file, uint64_t region_offset, const GroupHeader& group,
                  RecoveredRegion& region);
  bool verify_page(const SsdVolume::File& file, uint64_t region_offset, const SsdEntry& entry);
  /// Reads a range that must fit the buffer; false for an error or too long a wait.
  bool read(int fd, uint64_t offset, std::span<uint8_t> into);
  bool deliver(RecoveredRegion region);
  /// Until the device has something, for the time limit; a process that stands still meanwhile
  /// loses a part of it.
  bool wait();

  const Options options_;
  std::unique_ptr<BlockDevice> device_;  // Of the thread.
  MappedMemory buffer_;                  // Of the thread: grows to the largest page.
  uint32_t single_reads_left_ = 0;       // Of the region.
  bool is_stuck_ = false;                // A read did not come back.
  std::vector<bool> stuck_volumes_;      // Of these nothing more is tried.

  mutable std::mutex mutex_;
  std::condition_variable taken_;
  std::deque<RecoveredRegion> ready_;
  std::optional<uint64_t> max_sequence_;
  bool is_done_ = false;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace hicache
