#include "directory/directory_messages.h"

#include <algorithm>
#include <numeric>

namespace hicache {
namespace {

/// Of what a reply explains.
constexpr size_t kMessageSizeMax = 1024;

/// Reads an enumeration or a truth value; false for what is none.
template <typename T>
bool get_below(WireReader& reader, uint8_t count, T& value) {
  const auto byte = reader.get<uint8_t>();
  value = static_cast<T>(byte);
  return reader.ok() && byte < count;
}

bool get_bool(WireReader& reader, bool& value) {
  return get_below(reader, 2, value);
}

bool is_node(NodeIndex node) {
  return node < kNodesMax;
}

void put(WireWriter& writer, const ReplyHead& head) {
  writer.put(head.epoch);
  writer.put(head.members_version);
  writer.put(head.code);
}

bool get(WireReader& reader, ReplyHead& head) {
  head.epoch = reader.get<uint64_t>();
  head.members_version = reader.get<uint32_t>();
  return get_below(reader, kCodeCount, head.code);
}

void put(WireWriter& writer, const NodeTally& tally) {
#define HICACHE_FIELD(name) writer.put(tally.name);
  HICACHE_NODE_TALLY(HICACHE_FIELD)
#undef HICACHE_FIELD
}

void get(WireReader& reader, NodeTally& tally) {
#define HICACHE_FIELD(name) tally.name = reader.get<uint64_t>();
  HICACHE_NODE_TALLY(HICACHE_FIELD)
#undef HICACHE_FIELD
}

void put(WireWriter& writer, const Member& member) {
  writer.put_string(member.name);
  writer.put(member.incarnation);
  writer.put(static_cast<uint8_t>(member.addresses.size()));
  for (const std::string& address : member.addresses) writer.put_string(address);
  writer.put_string(member.failure_domain);
  writer.put(member.capacity_bytes);
  writer.put(member.free_bytes);
  writer.put(member.load_permille);
  put(writer, member.tally);
}

bool get(WireReader& reader, Member& member) {
  member.name = reader.get_string(kNodeTextSizeMax);
  member.incarnation = reader.get<uint64_t>();
  const auto address_count = reader.get<uint8_t>();
  if (address_count > kNodeAddressesMax) return false;
  member.addresses.clear();
  for (uint8_t i = 0; i < address_count && reader.ok(); ++i) {
    member.addresses.push_back(reader.get_string(kNodeTextSizeMax));
  }
  member.failure_domain = reader.get_string(kNodeTextSizeMax);
  member.capacity_bytes = reader.get<uint64_t>();
  member.free_bytes = reader.get<uint64_t>();
  member.load_permille = reader.get<uint32_t>();
  get(reader, member.tally);
  return reader.ok();
}

void put(WireWriter& writer, const std::vector<TenantQuota>& quotas) {
  writer.put(static_cast<uint32_t>(quotas.size()));
  for (const TenantQuota& quota : quotas) {
    writer.put_string(quota.name);
    writer.put(quota.size_bytes);
    writer.put(quota.epoch);
    writer.put(quota.change);
  }
}

bool get(WireReader& reader, std::vector<TenantQuota>& quotas) {
  const auto count = reader.get<uint32_t>();
  if (count > kQuotasMax) return false;
  quotas.clear();
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    TenantQuota quota;
    quota.name = reader.get_string(kTenantNameSizeMax);
    quota.size_bytes = reader.get<uint64_t>();
    quota.epoch = reader.get<uint64_t>();
    quota.change = reader.get<uint64_t>();
    quotas.push_back(std::move(quota));
  }
  return reader.ok();
}

void put(WireWriter& writer, const std::vector<TenantUse>& uses) {
  writer.put(static_cast<uint32_t>(uses.size()));
  for (const TenantUse& use : uses) {
    writer.put_string(use.name);
    writer.put(use.limit_bytes);
    writer.put(use.used_bytes);
    writer.put(use.reserved_bytes);
    writer.put(use.page_count);
  }
}

bool get(WireReader& reader, std::vector<TenantUse>& uses) {
  const auto count = reader.get<uint32_t>();
  if (count > kTenantUsesMax) return false;
  uses.clear();
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    TenantUse use;
    use.name = reader.get_string(kTenantNameSizeMax);
    use.limit_bytes = reader.get<uint64_t>();
    use.used_bytes = reader.get<uint64_t>();
    use.reserved_bytes = reader.get<uint64_t>();
    use.page_count = reader.get<uint64_t>();
    uses.push_back(std::move(use));
  }
  return reader.ok();
}

}  // namespace

std::string_view op_name(DirectoryOp op) {
  switch (op) {
    case DirectoryOp::kJoin:
      return "join";
    case DirectoryOp::kHeartbeat:
      return "heartbeat";
    case DirectoryOp::kBatch:
      return "batch";
    case DirectoryOp::kLeave:
      return "leave";
    case DirectoryOp::kLocate:
      return "locate";
    case DirectoryOp::kMembers:
      return "members";
    case DirectoryOp::kClearSpace:
      return "clear_space";
    case DirectoryOp::kDrain:
      return "drain";
    case DirectoryOp::kQuotas:
      return "quotas";
  }
  return "";
}

// ---------------------------------------------------------------- of nodes

void encode(WireWriter& writer, const JoinRequest& message) {
  writer.put(message.epoch);
  put(writer, message.member);
}

bool decode(WireReader reader, JoinRequest& message) {
  message.epoch = reader.get<uint64_t>();
  return get(reader, message.member) && reader.finished();
}

void encode(WireWriter& writer, const JoinReply& message) {
  put(writer, message.head);
  writer.put(message.node);
  writer.put(message.heartbeat_interval_ms);
  writer.put(message.must_announce);
  writer.put(message.next_sequence);
  writer.put_string(std::string_view(message.message).substr(0, kMessageSizeMax));
}

bool decode(WireReader reader, JoinReply& message) {
  if (!get(reader, message.head)) return false;
  message.node = reader.get<NodeIndex>();
  message.heartbeat_interval_ms = reader.get<uint32_t>();
  if (!get_bool(reader, message.must_announce)) return false;
  message.next_sequence = reader.get<uint64_t>();
  message.message = reader.get_string(kMessageSizeMax);
  return reader.finished() && is_node(message.node) == (message.head.code == Code::kOk);
}

void encode(WireWriter& writer, const HeartbeatRequest& message) {
  writer.put(message.epoch);
  writer.put(message.node);
  writer.put(message.incarnation);
  writer.put(message.capacity_bytes);
  writer.put(message.free_bytes);
  writer.put(message.load_permille);
  put(writer, message.tally);
}

bool decode(WireReader reader, HeartbeatRequest& message) {
  message.epoch = reader.get<uint64_t>();
  message.node = reader.get<NodeIndex>();
  message.incarnation = reader.get<uint64_t>();
  message.capacity_bytes = reader.get<uint64_t>();
  message.free_bytes = reader.get<uint64_t>();
  message.load_permille = reader.get<uint32_t>();
  get(reader, message.tally);
  return reader.finished();
}

void encode(WireWriter& writer, const HeartbeatReply& message) {
  put(writer, message.head);
  writer.put(message.must_announce);
  writer.put(message.next_sequence);
  writer.put(static_cast<uint8_t>(message.orders.size()));
  for (const Order& order : message.orders) {
    writer.put(order.number);
    writer.put(order.kind);
    writer.put(order.digest);
  }
  writer.put(message.quota_digest);
  writer.put(message.cluster_capacity_bytes);
}

bool decode(WireReader reader, HeartbeatReply& message) {
  if (!get(reader, message.head) || !get_bool(reader, message.must_announce)) return false;
  message.next_sequence = reader.get<uint64_t>();
  const auto order_count = reader.get<uint8_t>();
  if (order_count > kOrdersMax) return false;
  message.orders.assign(order_count, Order{});
  for (Order& order : message.orders) {
    order.number = reader.get<uint64_t>();
    if (!get_below(reader, kOrderKindCount, order.kind)) return false;
    order.digest = reader.get<NamespaceDigest>();
  }
  message.quota_digest = reader.get<uint64_t>();
  message.cluster_capacity_bytes = reader.get<uint64_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const BatchRequest& message) {
  writer.put(message.epoch);
  writer.put(message.node);
  writer.put(message.incarnation);
  writer.put(message.sequence);
  writer.put(message.orders_done);
  writer.put(message.kind);
  writer.put(message.digest);
  writer.put_array(std::span(message.changes));
}

bool decode(WireReader reader, BatchRequest& message) {
  message.epoch = reader.get<uint64_t>();
  message.node = reader.get<NodeIndex>();
  message.incarnation = reader.get<uint64_t>();
  message.sequence = reader.get<uint64_t>();
  message.orders_done = reader.get<uint64_t>();
  if (!get_below(reader, kBatchKindCount, message.kind)) return false;
  message.digest = reader.get<NamespaceDigest>();
  reader.get_array(message.changes, kChangesMax);
  return reader.finished() &&
         std::all_of(message.changes.begin(), message.changes.end(),
                     [](const PageChange& change) { return change.tiers <= kTiersMax; });
}

void encode(WireWriter& writer, const BatchReply& message) {
  put(writer, message.head);
  writer.put(message.must_announce);
  writer.put(message.next_sequence);
}

bool decode(WireReader reader, BatchReply& message) {
  if (!get(reader, message.head) || !get_bool(reader, message.must_announce)) return false;
  message.next_sequence = reader.get<uint64_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const LeaveRequest& message) {
  writer.put(message.epoch);
  writer.put(message.node);
  writer.put(message.incarnation);
}

bool decode(WireReader reader, LeaveRequest& message) {
  message.epoch = reader.get<uint64_t>();
  message.node = reader.get<NodeIndex>();
  message.incarnation = reader.get<uint64_t>();
  return reader.finished();
}

// ---------------------------------------------------------------- of everybody

void encode(WireWriter& writer, const LocateRequest& message) {
  writer.put(message.epoch);
  writer.put(message.digest);
  writer.put(message.is_prefix);
  writer.put(message.replicas_max);
  writer.put_array(std::span(message.keys));
}

bool decode(WireReader reader, LocateRequest& message) {
  message.epoch = reader.get<uint64_t>();
  message.digest = reader.get<NamespaceDigest>();
  if (!get_bool(reader, message.is_prefix)) return false;
  message.replicas_max = reader.get<uint8_t>();
  reader.get_array(message.keys, kLocateKeysMax);
  return reader.finished() && message.replicas_max >= 1 && message.replicas_max <= kReplicasMax;
}

void encode(WireWriter& writer, const LocateReply& message) {
  put(writer, message.head);
  writer.put_array(std::span(message.counts));
  writer.put_array(std::span(message.replicas));
}

bool decode(WireReader reader, LocateReply& message) {
  if (!get(reader, message.head)) return false;
  reader.get_array(message.counts, kLocateKeysMax);
  reader.get_array(message.replicas, kLocateKeysMax * kReplicasMax);
  const auto& counts = message.counts;
  return reader.finished() &&
         std::all_of(counts.begin(), counts.end(),
                     [](uint8_t count) { return count <= kReplicasMax; }) &&
         std::accumulate(counts.begin(), counts.end(), size_t{0}) == message.replicas.size() &&
         std::all_of(message.replicas.begin(), message.replicas.end(), [](const Replica& replica) {
           return is_node(replica.node) && replica.tiers != 0 && replica.tiers <= kTiersMax &&
                  replica.rank < kRankCount;
         });
}

void encode(WireWriter& writer, const MembersRequest& message) {
  writer.put(message.epoch);
}

bool decode(WireReader reader, MembersRequest& message) {
  message.epoch = reader.get<uint64_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const MembersReply& message) {
  put(writer, message.head);
  writer.put(static_cast<uint32_t>(message.members.size()));
  for (const MemberView& view : message.members) {
    writer.put(view.index);
    writer.put(view.state);
    writer.put(view.page_count);
    put(writer, view.member);
  }
}

bool decode(WireReader reader, MembersReply& message) {
  if (!get(reader, message.head)) return false;
  const auto count = reader.get<uint32_t>();
  if (count > kNodesMax) return false;
  message.members.clear();
  for (uint32_t i = 0; i < count; ++i) {
    MemberView view;
    view.index = reader.get<NodeIndex>();
    if (!get_below(reader, kNodeStateCount, view.state)) return false;
    view.page_count = reader.get<uint64_t>();
    if (!is_node(view.index) || !get(reader, view.member)) return false;
    message.members.push_back(std::move(view));
  }
  return reader.finished();
}

void encode(WireWriter& writer, const ClearSpaceRequest& message) {
  writer.put(message.epoch);
  writer.put(message.digest);
  writer.put(message.node);
  writer.put(message.incarnation);
}

bool decode(WireReader reader, ClearSpaceRequest& message) {
  message.epoch = reader.get<uint64_t>();
  message.digest = reader.get<NamespaceDigest>();
  message.node = reader.get<NodeIndex>();
  message.incarnation = reader.get<uint64_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const ClearSpaceReply& message) {
  put(writer, message.head);
  writer.put(message.replica_count);
}

bool decode(WireReader reader, ClearSpaceReply& message) {
  if (!get(reader, message.head)) return false;
  message.replica_count = reader.get<uint64_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const DrainRequest& message) {
  writer.put(message.epoch);
  writer.put(message.is_on);
  writer.put_string(message.name);
}

bool decode(WireReader reader, DrainRequest& message) {
  message.epoch = reader.get<uint64_t>();
  if (!get_bool(reader, message.is_on)) return false;
  message.name = reader.get_string(kNodeTextSizeMax);
  return reader.finished();
}

void encode(WireWriter& writer, const QuotasRequest& message) {
  writer.put(message.epoch);
  writer.put(message.node);
  writer.put(message.incarnation);
  put(writer, message.quotas);
  put(writer, message.uses);
}

bool decode(WireReader reader, QuotasRequest& message) {
  message.epoch = reader.get<uint64_t>();
  message.node = reader.get<NodeIndex>();
  message.incarnation = reader.get<uint64_t>();
  return get(reader, message.quotas) && get(reader, message.uses) && reader.finished();
}

void encode(WireWriter& writer, const QuotasReply& message) {
  put(writer, message.head);
  put(writer, message.quotas);
  put(writer, message.uses);
}

bool decode(WireReader reader, QuotasReply& message) {
  return get(reader, message.head) && get(reader, message.quotas) && get(reader, message.uses) &&
         reader.finished();
}

void encode(WireWriter& writer, const PlainReply& message) {
  put(writer, message.head);
}

bool decode(WireReader reader, PlainReply& message) {
  return get(reader, message.head) && reader.finished();
}

}  // namespace hicache
