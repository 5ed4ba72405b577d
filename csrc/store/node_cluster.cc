// What a node does as one of several: it belongs to their cluster, and clears what they clear.
#include <algorithm>
#include <numeric>
#include <utility>

#include "base/clock.h"
#include "store/node.h"
#include "store/node_connection.h"

namespace hicache {
namespace {

constexpr uint64_t kDrainOrderMs = 1000;  // Until it is asked for again.

}  // namespace

NodeTally Node::tally() const {
  const NodeStats now = stats();
  const DurationHistogram& gets = durations_[static_cast<size_t>(NodeOp::kLease)];
  return {.ssd_size_bytes = now.ssd_size_bytes,
          .ssd_used_bytes = now.ssd_used_bytes,
          .found_pages = now.lookup_hit_pages + now.remote_found_pages,
          // Looked up in vain here, but found elsewhere.
          .missed_pages =
              now.lookup_miss_pages - std::min(now.lookup_miss_pages, now.remote_found_pages),
          .read_bytes = now.get_hit_bytes,
          .ssd_read_bytes = now.ssd_hit_bytes,
          .remote_read_bytes = now.remote_fetched_bytes,
          .evicted_pages = now.evicted_pages,
          .get_count = std::accumulate(gets.counts.begin(), gets.counts.end(), uint64_t{0}),
          .get_ns = gets.sum_ns};
}

uint64_t Node::clear_ordered(const NamespaceDigest& digest) {
  uint64_t ticket = 0;
  if (!ssd_ && !store_.find_namespace(digest)) return ticket;
  const Result<NamespaceIndex> index = open_namespace(digest, "");
  if (index.ok()) (void)pages_.clear(index.value(), ticket);
  return ticket;
}

uint64_t Node::advance_copies(uint64_t now_ms) {
  const Membership& membership = cluster_->membership();
  const bool is_draining = membership.is_draining();
  replicator_->note_members(membership.epoch(), membership.members_version());
  replicator_->set_draining(is_draining);
  uint64_t next_ms = replicator_->advance(now_ms);
  if (drain_ != DrainState::kAsked) return next_ms;
  DirectoryLine& directory = cluster_->directory();
  const bool has_master = directory.connection_number() != 0;
  if (has_master && !is_draining && now_ms >= drain_order_ms_) {
    drain_order_ms_ = now_ms + kDrainOrderMs;
    directory.ask<PlainReply>(DrainRequest{0, true, options_.cluster->name},
                              Deadline::after_ms(kDrainOrderMs), [](Result<PlainReply>) {});
  }
  if (!has_master || replicator_->is_alone() || replicator_->is_drained()) {
    const std::lock_guard lock(mutex_);  // Or the waiter could miss it.
    drain_ = has_master && replicator_->is_drained() ? DrainState::kDone : DrainState::kNobody;
    changed_.notify_all();
    return next_ms;
  }
  return is_draining ? next_ms : std::min(next_ms, drain_order_ms_);
}

void Node::clear_elsewhere(Connection& connection, const NamespaceDigest& digest) {
  connection.clearing = std::make_shared<std::optional<Code>>();
  connection.patient_until_ms =
      patience_ms_ == kPatient ? UINT64_MAX : monotonic_ms() + patience_ms_;
  cluster_->clear_elsewhere(digest, patience_ms_,
                            [outcome = connection.clearing](Code code) { *outcome = code; });
}

void Node::answer_clears() {
  for (const int fd : std::exchange(clear_waiters_, {})) {
    const auto found = connections_.find(fd);
    if (found == connections_.end() || !found->second->clearing) continue;
    if (!found->second->clearing->has_value()) {
      clear_waiters_.push_back(fd);
    } else if (!answer_clear(*found->second)) {
      close_connection(fd);
    }
  }
}

bool Node::answer_clear(Connection& connection) {
  const Code code = **std::exchange(connection.clearing, nullptr);
  reply_ = std::exchange(connection.clear_reply, {});
  ticket_ = connection.clear_ticket;
  unfinished_.push_back(connection.socket.get());  // It may have sent more meanwhile.
  if (code != Code::kOk) {
    return send(connection, doubtful_reply(NodeOp::kClear, connection.clear_request_id, code));
  }
  const uint64_t now_ms = monotonic_ms();
  const uint64_t until_ms = connection.patient_until_ms;
  patience_ms_ = until_ms == UINT64_MAX
                     ? kPatient
                     : static_cast<uint32_t>(std::max(until_ms, now_ms) - now_ms);
  return answer(connection, NodeOp::kClear, connection.clear_request_id);
}

}  // namespace hicache
