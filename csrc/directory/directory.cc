#include "directory/directory.h"

#include <algorithm>
#include <cassert>

namespace hicache {

Directory::Directory(const Options& options)
    : options_(options), replicas_({options.pages_max, options.holdings_max}) {
  assert(options.nodes_max <= kNodesMax);
}

void Directory::lead(uint64_t epoch) {
  epoch_ = epoch;
  ++members_version_;
  last_order_ = 0;
  replicas_ = ReplicaTable({options_.pages_max, options_.holdings_max});
  quotas_ = QuotaTable();  // The nodes know.
  rows_.clear();
  names_.clear();
  sessions_.clear();
  effects_.clear();
}

Code Directory::admit(uint64_t epoch) {
  if (epoch_ == 0) return Code::kNotLeader;
  if (epoch >= kEpochMax) return Code::kInvalidArgument;
  if (epoch <= epoch_) return Code::kOk;
  if (!options_.is_elected) {
    epoch_ = epoch + 1;
    return Code::kOk;
  }
  effects_.push_back({.kind = EffectKind::kHeardOfNewer, .epoch = epoch, .address = {}});
  return Code::kNotLeader;
}

Directory::Row* Directory::find(NodeIndex node, uint64_t incarnation) {
  if (node >= rows_.size()) return nullptr;
  Row& row = rows_[node];
  return !row.is_gone && row.member.incarnation == incarnation ? &row : nullptr;
}

NodeState Directory::state_of(const Row& row) const {
  if (row.is_gone) return NodeState::kGone;
  if (row.session == 0) return NodeState::kSuspect;
  if (row.is_draining) return NodeState::kDraining;
  if (row.has_announced) return NodeState::kLive;
  return row.is_announcing ? NodeState::kAnnouncing : NodeState::kJoining;
}

uint8_t Directory::rank_of(const Row& row) {
  if (row.session == 0) return kRankSuspect;
  return row.is_draining ? kRankDraining : kRankGood;
}

// ---------------------------------------------------------------- orders

/// Queues an order in place of one that it makes superfluous. The oldest of too many is dropped.
void Directory::order(NodeIndex node, OrderKind kind, const NamespaceDigest& digest) {
  Row& row = rows_[node];
  std::erase_if(row.orders, [&](const Order& old) {
    const bool clears = old.kind == OrderKind::kClearSpace;
    return kind == OrderKind::kClearSpace ? clears && old.digest == digest : !clears;
  });
  if (row.orders.size() >= kOrdersMax) row.orders.pop_front();
  row.orders.push_back({++last_order_, kind, digest});
  if (row.session == 0) return;
  effects_.push_back(
      {.kind = EffectKind::kSendOrders, .node = node, .session = row.session, .address = {}});
}

/// Whether the node is yet to clear the namespace.
bool Directory::must_clear(const Row& row, const NamespaceDigest& digest) {
  return std::any_of(row.orders.begin(), row.orders.end(), [&](const Order& order) {
    return order.kind == OrderKind::kClearSpace && order.digest == digest;
  });
}

void Directory::note_done(Row& row, uint64_t orders_done) {
  while (!row.orders.empty() && row.orders.front().number <= orders_done) row.orders.pop_front();
}

ClearSpaceReply Directory::apply(const ClearSpaceRequest& request) {
  ClearSpaceReply reply;
  Code code = admit(request.epoch);
  const Row* asker = find(request.node, request.incarnation);
  const auto is_full = [&](const Row& row) {
    return &row != asker && !row.is_gone && row.orders.size() >= kOrdersMax &&
           !must_clear(row, request.digest);
  };
  if (code == Code::kOk && std::any_of(rows_.begin(), rows_.end(), is_full)) code = Code::kBusy;
  if (code == Code::kOk) {
    reply.replica_count = replicas_.forget_space(request.digest);
    for (NodeIndex node = 0; node < rows_.size(); ++node) {
      // Also who is gone: it may come back with its SSD.
      if (&rows_[node] != asker) order(node, OrderKind::kClearSpace, request.digest);
    }
  }
  reply.head = head(code);
  return reply;
}

// ---------------------------------------------------------------- pages

BatchReply Directory::apply(const BatchRequest& request) {
  BatchReply reply;
  Code code = admit(request.epoch);
  if (code == Code::kOk) {
    Row* row = find(request.node, request.incarnation);
    code = row == nullptr ? Code::kCancelled : take(request.node, *row, request);
    if (row != nullptr) {
      reply.must_announce = row->must_announce;
      reply.next_sequence = row->next_sequence;
    }
  }
  reply.head = head(code);
  return reply;
}

/// Takes a batch if it is the next one, or begins an announcement.
Code Directory::take(NodeIndex node, Row& row, const BatchRequest& request) {
  ++counts_.batches;
  // An earlier leader's orders had the same numbers.
  if (request.epoch == epoch_) note_done(row, request.orders_done);
  if (request.sequence < row.next_sequence) {
    ++counts_.repeated_batches;
    return Code::kOk;
  }
  const bool begins = request.kind == BatchKind::kBegin;
  const bool is_next = request.sequence == row.next_sequence &&
                       (request.kind != BatchKind::kEnd || row.is_announcing);
  if (!begins && (row.must_announce || !is_next)) {
    if (!row.must_announce) ++counts_.lost_batches;
    row.must_announce = true;
    row.is_announcing = false;
    return Code::kOk;
  }
  row.next_sequence = request.sequence + 1;
  switch (request.kind) {
    case BatchKind::kBegin:
      row.must_announce = false;
      row.is_announcing = true;
      replicas_.begin_announcement(node);
      ++members_version_;
      return Code::kOk;
    case BatchKind::kEnd:
      row.is_announcing = false;
      row.has_announced = true;
      replicas_.end_announcement(node);
      ++counts_.announcements;
      ++members_version_;
      return Code::kOk;
    case BatchKind::kClearSpace:
      (void)replicas_.forget_space_of(node, request.digest);
      return Code::kOk;
    case BatchKind::kChanges:
      break;
  }
  counts_.changes += request.changes.size();
  if (must_clear(row, request.digest)) {
    // All of the namespace was hidden when the order was given.
    counts_.late_changes += request.changes.size();
    return Code::kOk;
  }
  const size_t refused_count = replicas_.apply(node, request.digest, request.changes);
  counts_.refused_changes += refused_count;
  return refused_count == 0 ? Code::kOk : Code::kNoSpace;
}

void Directory::apply(const LocateRequest& request, LocateReply& reply) {
  const Code code = admit(request.epoch);
  if (code == Code::kOk) {
    ++counts_.locate_requests;
    counts_.locate_keys += request.keys.size();
    counts_.locate_hits += replicas_.locate(request, reply);
  } else {
    reply.counts.clear();
    reply.replicas.clear();
  }
  reply.head = head(code);
}

// ---------------------------------------------------------------- figures

std::vector<std::pair<std::string, uint64_t>> Directory::stats() const {
  std::vector<uint64_t> states(kNodeStateCount);
  for (const Row& row : rows_) ++states[static_cast<size_t>(state_of(row))];
  return {{"epoch", epoch_},
          {"nodes_joining", states[0]},
          {"nodes_announcing", states[1]},
          {"nodes_live", states[2]},
          {"nodes_draining", states[3]},
          {"nodes_suspect", states[4]},
          {"nodes_gone", states[5]},
          {"pages", replicas_.page_count()},
          {"namespaces", replicas_.space_count()},
          {"holdings", replicas_.holding_count()},
          {"memory_bytes", replicas_.memory_size_bytes()},
          {"locate_requests", counts_.locate_requests},
          {"locate_keys", counts_.locate_keys},
          {"locate_hits", counts_.locate_hits},
          {"batches", counts_.batches},
          {"changes", counts_.changes},
          {"refused_changes", counts_.refused_changes},
          {"late_changes", counts_.late_changes},
          {"repeated_batches", counts_.repeated_batches},
          {"lost_batches", counts_.lost_batches},
          {"announcements", counts_.announcements},
          {"suspicions", counts_.suspicions},
          {"probes", counts_.probes},
          {"expiries", counts_.expiries}};
}

std::string Directory::check_row(NodeIndex node) const {
  const Row& row = rows_[node];
  const std::string name = "node " + std::to_string(node);
  const auto named = names_.find(row.member.name);
  if (named == names_.end() || named->second != node) return name + " is not found by its name";
  if (row.orders.size() > kOrdersMax) return name + " has too many orders";
  if (row.is_gone) return row.session == 0 ? "" : name + " is gone and connected";
  const auto bound = sessions_.find(row.session);
  const bool is_bound = bound != sessions_.end() && bound->second == node;
  if (is_bound != (row.session != 0)) return name + " is not found by its connection";
  return replicas_.rank_of(node) == rank_of(row) ? "" : name + " is ranked wrongly";
}

std::string Directory::check_invariants() const {
  if (names_.size() != rows_.size()) return "a name without a node, or a node without";
  size_t connected_count = 0;
  const std::vector<uint64_t> page_counts = replicas_.replica_counts();
  for (NodeIndex node = 0; node < rows_.size(); ++node) {
    if (std::string fault = check_row(node); !fault.empty()) return fault;
    connected_count += rows_[node].session != 0 ? 1 : 0;
    if (rows_[node].is_gone && page_counts[node] != 0) return "a node that is gone has pages";
  }
  if (connected_count != sessions_.size()) return "a connection without a node";
  return replicas_.check_invariants();
}

}  // namespace hicache
