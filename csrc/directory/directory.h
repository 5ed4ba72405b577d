// The directory's decisions: who belongs to the cluster, and which node has which page.
//
// It owns no page: nodes tell what they have, and it may be wrong about them for a while. Who reads
// asks the node itself and verifies, so a mistake here costs a round trip or a hit, never a byte.
// Everything can be told again: a new leader begins with nothing, and until a node has announced
// its pages they are unknown, which is a miss.
//
//   joining -> announcing -> live <-> draining          by what the node does and is asked for
//      any of these <-> suspect -> gone                 connection lost; probed; no answer
//
// A lost connection makes a node suspect at once; it is gone only when a probe of its address
// failed or was not answered in time. While probes succeed it is kept: others can read from it.
//
// Pure: commands, time and the outcomes of probes come in; replies come back, and effects that the
// caller carries out. Threads: one owner. Time is of a clock that does not run back.
#pragma once

#include <deque>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "directory/directory_types.h"
#include "directory/quota_table.h"
#include "directory/replica_table.h"

namespace hicache {

/// A connection, as the server counts them; 0: none.
using SessionId = uint64_t;

class Directory {
 public:
  struct Options {
    uint32_t nodes_max;  // At most kNodesMax.
    uint64_t pages_max;
    uint32_t holdings_max;
    uint32_t heartbeat_interval_ms;  // Told to the nodes.
    uint64_t silence_max_ms;         // Without a heartbeat: as if the connection were lost.
    uint64_t probe_interval_ms;      // From one good probe to the next.
    uint64_t probe_timeout_ms;
    /// Epochs come from an election: who has heard of a newer one is told kNotLeader, and whoever
    /// hosts this looks whether it still leads. Else it is the only leader, and takes an epoch
    /// above what it hears.
    bool is_elected;
  };

  enum class EffectKind : uint8_t {
    kProbe,         // Greet `address`, wanting `incarnation`; tell probe_result().
    kCloseSession,  // Its node has another connection, or is silent.
    kSendOrders,    // Send orders_of(node) to `session`.
    kHeardOfNewer,  // Another may lead, with `epoch`.
  };
  struct Effect {
    EffectKind kind;
    NodeIndex node = kNoNode;
    SessionId session = 0;
    uint64_t probe = 0;
    uint64_t incarnation = 0;
    uint64_t epoch = 0;
    std::string address;
  };

  explicit Directory(const Options& options);

  /// Begins to lead with nothing known; 0: leads no longer.
  void lead(uint64_t epoch);
  uint64_t epoch() const { return epoch_; }

  JoinReply apply(const JoinRequest& request, SessionId session, uint64_t now_ms);
  HeartbeatReply apply(const HeartbeatRequest& request, SessionId session, uint64_t now_ms);
  BatchReply apply(const BatchRequest& request);
  PlainReply apply(const LeaveRequest& request, uint64_t now_ms);
  /// Into `reply`, whose memory is used again.
  void apply(const LocateRequest& request, LocateReply& reply);
  MembersReply apply(const MembersRequest& request);
  ClearSpaceReply apply(const ClearSpaceRequest& request);
  PlainReply apply(const DrainRequest& request);
  QuotasReply apply(const QuotasRequest& request);

  /// A connection ended.
  void disconnected(SessionId session, uint64_t now_ms);
  void probe_result(NodeIndex node, uint64_t probe, bool is_alive, uint64_t now_ms);
  /// What is due, and a bounded part of what is to be swept. Returns when it wants to be called
  /// again (UINT64_MAX: not before the next other call).
  uint64_t advance(uint64_t now_ms);

  /// What a heartbeat of the node would be answered with now.
  HeartbeatReply orders_of(NodeIndex node) const;
  /// What to do because of the calls so far, in order.
  std::vector<Effect> take_effects() { return std::exchange(effects_, {}); }

  size_t memory_size_bytes() const { return replicas_.memory_size_bytes(); }
  /// (name, value), for metrics.
  std::vector<std::pair<std::string, uint64_t>> stats() const;
  /// What is inconsistent, or "" (slow; for tests).
  std::string check_invariants() const;

 private:
  /// One row of the table of nodes.
  struct Row {
    Member member;
    SessionId session = 0;
    bool is_gone = true;
    bool is_draining = false;
    bool is_announcing = false;
    bool has_announced = false;
    bool must_announce = true;
    bool is_probing = false;
    uint64_t next_sequence = 1;
    uint64_t heard_ms = 0;
    uint64_t probe = 0;   // The number of the last one.
    uint64_t due_ms = 0;  // While suspect: the probe's deadline, or the next probe's time.
    uint64_t gone_ms = 0;
    std::deque<Order> orders;     // Not known to be done.
    std::vector<TenantUse> uses;  // As it told last.

    bool is_suspect() const { return !is_gone && session == 0; }
  };
  struct Counts {
    uint64_t locate_requests = 0;
    uint64_t locate_keys = 0;
    uint64_t locate_hits = 0;
    uint64_t batches = 0;
    uint64_t changes = 0;
    uint64_t refused_changes = 0;  // For which there was no room.
    uint64_t late_changes = 0;     // Of namespaces that their node was yet to clear.
    uint64_t repeated_batches = 0;
    uint64_t lost_batches = 0;  // Gaps that were noticed.
    uint64_t announcements = 0;
    uint64_t suspicions = 0;
    uint64_t probes = 0;
    uint64_t expiries = 0;
  };

  /// Whether to serve a request of someone who knows this epoch.
  Code admit(uint64_t epoch);
  ReplyHead head(Code code) const { return {epoch_, members_version_, code}; }
  /// The row, if the node is there and of this incarnation; else null.
  Row* find(NodeIndex node, uint64_t incarnation);
  NodeState state_of(const Row& row) const;
  Code seat(const Member& member, SessionId session, NodeIndex& node, std::string& message);
  NodeIndex free_row() const;
  static uint8_t rank_of(const Row& row);
  void lose(NodeIndex node, uint64_t now_ms);
  void start_probe(NodeIndex node, uint64_t now_ms);
  void expire(NodeIndex node, uint64_t now_ms);
  void order(NodeIndex node, OrderKind kind, const NamespaceDigest& digest);
  static bool must_clear(const Row& row, const NamespaceDigest& digest);
  static void note_done(Row& row, uint64_t orders_done);
  Code take(NodeIndex node, Row& row, const BatchRequest& request);
  void count_capacity();
  /// Has all nodes hear that the quotas are others.
  void tell_quotas();
  std::vector<TenantUse> uses_of_all() const;
  std::string check_row(NodeIndex node) const;

  const Options options_;
  uint64_t epoch_ = 0;
  uint32_t members_version_ = 0;
  uint64_t last_order_ = 0;
  uint64_t last_probe_ = 0;
  ReplicaTable replicas_;
  QuotaTable quotas_;
  uint64_t capacity_bytes_ = 0;  // Of all that are not gone, as last counted.
  std::vector<Row> rows_;
  std::unordered_map<std::string, NodeIndex> names_;  // Also of those that are gone.
  std::unordered_map<SessionId, NodeIndex> sessions_;
  std::vector<Effect> effects_;
  Counts counts_;
};

}  // namespace hicache
