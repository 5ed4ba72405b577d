// Sees to it that pages of this node have the copies elsewhere that they should: as many as was
// asked for when they were put, and one of everything when the node is about to leave.
//
//   put with replicas, walks ---+
//   draining: pages_to_keep() --+--> window --> where is it? --> in enough places: done
//                                      ^            |
//                                      |            v
//                                      +---- a node is asked to copy it (placement.h)
//
// A round asks the directory for the members and for the pages of the window, and other nodes for
// the copies that are lacking; the next round looks whether they have come. A copy counts once the
// directory names a live node that has it, and not before. A page that nobody has taken after a few
// attempts is given up, and so is one that the directory has no room for, since nobody would find
// it or its copy: while draining it goes with this node; otherwise a walk over the pool comes to
// it again, as to a page whose copy was lost.
//
// Only where a page was put are its copies looked after. Meanwhile the node serves as ever.
//
// Threads: the node's alone. The directory's answers come by way of `post`.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "directory/directory_line.h"
#include "store/page_store.h"
#include "store/placement.h"
#include "store/remote_tier.h"
#include "store/stats.h"

namespace hicache {

class Replicator {
 public:
  using Task = std::function<void()>;

  struct Options {
    std::string own_name;
    uint64_t own_incarnation;
    std::string failure_domain;
    uint64_t call_timeout_ms;
    uint64_t walk_interval_ms;  // From one walk over the pool to the next.
  };
  /// What it works on; all outlive it, and what calls back is stopped before it ends.
  struct Surroundings {
    PageStore& store;
    DirectoryLine& directory;
    RemoteTier& remote;
    std::function<void(Task)> post;  // To the node's thread, from any.
    /// The directory has taken all that there was to tell it of this node's pages.
    std::function<bool()> has_told_all;
  };

  Replicator(Options options, Surroundings surroundings);

  /// A page was put that wants copies.
  void want(PageRef ref);
  /// Nodes may have come or gone since another version of the list of members.
  void note_members(uint64_t epoch, uint32_t version);
  /// Begins to give everything away, or ends it; does nothing if it does so already.
  void set_draining(bool is_draining);

  /// Does what is due. Returns when it wants to be called at the latest.
  uint64_t advance(uint64_t now_ms);

  /// Draining, everything that was here lately is elsewhere or given up. Later pages make it false
  /// again.
  bool is_drained() const { return is_draining_ && is_drained_; }
  /// Draining, there was nobody to give anything to when it looked last.
  bool is_alone() const { return is_draining_ && is_alone_; }
  /// Of pages that are neither elsewhere nor given up; as far as known.
  uint64_t drain_left_bytes() const { return is_draining_ ? left_bytes_ : 0; }

  void add_stats(NodeStats& stats) const;

 private:
  struct Item {
    PageRef ref;
    uint64_t size;
    bool may_evict;
    size_t wanted_count;
    size_t found_count = 0;
    size_t asked_count = 0;
    size_t coming_count = 0;    // Of copies, as far as known, until then.
    bool is_announced = false;  // Or nobody would find it.
    uint64_t until_ms = 0;
    uint64_t since_ms = 0;         // In the window.
    std::vector<uint64_t> not_to;  // Incarnations that have it or were asked.
  };
  struct Target {
    std::string name;
    uint64_t incarnation;
    PlacementTarget place;
  };
  using Numbers = std::vector<uint32_t>;  // Of items.

  bool has_work() const;
  void scan(uint64_t from_ms);
  void fill_window();
  void walk();
  void add(PageRef ref);
  void drop_ended();
  void begin_round();
  void on_members(const Result<MembersReply>& reply);
  void take_targets(const MembersReply& reply);
  void locate();
  void on_located(const Numbers& numbers, const Result<LocateReply>& reply);
  void note_replicas(Item& item, std::span<const Replica> replicas) const;
  void ask_for_copies();
  bool will_be_announced(const Item& item) const;
  bool choose(Item& item, NodeIndex& chosen);
  void ask(const Target& target, SpaceIndex space, bool may_evict, const Numbers& numbers);
  void on_answered(const Numbers& numbers, const Result<std::vector<Code>>& codes);
  void answered_one();
  void end_round(uint64_t pause_ms);
  void give_up(Item& item);
  void leave_window(const Item& item);
  /// Calls `task` on the node's thread with what has come, unless the round is over by then.
  template <typename Reply>
  auto in_round(std::function<void(const Result<Reply>&)> task);

  const Options options_;
  const Surroundings surroundings_;
  PageStore& store_;
  uint64_t now_ms_ = 0;
  uint64_t next_round_ms_ = 0;
  bool is_round_on_ = false;
  uint64_t round_ = 0;

  bool is_draining_ = false;
  bool is_drained_ = false;
  bool is_alone_ = false;
  std::vector<PageRef> list_;  // What is to be given away.
  size_t list_at_ = 0;
  uint64_t scanned_ms_ = 0;
  uint64_t left_bytes_ = 0;

  std::deque<PageRef> fresh_;
  PageIndex walk_at_ = 0;
  uint64_t walk_ms_ = 0;  // Not before.
  std::pair<uint64_t, uint32_t> noted_members_{0, 0};

  std::vector<Item> window_;
  std::unordered_set<PageIndex> in_window_;
  uint64_t window_bytes_ = 0;

  std::map<NodeIndex, Target> targets_;
  NodeIndex own_node_ = kNoNode;
  bool has_told_all_ = false;  // When the directory was asked where the window's pages are.
  uint64_t members_epoch_ = 0;
  uint32_t members_version_ = 0;
  size_t calls_left_ = 0;

  uint64_t drained_pages_ = 0;
  uint64_t replicated_pages_ = 0;
  uint64_t given_up_pages_ = 0;
};

}  // namespace hicache
