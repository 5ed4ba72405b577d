// What a node asks of other nodes, and what it answers them.
#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "store/node.h"
#include "store/node_connection.h"

namespace hicache {

// ---------------------------------------------------------------- what it asks

/// Begins to ask peers for what a look-up or a lease lacks here; false: there is nothing to ask, or
/// the answer is there at once.
bool Node::ask_peers(Connection& connection, NodeOp op, uint64_t request_id, Payload payload) {
  if (!network_ || !network_->has_directory()) return false;
  KeysRequest& request = keys_request_;
  if (!decode(WireReader(payload), request) || !store_.has_namespace(request.index)) return false;
  const bool is_get = op == NodeOp::kLease;
  if (is_get && request.patience_ms == 0) return false;
  const uint64_t now_ms = monotonic_ms();
  std::vector<uint32_t> missing;
  RemoteTier::Question question =
      pages_.question_of(connection.session, request.index, request.keys,
                         is_get ? uint8_t{0} : request.flags, now_ms, missing);
  if (missing.empty()) return false;
  question.in_parts = is_get && (request.flags & kLeaseParts) != 0;
  RemoteTier& remote = network_->remote();
  if (!is_get && (request.flags & kLookupResident) != 0) {
    // Nobody waits for what others have, but it may be here the next time.
    (void)remote.begin_copy(std::move(question), now_ms);
    return false;
  }
  connection.remote_wait = is_get
                               ? remote.begin_get(std::move(question), request.patience_ms, now_ms)
                               : remote.begin_lookup(std::move(question), now_ms);
  if (is_get) {
    remote.hold(connection.remote_wait,
                store_.hold_present(connection.session, request.index, request.keys, now_ms));
  }
  connection.remote_op = op;
  connection.remote_request_id = request_id;
  connection.remote_missing = std::move(missing);
  connection.remote_payload.assign(payload.begin(), payload.end());
  remote_waiters_.push_back(connection.socket.get());
  return true;
}

/// Answers those whose pages are here, or will not come in time.
uint64_t Node::advance_network(uint64_t now_ms) {
  uint64_t next_ms = network_->advance(now_ms);
  if (!network_->has_directory()) return next_ms;
  for (const int fd : std::exchange(remote_waiters_, {})) {
    const auto found = connections_.find(fd);
    if (found == connections_.end() || found->second->remote_wait == 0) continue;
    if (!network_->remote().is_settled(found->second->remote_wait, now_ms, &next_ms)) {
      remote_waiters_.push_back(fd);
      continue;
    }
    ssd_due_ms_ = 0;  // Room was taken.
    if (!answer_remote(*found->second)) close_connection(fd);
  }
  grow_ahead();
  return network_->remote().is_due() ? now_ms : next_ms;
}

bool Node::answer_remote(Connection& connection) {
  const RemoteTier::Answer answer =
      network_->remote().finish(std::exchange(connection.remote_wait, 0));
  const std::vector<uint8_t> payload = std::exchange(connection.remote_payload, {});
  const bool is_removal =
      connection.remote_op == NodeOp::kRemove || connection.remote_op == NodeOp::kCommit;
  if (is_removal) return answer_removal(connection, answer, payload);
  begin_frame(reply_);
  if (connection.remote_op == NodeOp::kList) {
    WireWriter writer(reply_);
    encode(writer, answer.listed);
  } else if (connection.remote_op == NodeOp::kLease) {
    if (!handle_lease(connection, payload, answer.is_part)) return false;
    pages_.release(connection.session, answer.held, monotonic_ms());
  } else if (!answer_lookup(connection, payload, answer.found)) {
    return false;
  }
  end_frame(reply_, static_cast<uint16_t>(connection.remote_op) | kReplyBit,
            connection.remote_request_id);
  if (!send(connection, reply_)) return false;
  unfinished_.push_back(connection.socket.get());  // It may have sent more meanwhile.
  return true;
}

/// What is here, and of what was missing that which peers have promised.
bool Node::answer_lookup(Connection& connection, Payload payload, std::span<const uint8_t> found) {
  KeysRequest& request = keys_request_;
  if (!decode(WireReader(payload), request)) return false;
  pages_.lookup(connection.session, request.index, request.keys, request.flags,
                connection.remote_missing, found, monotonic_ms(), codes_);
  WireWriter(reply_).put_array(std::span<const Code>(codes_));
  return true;
}

bool Node::ask_to_remove(Connection& connection, NodeOp op, uint64_t request_id, Payload payload) {
  if (!network_ || !network_->has_directory()) return false;
  RemoteTier::Question question{.session = connection.session,
                                .space = kAnySpace,
                                .is_prefix = false,
                                .leases = false,
                                .keys = {},
                                .parents = {}};
  connection.remote_missing.clear();
  if (op == NodeOp::kRemove) {
    question.keys = keys_request_.keys;
    question.space = store_.space_of(keys_request_.index);
    for (uint32_t i = 0; i < question.keys.size(); ++i) connection.remote_missing.push_back(i);
  } else {
    // All of one namespace, but for a client that is not ours.
    for (const auto& [number, ref] : replaced_) {
      const PageRecord& record = store_.record(ref.page);
      if (question.space == kAnySpace) question.space = record.space;
      if (record.space != question.space) continue;
      question.keys.push_back(record.key);
      connection.remote_missing.push_back(number);
    }
  }
  if (question.keys.empty()) return false;
  question.parents.resize(question.keys.size());
  // The rest is for the SSDs.
  const uint64_t patience_ms = patience_ms_ == kPatient ? UINT32_MAX : patience_ms_ / 2;
  connection.remote_wait =
      network_->remote().begin_remove(std::move(question), patience_ms, monotonic_ms());
  connection.remote_op = op;
  connection.remote_request_id = request_id;
  connection.remote_payload.assign(payload.begin(), payload.end());
  connection.remote_codes = codes_;
  connection.remote_ticket = ticket_;
  remote_waiters_.push_back(connection.socket.get());
  return true;
}

bool Node::answer_removal(Connection& connection, const RemoteTier::Answer& answer,
                          Payload payload) {
  const NodeOp op = connection.remote_op;
  ticket_ = connection.remote_ticket;
  if (op == NodeOp::kRemove) {
    if (!decode(WireReader(payload), keys_request_)) return false;
    patience_ms_ = keys_request_.patience_ms;
    // Also what came from a peer just before that had removed it.
    for (const Key& key : keys_request_.keys)
      (void)pages_.remove(keys_request_.index, key, ticket_);
  } else {
    CommitRequest request;
    if (!decode(WireReader(payload), request)) return false;
    patience_ms_ = request.patience_ms;
  }
  codes_ = std::exchange(connection.remote_codes, {});
  for (size_t n = 0; n < connection.remote_missing.size(); ++n) {
    Code& code = codes_[connection.remote_missing[n]];
    if (n >= answer.in_doubt.size() || answer.in_doubt[n] != 0) {
      code = Code::kUnavailable;  // Done here; others may keep what they had.
    } else if (op == NodeOp::kRemove && answer.found[n] != 0) {
      code = Code::kOk;
    }
  }
  begin_frame(reply_);
  WireWriter(reply_).put_array(std::span<const Code>(codes_));
  end_frame(reply_, static_cast<uint16_t>(op) | kReplyBit, connection.remote_request_id);
  if (!this->answer(connection, op, connection.remote_request_id)) return false;
  unfinished_.push_back(connection.socket.get());
  return true;
}

void Node::add_network_stats(NodeStats& stats) const {
  if (cluster_) cluster_->add_stats(stats, monotonic_ms());
  if (!network_) return;
  stats.peers = network_->service().peer_count();
  stats.rejected_peers = network_->service().refused_count();
  stats.peer_leased_pages = pages_.counts().peer_leased_pages;
  stats.peer_leased_bytes = pages_.counts().peer_leased_bytes;
  if (network_->has_directory()) network_->remote().add_stats(stats);
  if (replicator_) replicator_->add_stats(stats);
}

// ---------------------------------------------------------------- what it answers

SessionIndex Node::open_peer() {
  ++peer_count_;
  idle_since_ms_ = 0;
  return store_.open_session();
}

void Node::close_peer(SessionIndex session) {
  store_.close_session(session, monotonic_ms());
  if (ssd_) ssd_->close_session(session);
  --peer_count_;
  note_left();
}

void Node::note_left() {
  if (client_count_ + peer_count_ == 0) idle_since_ms_ = std::max<uint64_t>(1, monotonic_ms());
}

void Node::lookup_for_peer(SessionIndex session, const PeerKeysRequest& request,
                           std::vector<Code>& codes) {
  pages_.lookup_for_peer(session, request, monotonic_ms(), codes);
}

void Node::lease_for_peer(SessionIndex session, const PeerKeysRequest& request,
                          WireWriter& writer) {
  pages_.lease_for_peer(session, request, monotonic_ms(), writer);
}

void Node::copy_for_peer(const PeerCopyRequest& request, std::vector<Code>& codes) {
  const bool is_leaving = cluster_ && cluster_->membership().is_draining();
  Result<NamespaceIndex> index =
      is_leaving ? Result<NamespaceIndex>(Status(Code::kBusy, "this node is about to leave"))
                 : open_namespace(request.digest, request.description);
  if (index.ok()) return pages_.copy_for_peer(index.value(), request, monotonic_ms(), codes);
  codes.assign(request.keys.size(), index.status().code());
}

void Node::remove_for_peer(const PeerKeysRequest& request, std::vector<Code>& codes) {
  pages_.remove_for_peer(request, codes);
}

}  // namespace hicache
