// Who belongs to the cluster: joining, living, being lost, leaving.
#include <algorithm>
#include <map>

#include "directory/directory.h"

namespace hicache {
namespace {

/// Pages that one step of sweeping looks at: about half a millisecond.
constexpr size_t kSweepCount = 1024;

}  // namespace

JoinReply Directory::apply(const JoinRequest& request, SessionId session, uint64_t now_ms) {
  JoinReply reply;
  Code code = admit(request.epoch);
  if (code == Code::kOk) code = seat(request.member, session, reply.node, reply.message);
  if (code == Code::kOk) {
    Row& row = rows_[reply.node];
    row.member = request.member;
    row.session = session;
    row.heard_ms = now_ms;
    row.is_probing = false;
    sessions_[session] = reply.node;
    ++members_version_;
    count_capacity();
    replicas_.set_rank(reply.node, rank_of(row));
    reply.heartbeat_interval_ms = options_.heartbeat_interval_ms;
    reply.must_announce = row.must_announce;
    reply.next_sequence = row.next_sequence;
  }
  reply.head = head(code);
  return reply;
}

/// Finds the row for who joins, and takes it from whoever had it.
Code Directory::seat(const Member& member, SessionId session, NodeIndex& node,
                     std::string& message) {
  if (member.name.empty() || member.incarnation == 0 || member.addresses.empty()) {
    message = "a node needs a name, an incarnation and an address";
    return Code::kInvalidArgument;
  }
  if (const auto bound = sessions_.find(session); bound != sessions_.end()) {
    if (rows_[bound->second].member.name != member.name) {
      message = "this connection joined as '" + rows_[bound->second].member.name +
                "' before; use one connection for each node";
      return Code::kInvalidArgument;
    }
  }
  const auto known = names_.find(member.name);
  node = known != names_.end() ? known->second : free_row();
  if (node == kNoNode) {
    message = "the cluster has " + std::to_string(options_.nodes_max) +
              " nodes already; raise nodes_max of the master";
    return Code::kNoSpace;
  }
  if (node == rows_.size()) rows_.emplace_back();
  Row& row = rows_[node];
  const bool is_same = !row.is_gone && row.member.incarnation == member.incarnation;
  if (!row.is_gone && !is_same && row.session != 0 && member.incarnation < row.member.incarnation) {
    message = "a later process has the name '" + member.name + "'; give each node its own name";
    node = kNoNode;
    return Code::kAlreadyExists;
  }
  if (row.session != 0 && row.session != session) {
    sessions_.erase(row.session);
    effects_.push_back(
        {.kind = EffectKind::kCloseSession, .node = node, .session = row.session, .address = {}});
  }
  if (is_same) return Code::kOk;
  (void)replicas_.forget_node(node);
  if (known == names_.end()) {
    names_.erase(row.member.name);  // Of who was there before.
    names_.emplace(member.name, node);
    row.orders.clear();
  }
  // What the name was ordered to do and did not is still to be done.
  std::deque<Order> orders = std::move(row.orders);
  row = Row{};
  row.orders = std::move(orders);
  // Who comes back stays.
  std::erase_if(row.orders,
                [](const Order& order) { return order.kind != OrderKind::kClearSpace; });
  row.is_gone = false;
  return Code::kOk;
}

/// A row that was never used, or else that of who is gone longest; kNoNode: there is none.
NodeIndex Directory::free_row() const {
  if (rows_.size() < options_.nodes_max) return static_cast<NodeIndex>(rows_.size());
  NodeIndex oldest = kNoNode;
  for (NodeIndex node = 0; node < rows_.size(); ++node) {
    if (!rows_[node].is_gone) continue;
    if (oldest == kNoNode || rows_[node].gone_ms < rows_[oldest].gone_ms) oldest = node;
  }
  return oldest;
}

HeartbeatReply Directory::apply(const HeartbeatRequest& request, SessionId session,
                                uint64_t now_ms) {
  HeartbeatReply reply;
  const Code code = admit(request.epoch);
  if (code == Code::kOk) {
    Row* row = find(request.node, request.incarnation);
    if (row != nullptr && row->session == session) {
      row->heard_ms = now_ms;
      row->member.capacity_bytes = request.capacity_bytes;
      row->member.free_bytes = request.free_bytes;
      row->member.load_permille = request.load_permille;
      row->member.tally = request.tally;
      return orders_of(request.node);
    }
  }
  reply.head = head(code == Code::kOk ? Code::kCancelled : code);
  return reply;
}

HeartbeatReply Directory::orders_of(NodeIndex node) const {
  const Row& row = rows_[node];
  return {.head = head(Code::kOk),
          .must_announce = row.must_announce,
          .next_sequence = row.next_sequence,
          .orders = {row.orders.begin(), row.orders.end()},
          .quota_digest = quotas_.digest(),
          .cluster_capacity_bytes = capacity_bytes_};
}

PlainReply Directory::apply(const LeaveRequest& request, uint64_t now_ms) {
  Code code = admit(request.epoch);
  if (code == Code::kOk) {
    if (find(request.node, request.incarnation) != nullptr) {
      expire(request.node, now_ms);
    } else {
      code = Code::kCancelled;
    }
  }
  return {head(code)};
}

void Directory::disconnected(SessionId session, uint64_t now_ms) {
  const auto bound = sessions_.find(session);
  if (bound != sessions_.end()) lose(bound->second, now_ms);
}

/// The node's connection is lost.
void Directory::lose(NodeIndex node, uint64_t now_ms) {
  Row& row = rows_[node];
  sessions_.erase(row.session);
  row.session = 0;
  ++members_version_;
  ++counts_.suspicions;
  replicas_.set_rank(node, rank_of(row));
  start_probe(node, now_ms);
}

void Directory::start_probe(NodeIndex node, uint64_t now_ms) {
  Row& row = rows_[node];
  row.probe = ++last_probe_;
  ++counts_.probes;
  row.is_probing = true;
  row.due_ms = now_ms + options_.probe_timeout_ms;
  effects_.push_back({.kind = EffectKind::kProbe,
                      .node = node,
                      .probe = row.probe,
                      .incarnation = row.member.incarnation,
                      .address = row.member.addresses.empty() ? "" : row.member.addresses[0]});
}

void Directory::probe_result(NodeIndex node, uint64_t probe, bool is_alive, uint64_t now_ms) {
  if (node >= rows_.size()) return;
  Row& row = rows_[node];
  if (!row.is_suspect() || !row.is_probing || row.probe != probe) return;
  if (!is_alive) {
    ++counts_.expiries;
    return expire(node, now_ms);
  }
  row.is_probing = false;
  row.due_ms = now_ms + options_.probe_interval_ms;
}

/// The node is gone, and its pages with it.
void Directory::expire(NodeIndex node, uint64_t now_ms) {
  Row& row = rows_[node];
  if (row.session != 0) sessions_.erase(row.session);
  (void)replicas_.forget_node(node);
  row.session = 0;
  row.is_gone = true;
  row.is_probing = false;
  row.gone_ms = now_ms;
  ++members_version_;
  count_capacity();
}

uint64_t Directory::advance(uint64_t now_ms) {
  uint64_t next_ms = replicas_.sweep(kSweepCount) ? now_ms : UINT64_MAX;
  count_capacity();
  for (NodeIndex node = 0; node < rows_.size(); ++node) {
    Row& row = rows_[node];
    if (row.session != 0 && now_ms >= row.heard_ms + options_.silence_max_ms) {
      effects_.push_back(
          {.kind = EffectKind::kCloseSession, .node = node, .session = row.session, .address = {}});
      lose(node, now_ms);
    }
    if (row.is_suspect() && now_ms >= row.due_ms) {
      if (row.is_probing) {
        ++counts_.expiries;
        expire(node, now_ms);
      } else {
        start_probe(node, now_ms);
      }
    }
    if (row.is_suspect()) next_ms = std::min(next_ms, row.due_ms);
    if (row.session != 0) next_ms = std::min(next_ms, row.heard_ms + options_.silence_max_ms);
  }
  return next_ms;
}

MembersReply Directory::apply(const MembersRequest& request) {
  MembersReply reply;
  reply.head = head(Code::kOk);
  reply.head.code = admit(request.epoch);
  if (reply.head.code == Code::kOk) {
    const std::vector<uint64_t> page_counts = replicas_.replica_counts();
    for (NodeIndex node = 0; node < rows_.size(); ++node) {
      const Row& row = rows_[node];
      reply.members.push_back({node, state_of(row), page_counts[node], row.member});
    }
  }
  reply.head = head(reply.head.code);
  return reply;
}

PlainReply Directory::apply(const DrainRequest& request) {
  Code code = admit(request.epoch);
  const auto known = names_.find(request.name);
  if (code == Code::kOk && (known == names_.end() || rows_[known->second].is_gone)) {
    code = Code::kNotFound;
  }
  if (code == Code::kOk && rows_[known->second].is_draining != request.is_on) {
    Row& row = rows_[known->second];
    if (row.orders.size() >= kOrdersMax) return {head(Code::kBusy)};
    row.is_draining = request.is_on;
    ++members_version_;
    replicas_.set_rank(known->second, rank_of(row));
    order(known->second, request.is_on ? OrderKind::kDrain : OrderKind::kEndDrain, {});
  }
  return {head(code)};
}

// ---------------------------------------------------------------- quotas

QuotasReply Directory::apply(const QuotasRequest& request) {
  QuotasReply reply;
  Code code = admit(request.epoch);
  const uint64_t digest = quotas_.digest();
  if (code == Code::kOk && request.node == kNoNode) {
    for (const TenantQuota& quota : request.quotas) {
      if (quota.epoch != 0) continue;
      if (!quotas_.set(quota.name, quota.size_bytes, epoch_)) code = Code::kNoSpace;
    }
    reply.uses = uses_of_all();
  } else if (code == Code::kOk) {
    Row* row = find(request.node, request.incarnation);
    if (row != nullptr) row->uses = request.uses;
    if (row == nullptr) code = Code::kCancelled;
    if (row != nullptr) (void)quotas_.merge(request.quotas, epoch_);
  }
  if (quotas_.digest() != digest) tell_quotas();
  reply.quotas = quotas_.all();
  reply.head = head(code);
  return reply;
}

void Directory::count_capacity() {
  capacity_bytes_ = 0;
  for (const Row& row : rows_) {
    if (!row.is_gone) capacity_bytes_ += row.member.capacity_bytes;
  }
}

void Directory::tell_quotas() {
  for (NodeIndex node = 0; node < rows_.size(); ++node) {
    if (rows_[node].session == 0) continue;
    effects_.push_back({.kind = EffectKind::kSendOrders,
                        .node = node,
                        .session = rows_[node].session,
                        .address = {}});
  }
}

std::vector<TenantUse> Directory::uses_of_all() const {
  std::map<std::string, TenantUse> sums;
  for (const Row& row : rows_) {
    if (row.is_gone) continue;
    for (const TenantUse& use : row.uses) {
      const bool is_known = sums.contains(use.name);
      if (!is_known && sums.size() >= kTenantUsesMax) continue;
      TenantUse& sum = sums[use.name];
      sum.name = use.name;
      sum.limit_bytes += use.limit_bytes;
      sum.used_bytes += use.used_bytes;
      sum.reserved_bytes += use.reserved_bytes;
      sum.page_count += use.page_count;
    }
  }
  std::vector<TenantUse> uses;
  for (auto& [name, sum] : sums) uses.push_back(std::move(sum));
  return uses;
}

}  // namespace hicache
