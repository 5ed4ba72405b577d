// What nodes, clients and the directory say to each other, as plain values.
//
// Every request names the newest leader epoch that its sender has heard of, every reply the epoch
// of who answers: an older one is not believed, so that a leader which was replaced harms nobody.
//
// A node sends its changes as numbered batches of its incarnation:
//
//   begin 1   changes 2   changes 3   end 4   changes 5   changes 6 …
//   \________ the announcement ________/
//
// A full announcement is the changes between begin and end; what the node had said before and did
// not repeat vanishes at its end. Changes of pages that come and go meanwhile travel among them, in
// the order in which they happened. A number that is missing makes the directory ask for a new
// announcement, which begins at any later number; one that was taken already is ignored.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace hicache {

/// Place in the directory's table of nodes. Reused after a node is gone: together with a members
/// version that is not newer than the list's it names a node.
using NodeIndex = uint16_t;
inline constexpr NodeIndex kNoNode = UINT16_MAX;
inline constexpr size_t kNodesMax = 4096;

inline constexpr size_t kNodeTextSizeMax = 256;  // Of a name, an address, a failure domain.
inline constexpr size_t kNodeAddressesMax = 8;
inline constexpr size_t kChangesMax = 16384;  // Of one batch.
inline constexpr size_t kLocateKeysMax = 16384;
inline constexpr size_t kReplicasMax = 8;  // Of one page in a reply.
inline constexpr size_t kTenantNameSizeMax = 256;
inline constexpr size_t kQuotasMax = 2048;     // Of tenants that ever had one.
inline constexpr size_t kTenantUsesMax = 256;  // That a node tells of.
inline constexpr size_t kOrdersMax = 64;       // That one node has not carried out.
/// Larger epochs are not believed: nothing could come after the largest.
inline constexpr uint64_t kEpochMax = uint64_t{1} << 62;

/// Where a node has a page: any sum of these.
inline constexpr uint8_t kInDram = 1;
inline constexpr uint8_t kOnSsd = 2;
inline constexpr uint8_t kTiersMax = kInDram | kOnSsd;

enum class NodeState : uint8_t {
  kJoining,     // Connected; its pages are not known yet.
  kAnnouncing,  // It tells them.
  kLive,        // All its pages are known.
  kDraining,    // Asked to give its pages away; still read from.
  kSuspect,     // Its connection is lost; it is being probed, and read from after the others.
  kGone,        // Has no pages. Its name is remembered while there is room.
};
inline constexpr uint8_t kNodeStateCount = 6;

/// What a node says of its work, for people: nothing is decided by it. Sizes are what is, the rest
/// has been counted since it started.
#define HICACHE_NODE_TALLY(FIELD) \
  FIELD(ssd_size_bytes)           \
  FIELD(ssd_used_bytes)           \
  FIELD(found_pages)              \
  FIELD(missed_pages)             \
  FIELD(read_bytes)               \
  FIELD(ssd_read_bytes)           \
  FIELD(remote_read_bytes)        \
  FIELD(evicted_pages)            \
  FIELD(get_count)                \
  FIELD(get_ns)

struct NodeTally {
#define HICACHE_FIELD(name) uint64_t name = 0;
  HICACHE_NODE_TALLY(HICACHE_FIELD)
#undef HICACHE_FIELD

  bool operator==(const NodeTally&) const = default;
};

/// What a node says of itself.
struct Member {
  std::string name;
  uint64_t incarnation = 0;  // Of the process, as its control server greets; later ones are larger.
  std::vector<std::string> addresses;  // "host:port". A probe greets the first.
  std::string failure_domain;
  uint64_t capacity_bytes = 0;
  uint64_t free_bytes = 0;
  uint32_t load_permille = 0;
  NodeTally tally{};

  bool operator==(const Member&) const = default;
};

struct ReplyHead {
  uint64_t epoch = 0;            // 0: not a leader.
  uint32_t members_version = 0;  // Of this epoch; another one: the list of members has changed.
  Code code = Code::kOk;

  bool operator==(const ReplyHead&) const = default;
};

// ---- Of nodes

struct JoinRequest {
  uint64_t epoch = 0;
  Member member;
};
/// kAlreadyExists: a later process has the name. kNoSpace: too many nodes.
struct JoinReply {
  ReplyHead head;
  NodeIndex node = kNoNode;
  uint32_t heartbeat_interval_ms = 0;
  bool must_announce = false;
  uint64_t next_sequence = 0;  // Else: batches from here on are wanted.
  std::string message;
};

/// What the directory wants of a node. Numbers grow within an epoch.
enum class OrderKind : uint8_t {
  kClearSpace,  // Forget the pages of a namespace.
  kDrain,
  kEndDrain,
};
inline constexpr uint8_t kOrderKindCount = 3;
struct Order {
  uint64_t number = 0;
  OrderKind kind = OrderKind::kClearSpace;
  NamespaceDigest digest;  // Of kClearSpace.

  bool operator==(const Order&) const = default;
};

struct HeartbeatRequest {
  uint64_t epoch = 0;
  NodeIndex node = kNoNode;
  uint64_t incarnation = 0;
  uint64_t capacity_bytes = 0;
  uint64_t free_bytes = 0;
  uint32_t load_permille = 0;
  NodeTally tally{};
};
/// Also sent unasked, with request id 0, when there are new orders. kCancelled: join again.
struct HeartbeatReply {
  ReplyHead head;
  bool must_announce = false;
  uint64_t next_sequence = 0;
  std::vector<Order> orders;            // All that no batch has said to be done, oldest first.
  uint64_t quota_digest = 0;            // Of the leader's QuotaTable.
  uint64_t cluster_capacity_bytes = 0;  // Of all nodes that are not gone.
};

enum class BatchKind : uint8_t {
  kChanges,
  kBegin,       // What is said from here on is everything that the node has.
  kEnd,         // What was not said since the begin is gone.
  kClearSpace,  // The node has no page of the namespace any more.
};
inline constexpr uint8_t kBatchKindCount = 4;

struct PageChange {
  Key key;
  uint32_t generation = 0;
  uint32_t tiers = 0;  // kInDram | kOnSsd; 0: the node does not have it any more.

  bool operator==(const PageChange&) const = default;
};
static_assert(sizeof(PageChange) == 40);

/// May come over any connection. Whoever has carried out an order says so in its next batch, which
/// may be empty: changes of a namespace that the node was yet to clear are not taken.
struct BatchRequest {
  uint64_t epoch = 0;
  NodeIndex node = kNoNode;
  uint64_t incarnation = 0;
  uint64_t sequence = 0;
  uint64_t orders_done = 0;  // All up to this number of this epoch.
  BatchKind kind = BatchKind::kChanges;
  NamespaceDigest digest;  // Of kChanges and kClearSpace.
  std::vector<PageChange> changes;
};
/// kCancelled: join again. kNoSpace: taken, but for some pages that the directory has no room for.
struct BatchReply {
  ReplyHead head;
  bool must_announce = false;
  uint64_t next_sequence = 0;
};

struct LeaveRequest {
  uint64_t epoch = 0;
  NodeIndex node = kNoNode;
  uint64_t incarnation = 0;
};

// ---- Of everybody

struct LocateRequest {
  uint64_t epoch = 0;
  NamespaceDigest digest;
  bool is_prefix = false;    // Stop at the first page that nobody has.
  uint8_t replicas_max = 1;  // Of each page: 1 … kReplicasMax.
  std::vector<Key> keys;
};
struct Replica {
  uint32_t generation = 0;
  NodeIndex node = kNoNode;
  uint8_t tiers = 0;
  uint8_t rank = 0;  // Of its node.

  bool operator==(const Replica&) const = default;
};
static_assert(sizeof(Replica) == 8);
inline constexpr uint8_t kRankGood = 0;
inline constexpr uint8_t kRankDraining = 1;
inline constexpr uint8_t kRankSuspect = 2;
inline constexpr uint8_t kRankCount = 3;

/// `counts[i]` replicas of the i-th key, the best first; one after the other in `replicas`. With
/// `is_prefix` counts end before the first 0.
struct LocateReply {
  ReplyHead head;
  std::vector<uint8_t> counts;
  std::vector<Replica> replicas;
};

struct MembersRequest {
  uint64_t epoch = 0;
};
struct MemberView {
  NodeIndex index = kNoNode;
  NodeState state = NodeState::kGone;
  uint64_t page_count = 0;
  Member member;

  bool operator==(const MemberView&) const = default;
};
struct MembersReply {
  ReplyHead head;
  std::vector<MemberView> members;
};

/// Makes a namespace's pages unknown at once, and has all nodes forget them. kBusy: some node has
/// too many orders that it did not carry out; try again.
struct ClearSpaceRequest {
  uint64_t epoch = 0;
  NamespaceDigest digest;
  /// Who asks, if that is a node: it has done so already, and what it puts from now on is to stay.
  /// It tells nothing of that before this request, on the same connection.
  NodeIndex node = kNoNode;
  uint64_t incarnation = 0;
};
struct ClearSpaceReply {
  ReplyHead head;
  uint64_t replica_count = 0;  // That were known.
};

struct DrainRequest {
  uint64_t epoch = 0;
  bool is_on = true;
  std::string name;
};

/// What the pages of a tenant may take of all nodes' memory together.
struct TenantQuota {
  std::string name;
  uint64_t size_bytes = 0;  // 0: it has none any more.
  uint64_t epoch = 0;       // Of the leader that was told to change it; 0: it is yet to be told.
  uint64_t change = 0;      // Counted by that leader.

  bool operator==(const TenantQuota&) const = default;
};
/// What a tenant takes of one node's memory, or of all.
struct TenantUse {
  std::string name;
  uint64_t limit_bytes = 0;
  uint64_t used_bytes = 0;  // Reserved ones included.
  uint64_t reserved_bytes = 0;
  uint64_t page_count = 0;

  bool operator==(const TenantUse&) const = default;
};

/// A node tells what it knows and what its tenants use. Anybody else (kNoNode) asks, or changes
/// quotas by entries of epoch 0. kNoSpace: too many tenants have had quotas.
struct QuotasRequest {
  uint64_t epoch = 0;
  NodeIndex node = kNoNode;
  uint64_t incarnation = 0;
  std::vector<TenantQuota> quotas;
  std::vector<TenantUse> uses;
};
/// `uses` of all nodes together, for who is no node; more of them than one node tells are cut off.
struct QuotasReply {
  ReplyHead head;
  std::vector<TenantQuota> quotas;
  std::vector<TenantUse> uses;
};

/// Of Leave and Drain.
struct PlainReply {
  ReplyHead head;
};

}  // namespace hicache
