// The SSD log: pages written to one or several files, found again after a restart, dropped when the
// room is needed.
//
//   write()   queue -> groups, dealt to the volumes -> on their disk -> in the index
//   find()    the index alone; the reader reads the file itself
//   remove()  out of the index at once; an entry in the log keeps it out after a restart
//   reclaim   a volume that runs out of free regions gives one up: what was reused is written anew,
//             the rest is forgotten
//   recovery  regions come in from SsdRecovery, newest first, while everything else goes on
//
// Not here: which pages deserve to be written, leases, DRAM (store/ssd_tier). The owner must not
// let a region be reused that somebody reads: see Options::is_leased.
//
// Threads: one owner; recovery has one of its own inside. Nothing blocks. Time is an argument.
#pragma once

#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "io/block_device.h"
#include "tier/ssd_index.h"
#include "tier/ssd_recovery.h"
#include "tier/ssd_volume.h"

namespace hicache {

class SsdLog : private SsdVolume::Listener {
 public:
  struct Options {
    std::vector<SsdVolume::File> files;
    std::function<std::unique_ptr<BlockDevice>()> make_device;
    /// Of a whole page, as its writer computed it.
    std::function<uint64_t(std::span<const uint8_t>)> page_checksum;
    /// The present life of a namespace that a file names; kAnySpace: its pages cannot be kept.
    std::function<SpaceIndex(const NamespaceDigest&)> space_of;
    /// Somebody may be reading this region.
    std::function<bool(RegionIndex)> is_leased;
    /// Look-ups have promised pages of this region: it is spared while another one will do.
    std::function<bool(RegionIndex)> is_promised;
    /// A page that is not in the index is in DRAM.
    std::function<bool(uint64_t page_hash)> is_in_dram;
    /// What became of a page given to write(). `ok`: it is in the index.
    std::function<void(uint64_t tag, bool ok)> on_written;
    /// Before on_written(): the page's bytes are not those of its checksum. May be empty.
    std::function<void(uint64_t tag)> on_damaged;
    /// What became of a read(); SsdVolume::kAbandoned: its memory must not be used again.
    std::function<void(uint64_t tag, int error)> on_read;
    std::function<void(std::string notice)> on_notice;
    std::function<void()> wake;  // Called by recovery's thread: call advance().
    uint64_t io_timeout_ms;
    uint32_t write_depth;  // Groups in flight per volume.
  };

  struct Page {
    SpaceIndex space;
    NamespaceDigest name_space;
    Key key;
    uint64_t size;
    uint64_t checksum;
    uint64_t parent_hash;
    std::vector<iovec> parts;  // Whole sectors; they stay as they are until on_written.
    MappedMemory memory;       // What `parts` point to, if it is to live as long as they.
    uint64_t tag;
  };

  struct Counts {
    uint64_t written_pages = 0;
    uint64_t written_bytes = 0;
    uint64_t rewritten_pages = 0;
    uint64_t rewritten_bytes = 0;
    uint64_t dropped_pages = 0;
    uint64_t corrupt_pages = 0;
    uint64_t recovered_pages = 0;
    uint64_t read_errors = 0;
    uint64_t write_errors = 0;
    uint64_t recovery_ms = 0;
    uint64_t eviction_age_s = 0;  // Of the pages dropped last.
  };

  SsdLog(Options options, uint64_t now_ms);
  ~SsdLog() override;

  /// What a file holds may be in the index later. Writing begins once all heads were read.
  bool is_recovering() const { return recovery_ != nullptr; }

  size_t volume_count() const { return volumes_.size(); }
  const SsdVolume& volume(size_t index) const { return *volumes_[index].volume; }
  SsdIndex& index() { return index_; }
  const SsdIndex& index() const { return index_; }
  const Counts& counts() const { return counts_; }

  /// The page, unless its volume failed or does not answer at the moment.
  SsdPageIndex find(SpaceIndex space, const Key& key, uint64_t hash) const;
  size_t volume_of(RegionIndex region) const { return regions_[region].volume; }
  /// Where a page lies in its volume's file.
  uint64_t file_offset(const SsdPage& page) const;
  uint64_t page_size_max() const { return page_size_max_; }
  bool can_write() const;

  /// Queues a page. Requires can_write(), size <= page_size_max(), and that it is not in the index.
  void write(Page page);
  /// Bytes queued or on their way to a disk.
  uint64_t writing_bytes() const { return writing_bytes_; }
  /// Seals the regions that are open, once the queue is empty: a restart then reads footers only.
  void seal_all() { sealing_all_ = true; }
  bool is_quiet() const;
  /// Takes back every page that waits for a region: on_written(), not `ok`.
  void refuse_queue();

  /// Forgets a page, and keeps it forgotten. Returns a ticket for is_done(); 0: nothing was there.
  uint64_t remove(SpaceIndex space, const NamespaceDigest& name_space, const Key& key);
  /// The same for a namespace whose life `ended` is over.
  uint64_t clear(SpaceIndex ended, const NamespaceDigest& name_space);
  /// No restart can bring back what the ticket stands for, unless it is lost.
  bool is_done(uint64_t ticket) const {
    // One that was handed out before sequences were known.
    if (ticket <= sequence_base_) ticket += sequence_base_;
    return removing_.empty() || *removing_.begin() > ticket;
  }
  /// Of one that is done, and not 0: no directory could be written, so that a restart may bring it
  /// back.
  bool is_lost(uint64_t ticket) const {
    if (ticket <= sequence_base_) ticket += sequence_base_;
    return ticket <= last_lost_ || keeper_of(0) == volumes_.size();
  }

  /// A reader found a page damaged: forgotten, until a restart finds it again.
  void drop_damaged(SsdPlace place);
  /// The same for a reader that was sent there a while ago: nothing, if the region has been used
  /// anew since. `token`: token_of() the page when it was sent.
  void drop_damaged(RegionIndex region, uint32_t token);
  uint32_t token_of(const SsdPage& page) const;
  /// Reads a page; `parts` are whole sectors. Ends in on_read().
  void read(const SsdPage& page, std::vector<iovec> parts, uint64_t tag, uint64_t now_ms);

  /// What the file system of a volume has left, against what must be left to others: the volume
  /// grows, or shrinks.
  void note_free_space(size_t volume, uint64_t free_bytes, uint64_t free_min_bytes,
                       uint64_t now_ms);
  /// The file was removed from its directory.
  void note_gone(size_t volume);

  /// Does what is due: completions, groups, reclaim, recovery. Returns when it wants to be called
  /// at the latest; it must also be called when an event_fd() of a volume is readable.
  uint64_t advance(uint64_t now_ms, uint64_t unix_time_s);

 private:
  struct RegionName {
    uint32_t volume;
    uint32_t number;
  };
  using Queue = std::list<SsdVolume::PageWrite>;
  struct Reclaim {
    RegionIndex region = kNoRegion;
    std::deque<SsdPage> unread;
    uint32_t outstanding = 0;  // Reads and rewrites on their way.
    bool is_forced = false;    // Nothing can be written to the volume before it is done.
    size_t keeper = 0;         // The volume that takes over its removals.
  };
  struct Rewrite {
    size_t volume;
    SsdPage page;
    NamespaceDigest name_space;
    MappedMemory memory;
  };
  struct InFlight {
    size_t volume;
    uint64_t sequence;
    bool is_removed = false;  // Since it was given to the volume.
  };
  struct VolumeState {
    std::unique_ptr<SsdVolume> volume;
    std::vector<RegionIndex> regions;  // By number.
    Queue rewrites;
    std::deque<SsdEntry> removals;
    size_t carried_count = 0;  // Of them, at the front: from the region that is reclaimed.
    Reclaim reclaim;
    // Pages that are on the disk still and not in the index, by hash.
    std::unordered_multimap<uint64_t, RegionIndex> forgotten;
    uint32_t unrecovered_count = 0;
    uint32_t unreadable_count = 0;  // Regions of which this life knows nothing.
    bool has_unkept = false;        // Pages that were left on the disk: kAnySpace.
    bool is_low = false;            // The file system has too little left.
    uint32_t dropped_count = 0;     // Regions forgotten since it failed.
    uint64_t readers_until_ms = 0;  // Of a region that must go; 0: none is waited for.
  };

  /// A region on its way into the index, some entries at a time: first the removals among them.
  struct Taking {
    RecoveredRegion region;
    size_t removals_end = 0;  // Entries before it were looked at.
    size_t pages_end = 0;
  };

  // SsdVolume::Listener
  void on_written(SsdVolume& volume, uint32_t region, SsdVolume::PageWrite& page, bool ok) override;
  void on_removals_done(SsdVolume& volume, std::span<const SsdEntry> entries, bool ok) override;
  void on_region_free(SsdVolume& volume, uint32_t region) override;
  void on_read(SsdVolume& volume, uint64_t tag, int error) override;
  void on_health(SsdVolume& volume, const std::string& reason) override;
  void on_silence(SsdVolume& volume, const std::string& notice) override;

  size_t index_of(const SsdVolume& volume) const;
  RegionIndex region_index(size_t volume, uint32_t number);
  SsdEntry removal(SsdEntryKind kind, const NamespaceDigest& name_space, const Key& key);
  /// The volume itself, or another one if it cannot be written: an entry counts wherever it lies.
  /// volume_count(): none can.
  size_t keeper_of(size_t volume) const;
  void queue_removal(size_t volume, const SsdEntry& entry);
  /// For entries that did not get to their disk.
  void queue_again(size_t volume, std::span<const SsdEntry> entries);
  void note_forgotten(uint64_t hash, RegionIndex region);
  /// Takes a page out of the index that stays on the disk.
  void forget(SsdPageIndex page);
  /// Forgets pages that nobody can reach any more, a few at a time; true: there are more.
  bool drop_lost_pages();
  // Writing (ssd_log_write.cc)
  static SsdVolume::PageWrite page_write(Page page, uint64_t sequence);
  bool write_groups(VolumeState& state, uint64_t now_ms);
  bool write_group(VolumeState& state, Queue& from, bool is_rewrite, uint64_t now_ms);
  static uint32_t spare_regions(const VolumeState& state);
  static bool has_few_regions(const SsdVolume& volume);
  SsdVolume::PageWrite take_queued(Queue::iterator page);
  /// Takes queued pages back: of one key, or of the whole space.
  void cancel_queued(SpaceIndex space, const Key* key);
  // Reclaim (ssd_log_reclaim.cc)
  void reclaim(size_t volume, uint64_t now_ms);
  void begin_reclaim(size_t volume, uint64_t now_ms);
  void read_rewrites(VolumeState& state, size_t volume, uint64_t now_ms);
  void finish_rewrite(Rewrite rewrite, int error);
  void finish_reclaim(size_t volume, uint64_t now_ms);
  RegionIndex choose_victim(size_t volume, uint64_t now_ms);
  RegionIndex choose_forced(size_t volume, std::vector<RegionIndex> sealed, uint64_t now_ms);
  /// Another volume that can take an entry, or this one.
  size_t roomy_but(size_t volume) const;
  /// The page, if it is still in the index and where it was.
  SsdPageIndex find_same(const SsdPage& page) const;
  void drop_rewrites(VolumeState& state);
  uint64_t oldest_sequence_but(RegionIndex region) const;
  // Recovery (ssd_log_recovery.cc)
  void recover(uint64_t now_ms);
  void set_sequence_base(uint64_t base);
  void begin_taking(RecoveredRegion region, uint64_t now_ms);
  /// Returns how many entries it looked at; with less than `count_max` the region is done.
  size_t take_entries(size_t count_max, uint64_t now_ms);
  void finish_taking(uint64_t now_ms);
  void take_removals(std::span<const SsdEntry> entries);
  void take_pages(std::span<const SsdEntry> entries, uint64_t now_ms);
  void settle_copies(const SsdEntry& entry, const SsdPage& page, size_t volume);
  void remove_older(const NamespaceDigest& name_space, const Key& key, uint64_t sequence,
                    size_t volume);
  bool is_removed(const SsdEntry& entry) const;
  static uint64_t removal_hash(const SsdEntry& entry);

  const Options options_;
  SsdIndex index_;
  std::vector<VolumeState> volumes_;
  std::vector<RegionName> regions_;  // By RegionIndex.
  uint64_t page_size_max_ = 0;
  uint64_t next_sequence_ = 1;
  uint64_t sequence_base_ = 0;  // Beyond everything that the files hold; 0: not known yet.
  uint64_t now_ms_ = 0;
  uint64_t unix_time_s_ = 0;
  size_t next_volume_ = 0;  // Groups are dealt in turn.
  Queue queue_;
  std::unordered_multimap<uint64_t, Queue::iterator> queued_;  // By page_hash.
  std::unordered_map<uint64_t, InFlight> in_flight_;  // New pages given to a volume, by page_hash.
  uint64_t writing_bytes_ = 0;
  bool sealing_all_ = false;
  std::multiset<uint64_t> removing_;  // Sequences of removals that are not on their disks yet.
  uint64_t last_lost_ = 0;            // The largest of those that never will be.
  bool has_lost_clear_ = false;       // Any page may be back.
  // Regions of before are closed: what takes over removals of a volume that failed must be newer
  // than all its regions, since recovery takes regions from the newest to the oldest.
  uint64_t renew_before_ = 0;
  std::unordered_map<SpaceIndex, NamespaceDigest> name_spaces_;  // Of pages in the index.
  std::unordered_set<SpaceIndex> ended_spaces_;
  std::vector<SpaceIndex> dropping_spaces_;
  // Reads for rewriting, by tag. Tags of the owner's reads have the top bit clear.
  std::unordered_map<uint64_t, Rewrite> rewriting_;
  uint64_t next_rewrite_tag_ = 0;

  std::unique_ptr<SsdRecovery> recovery_;
  std::optional<Taking> taking_;
  uint64_t recovery_begun_ms_ = 0;
  bool may_write_ = false;  // All heads were read, so that sequences are known.
  // Of removals seen so far in this recovery: the largest sequence by page, and by namespace.
  std::unordered_map<uint64_t, uint64_t> removed_;
  std::unordered_map<uint64_t, uint64_t> cleared_;
  Counts counts_;
};

}  // namespace hicache
