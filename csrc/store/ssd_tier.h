// The tier below the pool: which pages go down to the SSDs, which come up, and who may read there.
//
// Write-out. While the pool has little room to give, the pages that would be evicted next are
// written ahead of need. Once they are on their disk they are spare: they are read from the pool
// until a put takes their room, which it finds at once. With write-through every page is written
// when it is stored.
//
// Admission. A page that is on an SSD already is spare without more ado, and so is one that has a
// time to live. Others must pass the write budget: ample, everything is written; scarce, what was
// read again, and the rest is spare; spent, nothing, and the pool evicts as if there were no SSD.
//
// Staging. A look-up with intent starts reading what it found on the SSDs into the pool, in the
// order of the chain. A client that asks for a page before its turn has come reads it itself, with
// the disks to itself for a while; the page comes up after that.
//
// Leases. Of places in files, on whole regions: one that a reader's lease points into is not
// reused, one that look-ups promised only when no other is left.
//
// Back-pressure. A put that asks for it is told to come again instead of pushing out a page that is
// on its way to a disk, or could be: as long as disks get pages written, and none has waited in
// vain lately. So a disk that fails, hangs or is too slow costs one put its patience, not each.
//
// Flush. Before the node stops, everything worth it is written, what was read first.
//
// Threads: the node's alone. Nothing blocks. Time is an argument.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "io/fd.h"
#include "store/lower_tier.h"
#include "store/page_store.h"
#include "store/ssd_watch.h"
#include "tier/ssd_directory.h"
#include "tier/ssd_log.h"
#include "tier/write_budget.h"

namespace hicache {

/// References to places in files: the page is the region with this bit, the generation the first
/// sector in it. While a lease lasts they name one page.
inline constexpr PageIndex kSsdRefBit = PageIndex{1} << 31;

class SsdTier : public LowerTier {
 public:
  struct Directory {
    std::string path;
    uint64_t size_limit_bytes;
    uint64_t free_min_bytes;  // Left to others on its file system.
  };
  struct Options {
    std::vector<Directory> directories;
    uint64_t region_size_bytes;
    bool write_through;
    uint64_t write_budget_bytes;  // Per day; 0: no limit.
    IoEngine engine;
    bool staging;
    uint64_t read_lease_ttl_ms;
    uint64_t lookup_lease_ttl_ms;
    double staging_share;  // Of the pool that pages on their way up may take.
  };
  /// What it works on; all outlive it.
  struct Surroundings {
    uint8_t* pool;
    bool copies_writes;  // To huge pages, and writes from there: the pool lies on small ones.
    std::function<void()> wake;  // Of the node's thread, from any thread.
    std::function<void(std::string)> on_notice;
  };

  /// Opens the directories and begins to recover what they hold. Blocks for a few small reads.
  static Result<std::unique_ptr<SsdTier>> open(Options options, Surroundings surroundings,
                                               uint64_t now_ms);

  ~SsdTier() override;

  /// The store it serves. Before any other call.
  void attach(PageStore& store) { store_ = &store; }
  /// Descriptors for clients, read-only, in the order of PageLocation::device.
  Result<std::vector<Fd>> open_for_readers() const;
  std::vector<int> event_fds() const;

  /// Told of pages that come to an SSD and go. It outlives the tier's use.
  void set_listener(PageListener& listener) { log_->index().set_listener(listener); }

  // LowerTier
  bool contains(const PageName& name) const override { return find(name) != kNoSsdPage; }
  bool put_again(const PageName& name) override;
  bool lookup(SessionIndex session, const PageName& name, bool leases, uint64_t now_ms) override;
  bool lease(SessionIndex session, const PageName& name, bool read_now, uint64_t now_ms,
             PageLocation& location) override;
  void leaving(const PageRecord& page) override;
  bool takes_soon(const PageRecord* page, uint64_t wanted_bytes, uint64_t now_ms) override;
  void crowded(TenantIndex tenant) override {
    crowded_.insert(tenant);
    is_due_ = true;
  }

  static bool is_ours(PageRef ref) { return ref.page != kNoPage && (ref.page & kSsdRefBit) != 0; }
  void release(SessionIndex session, PageRef ref);
  /// A reader found the page damaged.
  void report_corrupt(PageRef ref);
  /// Of a page in the pool: what lies below it is no better.
  void report_corrupt(const PageRecord& record);
  void close_session(SessionIndex session);

  /// A put that was told to come again has found room, or has given up (and pushed pages out): then
  /// nobody is told so for a while.
  void note_wait_over(bool found_room, uint64_t now_ms);

  /// A page became visible in the pool. `replaced`: an older one of that name must be forgotten.
  /// Returns a ticket as remove() does.
  uint64_t note_stored(PageRef ref, bool replaced, uint64_t now_ms);
  /// Forgets a page; 0: nothing was there. Else wait for is_done(ticket) before saying so.
  uint64_t remove(SpaceIndex space, const Key& key);
  uint64_t clear(SpaceIndex ended, const NamespaceDigest& digest);
  bool is_done(uint64_t ticket) const { return log_->is_done(ticket); }
  /// Of one that is done: no directory could keep it, a restart may undo it.
  bool is_lost(uint64_t ticket) const { return log_->is_lost(ticket); }
  /// Begins to bring a page up; false: it is not here.
  bool fetch(SpaceIndex space, const Key& key);

  /// Begins to write everything worth keeping; flush_left_bytes() tells how far it is.
  void begin_flush();
  /// UINT64_MAX: no flush was begun. When it is over: what could not be written.
  uint64_t flush_left_bytes() const;
  bool is_flush_over() const;

  /// No disk reads into the pool or writes out of it any more.
  bool is_idle() const;

  /// Does what is due. Returns when it wants to be called at the latest; besides when is_due(), and
  /// when one of event_fds() is readable.
  uint64_t advance(uint64_t now_ms);

  /// A call since the last advance() left it something to do.
  bool is_due() const { return is_due_; }

  void add_stats(NodeStats& stats, uint64_t now_ms);
  /// Of what this node reads and writes itself; clients count their own reads.
  DurationHistogram read_seconds() const;
  DurationHistogram write_seconds() const;
  const SsdLog& log() const { return *log_; }

 private:
  struct WriteOut {
    PageRef ref;
    uint64_t hash;
    uint8_t reads;    // When it was begun: read since, it stays in the pool.
    bool is_leaving;  // Spare once written.
    uint64_t footprint_bytes;
    TenantIndex tenant;
  };
  /// What puts of all, or of one tenant, find at once, and what of that they shall.
  struct Ahead {
    uint64_t wanted_bytes;
    uint64_t ready_bytes;  // Or soon.
    uint64_t writing_bytes;
    uint64_t size_bytes;  // Of the pool, or of the quota.
  };
  struct Coming {  // A page on its way up.
    PageIndex page;
    SsdPlace place;
    uint64_t checksum;
    uint64_t size;
    uint64_t hash;
    MappedMemory memory;  // Valid: it is read into that, and copied to its place.
  };
  struct Wish {
    SpaceIndex space;
    Key key;
    uint64_t hash;
    uint64_t size;
    uint64_t due_ms;
  };

  SsdTier(Options options, Surroundings surroundings,
          std::vector<std::shared_ptr<const SsdDirectory>> directories, uint64_t now_ms);

  SsdLog::Options log_options();
  bool has_lease(LeaseKind kind, RegionIndex region) const;
  bool is_leased(RegionIndex region) const;
  LeaseIndex& leases_of(RegionIndex region);
  void expire_leases(uint64_t now_ms);
  SsdPageIndex find(const PageName& name) const {
    return log_->find(name.space, name.key, name.hash);
  }
  /// Whether what lies below is the same page.
  bool is_below(const PageRecord& record, uint64_t hash) const;
  /// The page leaves the pool: if it was read there, what lies below is worth keeping.
  void note_reuse(const PageRecord& record, uint64_t hash);
  void take_free_space(uint64_t now_ms);
  // Down (ssd_tier_down.cc)
  Ahead ahead_of(TenantIndex tenant) const;
  uint64_t writing_max_bytes() const;
  void write_out_ahead(uint64_t now_ms);
  /// Of a tenant, or of all (kNoGroup); false: there is more to do.
  bool write_ahead(TenantIndex tenant, uint64_t now_ms);
  void write_through(uint64_t now_ms);
  void write_flush(uint64_t now_ms);
  void watch_flush(uint64_t now_ms);
  void lose_flushing();
  void add_flushing(PageRef ref);
  PageRef take_flushing();
  void flush_again(PageRef ref);
  bool is_admitted(const PageRecord& record, uint64_t now_ms);
  /// Begins to write a page, unless it lies below already or cannot be written.
  bool begin_write(PageRef ref, bool is_leaving);
  void after_write(uint64_t tag, bool ok);
  // Up (ssd_tier_up.cc)
  void wish(const PageName& name, uint64_t size, uint64_t due_ms);
  Wish take_wish();
  /// A client reads a page from its file: it comes up, once its reader is done.
  void again(const PageName& name, uint64_t size, uint64_t now_ms);
  uint64_t staging_max_bytes() const;
  /// Returns when it wants to be called again.
  uint64_t stage(uint64_t now_ms);
  void begin_staging(const Wish& wish, uint64_t now_ms);
  void after_read(uint64_t tag, int error);

  const Options options_;
  const Surroundings surroundings_;
  const std::vector<std::shared_ptr<const SsdDirectory>> directories_;
  PageStore* store_ = nullptr;
  WriteBudget budget_;
  uint64_t now_ms_;
  uint64_t next_look_ms_ = 0;
  bool is_due_ = true;

  LeaseTable region_leases_;
  std::vector<LeaseIndex> leases_by_region_;
  std::vector<uint32_t> coming_by_region_;  // Pages on their way up.

  std::unordered_map<uint64_t, WriteOut> writing_;  // By tag.
  std::unordered_set<uint64_t> writing_hashes_;
  uint64_t next_tag_ = 0;
  uint64_t leaving_bytes_ = 0;
  uint64_t written_ms_ = 0;  // When a page was written last, or after a rest the first was begun.
  uint64_t awaited_bytes_ = 0;     // What puts that come again want,
  uint64_t awaited_until_ms_ = 0;  // if they come by then.
  uint64_t nobody_waits_until_ms_ = 0;
  std::unordered_map<TenantIndex, uint64_t> leaving_by_tenant_;  // Of these; none: not there.
  std::set<TenantIndex> crowded_;
  std::deque<PageRef> unwritten_;  // Of write-through.
  std::deque<PageRef> flushing_;
  std::deque<uint64_t> flushing_sizes_;
  uint64_t flushing_bytes_ = 0;    // Of `flushing_`.
  uint64_t flush_lost_bytes_ = 0;  // No directory could take them.
  size_t flush_retries_left_ = 0;  // Of pages whose directory failed.
  bool is_flushing_ = false;
  bool is_flush_given_up_ = false;
  uint64_t flush_seen_bytes_ = 0;  // Written, when it was last looked at.
  uint64_t flush_moved_ms_ = 0;    // When that last changed.

  std::deque<Wish> wishes_;
  uint64_t wishes_bytes_ = 0;
  uint64_t staging_from_ms_ = 0;         // Until then clients read the disks themselves.
  std::deque<Wish> agains_;              // By due_ms.
  std::unordered_set<uint64_t> wished_;  // Hashes; one that was taken out is not brought up.
  std::unordered_map<uint64_t, Coming> coming_;  // By tag.
  // The tag by hash, of those still wanted: a later page of that name may be on its way as well.
  std::unordered_map<uint64_t, uint64_t> coming_hashes_;
  uint64_t coming_bytes_ = 0;
  std::vector<SsdPlace> failed_places_;
  std::vector<PageRef> damaged_;  // Pages of the pool.

  uint64_t hit_pages_ = 0;
  uint64_t hit_bytes_ = 0;
  uint64_t staged_pages_ = 0;
  uint64_t staged_bytes_ = 0;
  uint64_t refused_pages_ = 0;
  uint64_t overrun_pages_ = 0;
  uint64_t put_waits_ = 0;
  uint64_t put_waits_in_vain_ = 0;
  uint64_t oversize_pages_ = 0;
  uint64_t spent_bytes_ = 0;  // Of what the log has written, taken from the budget.

  std::unique_ptr<SsdLog> log_;
  std::unique_ptr<SsdWatch> watch_;
};

}  // namespace hicache
