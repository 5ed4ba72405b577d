// How a node belongs to a cluster: it joins, says that it lives, carries out orders, and sends what
// the announcer has to tell.
//
// Two connections (directory_client.h): joining and heartbeats on one, batches on the other. When
// the first is lost it joins again once there is another; batches that were not answered are sent
// again. An order counts as done once no restart can undo it; until then nothing is told of pages,
// because the directory would not take what belongs to a namespace that is yet to be cleared.
//
// Threads: the node's alone. The directory's answers come by way of `post`.
#pragma once

#include <deque>
#include <functional>
#include <string>

#include "directory/directory_line.h"
#include "store/announcer.h"

namespace hicache {

class Membership {
 public:
  using Task = std::function<void()>;

  struct Options {
    Member member;  // But for what changes.
    uint64_t call_timeout_ms;
  };
  /// What it works on; all outlive it, and the clients are stopped before it ends.
  struct Surroundings {
    DirectoryLine& life;
    DirectoryLine& bulk;
    Announcer& announcer;
    std::function<void(Task)> post;  // To the node's thread, from any.
    std::function<uint64_t()> capacity_bytes;
    std::function<uint64_t()> free_bytes;  // That pages could take.
    std::function<uint64_t()> busy_ns;     // Of the node's thread, since it began.
    std::function<NodeTally()> tally;      // What it has done.
    /// Clears a namespace; a ticket, 0: done.
    std::function<uint64_t(const NamespaceDigest&)> clear;
    std::function<bool(uint64_t)> is_done;  // What the ticket stands for.
    std::function<void(std::string)> on_notice;
    std::function<void(const HeartbeatReply&)> on_heard{};  // Of a leader that it has joined.
  };
  struct Counts {
    uint64_t joins = 0;
    uint64_t orders = 0;
    uint64_t refused_batches = 0;  // The directory had no room for some of their pages.
  };
  struct Seat {
    NodeIndex node = kNoNode;
    uint64_t incarnation = 0;
  };

  Membership(Options options, Surroundings surroundings);

  /// Does what is due. Returns when it wants to be called at the latest.
  uint64_t advance(uint64_t now_ms);
  /// Its seat was given up.
  void leave() { leave_seat(); }
  /// Orders came unasked.
  void take_orders(const HeartbeatReply& reply);

  bool is_joined() const { return is_joined_; }
  /// What the announcer has would be sent now.
  bool can_send() const { return is_joined_ && bulk_connection_ != 0 && now_ms_ >= batches_at_ms_; }
  bool is_draining() const { return is_draining_; }
  /// The leader of epoch() has answered everything that there was to tell it.
  bool has_told_all() const { return is_joined_ && surroundings_.announcer.is_settled(); }
  /// Of this node in the directory; kNoNode: it is not there.
  Seat seat() const { return {is_joined_ ? node_ : kNoNode, options_.member.incarnation}; }
  /// Of the leader that it joined last.
  uint64_t epoch() const { return epoch_; }
  /// Changes with the list of members, as the last heartbeat was answered.
  uint32_t members_version() const { return members_version_; }
  const Counts& counts() const { return counts_; }

 private:
  struct Undone {
    uint64_t order;
    uint64_t ticket;
  };

  void look_at_connection();
  void join(uint64_t now_ms);
  void joined(uint64_t connection, const Result<JoinReply>& reply);
  void leave_seat();
  void send_heartbeat(uint64_t now_ms);
  void answered(uint64_t connection, const Result<HeartbeatReply>& reply);
  void carry_out(const Order& order);
  void note_done();
  void send_batches(uint64_t now_ms);
  void taken(uint64_t sequence, const Result<BatchReply>& reply);
  uint32_t load_permille(uint64_t now_ms);

  const Options options_;
  const Surroundings surroundings_;
  uint64_t now_ms_ = 0;
  uint64_t connection_ = 0;  // Of `life`, that was looked at last.
  bool is_joining_ = false;
  bool is_joined_ = false;
  uint64_t join_at_ms_ = 0;  // Not before.
  NodeIndex node_ = kNoNode;
  uint64_t epoch_ = 0;
  uint32_t members_version_ = 0;
  uint32_t heartbeat_interval_ms_ = 0;
  uint64_t heartbeat_at_ms_ = 0;
  bool is_heartbeat_out_ = false;
  uint64_t load_since_ms_ = 0;
  uint64_t load_since_busy_ns_ = 0;
  uint64_t bulk_connection_ = 0;  // On which the batches were sent.
  uint64_t batches_at_ms_ = 0;    // Not before.
  bool is_draining_ = false;
  uint64_t orders_taken_ = 0;  // All up to this one of this epoch.
  uint64_t orders_done_ = 0;
  std::deque<Undone> undone_;
  Counts counts_;
};

}  // namespace hicache
