// What a node tells the directory about its pages, as numbered batches (directory_types.h).
//
// A change only marks its page: where it is now is looked up when a batch is made, so that a page
// that comes and goes is told once. A full announcement walks over the pool and the SSDs in steps;
// pages that change meanwhile are told between them, and nothing is told that is older than what
// was told before.
//
//   page_changed -> pending, by namespace --+
//   space_ended  -> ended ------------------+-> next() -> batches -> taken() by the directory
//   begin        -> walk, step by step -----+
//
// Batches that were not answered are kept, and sent again as they are. What is kept is bounded: a
// directory that cannot be reached, or falls behind too far, is told everything anew.
//
// A page's generation is made of its checksum: equal for equal bytes, in memory, on SSD and on any
// node.
//
// Pure. Threads: one owner.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "directory/directory_types.h"
#include "store/page_store.h"
#include "tier/page_listener.h"
#include "tier/ssd_index.h"

namespace hicache {

class Announcer : public PageListener {
 public:
  struct Options {
    size_t changes_max;  // Of a batch; at most kChangesMax.
    size_t batches_max;  // That the directory has not answered.
    size_t pending_max;  // Changes that wait. With more everything is announced anew.
    size_t walk_count;   // Records that one step of an announcement looks at.
  };
  struct Batch {
    uint64_t sequence;
    BatchKind kind;
    NamespaceDigest digest;
    std::vector<PageChange> changes;
    uint64_t since_ms;  // The first of its changes, about.
  };
  struct Counts {
    uint64_t batches = 0;  // Answered.
    uint64_t changes = 0;  // In them.
    uint64_t announcements = 0;
    uint64_t overflows = 0;  // Announcements because too many changes waited.
  };

  /// Both outlive it. `index` is null without SSDs.
  Announcer(const Options& options, const PageStore& store, const SsdIndex* index);

  // PageListener
  void page_changed(SpaceIndex space, const Key& key) override;
  void space_ended(SpaceIndex ended, const NamespaceDigest& digest) override;

  /// What the directory wants of a node that has joined, or joined again.
  void joined(bool must_announce, uint64_t next_sequence);
  /// What it answered to a batch.
  void taken(uint64_t sequence, bool must_announce, uint64_t next_sequence);
  /// Everything is announced again, unless that goes on already.
  void announce_again();
  /// Batches may be lost that were sent and not answered.
  void resend();
  /// While paused no changes are told, but that namespaces ended.
  void set_paused(bool is_paused) { is_paused_ = is_paused; }
  /// Makes a batch in any case, for what travels with it.
  void want_batch() { wants_batch_ = is_telling_; }

  /// The next batch to be sent, valid until the next call; null: none now.
  const Batch* next(uint64_t now_ms);
  /// It was sent.
  void sent(uint64_t sequence);

  /// There may be something to send.
  bool is_due() const;
  /// Everything is told and answered.
  bool is_settled() const;
  bool is_announcing() const { return walk_ != Walk::kNone; }
  size_t pending_count() const { return pending_count_; }
  /// Age of the oldest change that is not known to be told.
  uint64_t lag_ms(uint64_t now_ms) const;
  const Counts& counts() const { return counts_; }

 private:
  struct KeyHash {
    size_t operator()(const Key& key) const { return key.hash(); }
  };
  using Keys = std::unordered_set<Key, KeyHash>;
  enum class Walk : uint8_t { kNone, kPool, kSsd, kEnd };

  void begin(uint64_t next_sequence);
  void forget_taken(uint64_t next_sequence);
  bool make_batch(uint64_t now_ms);
  bool has_pending_batch() const;
  Batch& add_batch(BatchKind kind, const NamespaceDigest& digest, uint64_t now_ms);
  void add_pending(uint64_t now_ms);
  void walk(uint64_t now_ms);
  void walk_pool(size_t count);
  void walk_ssd(size_t count);
  void end_walk(uint64_t now_ms);
  PageChange change_of(SpaceIndex space, const Key& key) const;
  static PageChange change_of(const Key& key, uint64_t checksum, uint8_t tiers);

  const Options options_;
  const PageStore& store_;
  const SsdIndex* const index_;
  bool is_telling_ = false;  // An announcement was begun: what changes since then is told.
  bool is_paused_ = false;
  bool wants_batch_ = false;

  std::unordered_map<SpaceIndex, Keys> pending_;
  std::deque<SpaceIndex> pending_order_;  // Has each of `pending_` once, and some that ended.
  size_t pending_count_ = 0;
  uint64_t pending_since_ms_ = 0;  // 0: as of the next batch.
  std::unordered_set<NamespaceDigest, KeyHash> ended_;

  std::deque<Batch> batches_;
  size_t sent_count_ = 0;  // Of them, at the front.
  uint64_t last_sequence_ = 0;
  uint64_t begin_sequence_ = 0;  // Answers to earlier batches are of no interest.

  Walk walk_ = Walk::kNone;
  uint32_t walk_at_ = 0;
  bool is_walks_turn_ = false;
  size_t end_after_ = 0;  // So many pending changes are told before the end.
  std::unordered_map<SpaceIndex, std::vector<PageChange>> walked_;
  Counts counts_;
};

}  // namespace hicache
