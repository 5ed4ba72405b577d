// One file of the SSD log: its regions, and the writes that are on their way into it.
//
//   free -> opening -> open -> sealing -> sealed -> reclaiming -> erasing -> free
//
// At most one region is open. Groups of pages are appended to it; when the next one does not fit it
// is sealed, which happens once all its groups are written. Before a region is used again its lead
// and its footer are overwritten with zeros, so that nothing of its old content can come back.
//
// A write that fails ends writing to this file: what it holds can still be read. One for which the
// machine had no memory is tried again. While requests wait and none is answered for io_timeout_ms
// the file rests: nothing new is asked of it. One that takes six times as long, or reads that fail
// repeatedly, end it altogether. Time in which the owner did not look, since its process stood
// still, is not the disk's.
//
// Not here: what is worth writing, which region to reuse, what pages mean (ssd_log).
// Threads: one owner. Nothing blocks. Time is an argument.
#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/histogram.h"
#include "io/block_device.h"
#include "io/mapped_memory.h"
#include "tier/page_hash.h"
#include "tier/ssd_format.h"

namespace hicache {

class SsdVolume {
 public:
  struct File {
    std::string path;  // For messages.
    int fd;
    LogId log_id;
    uint64_t region_size_bytes;
    uint32_t region_count;      // In the file now.
    uint32_t region_count_max;  // By its size limit; `region_count` may be more.
  };

  enum class RegionState : uint8_t {
    kUnknown,  // Not recovered yet.
    kFree,
    kOpening,  // The file system sets space aside for it.
    kOpen,
    kSealing,
    kSealed,
    kReclaiming,  // The owner rewrites what it keeps.
    kErasing,
  };

  static constexpr int kAbandoned = ECANCELED;

  enum class Health : uint8_t { kGood, kReadOnly, kFailed };

  /// One page on its way.
  struct PageWrite {
    SsdEntry entry;  // `first_sector` is decided here.
    SpaceIndex space = 0;
    uint64_t parent_hash = 0;
    std::vector<iovec> parts;  // Whole sectors, aligned; together sectors_of(entry.size).
    MappedMemory memory;       // What they point to, unless it lies in the pool.
    uint64_t tag = 0;
    bool is_rewrite = false;
    bool is_damaged = false;  // Its bytes are not those of its checksum; it was not written.
  };

  /// What the volume tells its owner, from inside poll() and fail(). It must not call back.
  class Listener {
   public:
    virtual ~Listener() = default;
    /// Whole on the disk (`ok`) or lost. Told once for each page given to append().
    virtual void on_written(SsdVolume& volume, uint32_t region, PageWrite& page, bool ok) = 0;
    /// These entries (removed, cleared) will be found by any recovery; not `ok`: never.
    virtual void on_removals_done(SsdVolume& volume, std::span<const SsdEntry> entries,
                                  bool ok) = 0;
    virtual void on_region_free(SsdVolume& volume, uint32_t region) = 0;
    /// kAbandoned: the kernel may still write into the memory, which must not be used again.
    virtual void on_read(SsdVolume& volume, uint64_t tag, int error) = 0;
    /// Health got worse; `reason` is for the log.
    virtual void on_health(SsdVolume& volume, const std::string& reason) = 0;
    /// is_silent() changed.
    virtual void on_silence(SsdVolume& volume, const std::string& notice) = 0;
  };

  struct Options {
    uint64_t io_timeout_ms;
    uint32_t write_depth;  // Groups in flight.
  };

  SsdVolume(File file, Options options, std::unique_ptr<BlockDevice> device, Listener& listener);
  /// Tells nobody anything. Memory that belongs to requests in flight stays unused for good.
  ~SsdVolume();

  const File& file() const { return file_; }
  Health health() const { return health_; }
  bool is_opening() const { return opening_ != UINT32_MAX; }
  bool can_write() const { return health_ == Health::kGood; }
  /// It does not answer at the moment.
  bool is_silent() const { return is_silent_; }
  uint32_t region_count() const { return static_cast<uint32_t>(regions_.size()); }
  RegionState state(uint32_t region) const { return regions_[region].state; }
  uint64_t sequence(uint32_t region) const { return regions_[region].sequence; }
  uint64_t offset_of(uint32_t region, uint32_t first_sector) const {
    return kSuperblockSize + region * file_.region_size_bytes + first_sector * kSectorSize;
  }
  /// `removed` and `cleared` entries that lie in the region.
  std::span<const SsdEntry> removals(uint32_t region) const { return regions_[region].removals; }
  int event_fd() const { return device_ ? device_->event_fd() : -1; }
  /// Bytes given to append() and not written yet.
  uint64_t writing_bytes() const { return writing_bytes_; }
  uint64_t device_written_bytes() const { return device_written_bytes_; }
  /// Regions that are free or that the file may still grow by.
  uint32_t free_region_count() const;
  uint32_t used_region_count() const;
  /// Beyond the size limit, which was higher once: they are read, and given back when they are
  /// free.
  bool is_excess(uint32_t region) const { return region >= file_.region_count_max; }
  bool has_excess() const;

  // --- recovery tells what the file holds

  /// It is free, or a sealed region with these removals.
  void recovered_free(uint32_t region, uint64_t now_ms);
  void recovered_sealed(uint32_t region, uint64_t sequence, std::vector<SsdEntry> removals);
  /// Its groups were found, its footer was not: writes one. Requires: `entries` as decoded.
  void seal_recovered(uint32_t region, uint64_t sequence, uint32_t sector_count,
                      std::vector<SsdEntry> entries, uint64_t now_ms);

  // --- writing

  /// Bytes of a page that fit a region at all.
  uint64_t page_size_max() const;
  /// Whether the open region has room for a group of that many entries and page sectors.
  bool open_fits(size_t entry_count, uint64_t sector_count) const {
    return open_ != UINT32_MAX && fits(regions_[open_], entry_count, sector_count);
  }
  /// Whether append() can take a group of that many entries and page sectors now. If the open
  /// region is too full it is sealed; if there is none, one is opened, with `next_sequence` as its
  /// own (then it was used and true is in *used_sequence). Not while its first group is
  /// on its way.
  bool make_ready(size_t entry_count, uint64_t sector_count, uint64_t next_sequence,
                  bool* used_sequence, uint64_t now_ms);
  /// Writes one group. Requires make_ready(). With removals it is a durable write, and so is the
  /// first of a region.
  void append(std::vector<PageWrite> pages, std::vector<SsdEntry> removals, uint64_t unix_time_s,
              uint64_t now_ms);
  /// Seals the open region, if any, once its groups are written.
  void seal(uint64_t now_ms);
  /// The same if it was opened before that sequence was given out.
  void seal_older(uint64_t sequence, uint64_t now_ms);
  /// Everything appended is written, and nothing is open.
  bool is_quiet() const;

  // --- reuse

  void begin_reclaim(uint32_t region) { regions_[region].state = RegionState::kReclaiming; }
  /// Requires: no page of the region is wanted and nobody reads it. Ends in on_region_free().
  void erase(uint32_t region, uint64_t now_ms);
  /// Stops growing, and gives the space of free regions back to the file system.
  void shrink(uint64_t now_ms);
  void allow_growth() { may_grow_ = true; }

  // --- reading

  /// `parts` are whole sectors. Ends in on_read(). Requires: health is not kFailed.
  void read(uint32_t region, uint32_t first_sector, std::vector<iovec> parts, uint64_t tag,
            uint64_t now_ms);
  size_t reads_in_flight() const { return reads_in_flight_; }
  /// Nothing is on its way to the disk or from it.
  bool is_idle() const { return requests_.empty(); }

  /// Handles completions and deadlines. Returns when it wants to be called at the latest.
  uint64_t poll(uint64_t now_ms);
  /// Gives the file up: everything on its way is lost.
  void fail(const std::string& reason);

  const DurationHistogram& read_seconds() const { return read_seconds_; }
  const DurationHistogram& write_seconds() const { return write_seconds_; }

 private:
  struct Group {
    uint32_t region;
    uint32_t first_sector;  // Of its write, in the region.
    GroupHeader head;
    std::vector<PageWrite> pages;
    std::vector<SsdEntry> removals;
    MappedMemory header;             // Of the first of a region with the lead in front.
    MappedMemory echo;               // The removals once more, if there are some.
    std::vector<MappedMemory> gaps;  // Zeros, in place of pages that were damaged.
    uint64_t size_bytes;
    bool is_done = false;
  };
  /// Whether the file system has set a region's space aside. It does not say so cheaply, and a
  /// region that is free after a start may be a hole.
  enum class Space : uint8_t { kNone, kUnsure, kAllocated };
  struct Region {
    RegionState state = RegionState::kUnknown;
    Space space = Space::kNone;
    uint64_t sequence = 0;
    uint32_t used_sectors = 0;
    uint32_t group_count = 0;
    uint32_t erasing_count = 0;
    std::deque<std::shared_ptr<Group>> groups;  // On their way, in order.
    std::vector<SsdEntry> entries;              // While open or sealing.
    std::vector<SsdEntry> removals;
  };
  enum class Purpose : uint8_t { kGroup, kFooter, kErase, kAllocate, kDiscard, kRead };
  struct Request {
    Purpose purpose;
    uint32_t region;
    uint64_t begun_ms;
    uint64_t read_tag = 0;
    uint64_t size_bytes = 0;
    std::shared_ptr<Group> group{};
    std::shared_ptr<MappedMemory> memory{};
    IoRequest io{};  // But of reads: to be submitted again if there was no memory for it.
    uint32_t retry_count = 0;
  };
  struct Retry {
    uint64_t due_ms;
    uint64_t tag;
  };

  bool fits(const Region& region, size_t entry_count, uint64_t sector_count) const;
  bool open_region(uint64_t sequence, uint64_t now_ms);
  void add_free(uint32_t region, uint64_t now_ms);
  void discard(uint32_t region, uint64_t now_ms);
  void submit(Request request, IoRequest io);
  void submit_waiting();
  bool put_off(Request& request, uint64_t tag);
  void try_again(uint64_t now_ms);
  void complete(const IoCompletion& completion);
  void complete_group(Request& request);
  void fail_write(Request request, const IoCompletion& completion);
  /// Writes a group without the pages that were found damaged while they were copied for it.
  void write_sound_pages(Request request, uint32_t damaged);
  IoRequest request_of(Group& group) const;
  void encode_header(Group& group) const;
  void write_footer(uint32_t region, uint64_t now_ms);
  void seal_if_written(uint32_t region, uint64_t now_ms);
  void stop_writing(const std::string& reason);
  void forgive_pause(uint64_t now_ms);
  void judge_silence(uint64_t now_ms);
  /// Too many in a row end the file.
  void note_bad_read(const std::string& what);
  static void abandon_memory(Request& request);
  void fail_request(Request& request);

  const File file_;
  const Options options_;
  Listener& listener_;
  std::unique_ptr<BlockDevice> device_;  // Null once failed.
  Health health_ = Health::kGood;
  bool may_grow_ = true;
  std::vector<Region> regions_;
  std::deque<uint32_t> free_;  // Oldest first, so that wear and reuse are even.
  uint32_t open_ = UINT32_MAX;
  uint32_t opening_ = UINT32_MAX;
  std::unordered_map<uint64_t, Request> requests_;
  std::deque<IoRequest> waiting_;  // The device had no room.
  std::deque<Retry> retries_;      // By due_ms.
  uint64_t next_tag_ = 1;
  uint64_t now_ms_ = 0;       // Of the last poll().
  uint64_t answered_ms_ = 0;  // When the last request was completed.
  bool is_silent_ = false;
  uint32_t groups_in_flight_ = 0;
  size_t reads_in_flight_ = 0;
  uint32_t bad_reads_ = 0;  // In a row.
  uint64_t writing_bytes_ = 0;
  uint64_t device_written_bytes_ = 0;
  DurationHistogram read_seconds_;
  DurationHistogram write_seconds_;
};

}  // namespace hicache
