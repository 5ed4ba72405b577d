// Gives away what a node has in memory before it leaves: sees to it that another live node has a
// copy of each page, those first that were read.
//
//   pages_to_keep() --> window --> where is it? --> elsewhere: safe
//                         ^            |
//                         |            v
//                         +---- a node is asked to copy it (placement.h)
//
// A round asks the directory for the members and for the pages of the window, and other nodes for
// copies of those that nobody else has; the next round looks whether they have come. A page is safe
// once the directory names a live node that has it, and not before. One that nobody has taken after
// a few attempts is given up: it stays here, and goes with this node.
//
// Meanwhile the node serves as ever, and pages that come are given away as well.
//
// Threads: the node's alone. The directory's answers come by way of `post`.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "directory/directory_line.h"
#include "store/page_store.h"
#include "store/placement.h"
#include "store/remote_tier.h"
#include "store/stats.h"

namespace hicache {

class Drainer {
 public:
  using Task = std::function<void()>;

  struct Options {
    std::string own_name;
    uint64_t own_incarnation;
    std::string failure_domain;
    uint64_t call_timeout_ms;
  };
  /// What it works on; all outlive it, and what calls back is stopped before it ends.
  struct Surroundings {
    PageStore& store;
    DirectoryLine& directory;
    RemoteTier& remote;
    std::function<void(Task)> post;  // To the node's thread, from any.
  };

  Drainer(Options options, Surroundings surroundings);

  /// Begins, or ends; does nothing if it does so already.
  void set_on(bool is_on);

  /// Does what is due. Returns when it wants to be called at the latest.
  uint64_t advance(uint64_t now_ms);

  /// Everything that was here lately is safe or given up. Later pages make it false again.
  bool is_over() const { return is_on_ && is_over_; }
  /// There was nobody to give anything to when it looked last.
  bool is_alone() const { return is_on_ && is_alone_; }
  /// Of pages that are neither safe nor given up; as far as known.
  uint64_t left_bytes() const { return is_on_ ? left_bytes_ : 0; }

  void add_stats(NodeStats& stats) const;

 private:
  struct Item {
    PageRef ref;
    uint64_t size;
    bool may_evict;
    bool is_safe = false;
    uint64_t until_ms = 0;        // It is being copied, as far as known.
    std::vector<uint64_t> tried;  // Incarnations.
  };
  struct Target {
    std::string name;
    uint64_t incarnation;
    PlacementTarget place;
  };
  using Numbers = std::vector<uint32_t>;  // Of items.

  void scan(uint64_t from_ms);
  void fill_window();
  void drop_ended();
  void begin_round();
  void on_members(const Result<MembersReply>& reply);
  void take_targets(const MembersReply& reply);
  void locate();
  void on_located(const Numbers& numbers, const Result<LocateReply>& reply);
  void ask_for_copies();
  bool choose(Item& item, NodeIndex& chosen);
  void ask(const Target& target, SpaceIndex space, bool may_evict, const Numbers& numbers);
  void on_answered(const Numbers& numbers, const Result<std::vector<Code>>& codes);
  void answered_one();
  void end_round(uint64_t pause_ms);
  void give_up(Item& item);
  void forget_bytes(uint64_t size) { left_bytes_ -= std::min(left_bytes_, size); }
  /// Calls `task` on the node's thread with what has come, unless the round is over by then.
  template <typename Reply>
  auto in_round(std::function<void(const Result<Reply>&)> task);

  const Options options_;
  const Surroundings surroundings_;
  PageStore& store_;
  bool is_on_ = false;
  bool is_over_ = false;
  bool is_alone_ = false;
  uint64_t now_ms_ = 0;
  uint64_t next_round_ms_ = 0;
  bool is_round_on_ = false;
  uint64_t round_ = 0;

  std::vector<PageRef> list_;
  size_t list_at_ = 0;
  std::vector<Item> window_;
  uint64_t window_bytes_ = 0;
  uint64_t left_bytes_ = 0;
  uint64_t scanned_ms_ = 0;

  std::map<NodeIndex, Target> targets_;
  uint64_t members_epoch_ = 0;
  uint32_t members_version_ = 0;
  size_t calls_left_ = 0;

  uint64_t drained_pages_ = 0;
  uint64_t given_up_pages_ = 0;
};

}  // namespace hicache
