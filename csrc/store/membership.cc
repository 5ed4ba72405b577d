#include "store/membership.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace hicache {
namespace {

constexpr uint64_t kJoinAgainMs = 50;       // After what may pass at once.
constexpr uint64_t kRefusedAgainMs = 2000;  // After what somebody has to put right.
constexpr uint64_t kBatchesAgainMs = 50;
constexpr uint64_t kDoneLookMs = 20;  // Whether an order is done.
constexpr uint32_t kHeartbeatMinMs = 10;
constexpr uint32_t kHeartbeatMaxMs = 60'000;
constexpr uint64_t kPermille = 1000;

}  // namespace

Membership::Membership(Options options, Surroundings surroundings)
    : options_(std::move(options)), surroundings_(std::move(surroundings)) {}

uint64_t Membership::advance(uint64_t now_ms) {
  now_ms_ = now_ms;
  look_at_connection();
  note_done();
  uint64_t next_ms = UINT64_MAX;
  if (connection_ != 0 && !is_joined_ && !is_joining_) {
    if (now_ms >= join_at_ms_) {
      join(now_ms);
    } else {
      next_ms = join_at_ms_;
    }
  }
  if (!is_joined_) return next_ms;
  if (!is_heartbeat_out_ && now_ms >= heartbeat_at_ms_) send_heartbeat(now_ms);
  if (!is_heartbeat_out_) next_ms = heartbeat_at_ms_;
  send_batches(now_ms);
  if (surroundings_.announcer.is_due() && bulk_connection_ != 0) {
    next_ms = std::min(next_ms, std::max(now_ms, batches_at_ms_));
  }
  if (!undone_.empty()) next_ms = std::min(next_ms, now_ms + kDoneLookMs);
  return next_ms;
}

// ---------------------------------------------------------------- joining

void Membership::look_at_connection() {
  const uint64_t connection = surroundings_.life.connection_number();
  if (connection == connection_) return;
  connection_ = connection;
  is_joining_ = false;
  join_at_ms_ = 0;
  leave_seat();
}

void Membership::leave_seat() {
  is_joined_ = false;
  is_heartbeat_out_ = false;
}

void Membership::join(uint64_t now_ms) {
  is_joining_ = true;
  JoinRequest request{0, options_.member};
  request.member.capacity_bytes = surroundings_.capacity_bytes();
  request.member.free_bytes = surroundings_.free_bytes();
  request.member.load_permille = load_permille(now_ms);
  request.member.tally = surroundings_.tally();
  surroundings_.life.ask<JoinReply>(
      std::move(request), Deadline::after_ms(options_.call_timeout_ms),
      [this, connection = connection_](Result<JoinReply> reply) {
        surroundings_.post(
            [this, connection, reply = std::move(reply)] { joined(connection, reply); });
      });
}

void Membership::joined(uint64_t connection, const Result<JoinReply>& reply) {
  look_at_connection();
  if (connection != connection_ || !is_joining_) return;
  is_joining_ = false;
  join_at_ms_ = now_ms_ + kJoinAgainMs;
  if (!reply.ok()) return;  // Of a connection that ends, or a master that is busy.
  const JoinReply& answer = reply.value();
  if (answer.head.code != Code::kOk) {
    join_at_ms_ = now_ms_ + kRefusedAgainMs;
    surroundings_.on_notice("the cluster refuses this node (" +
                            std::string(code_name(answer.head.code)) + "): " + answer.message);
    return;
  }
  ++counts_.joins;
  is_joined_ = true;
  node_ = answer.node;
  heartbeat_interval_ms_ =
      std::clamp(answer.heartbeat_interval_ms, kHeartbeatMinMs, kHeartbeatMaxMs);
  heartbeat_at_ms_ = 0;  // It brings the orders that were given meanwhile.
  if (answer.head.epoch != epoch_) {
    // Another leader: it numbers its orders itself, and knows of none that an earlier one gave.
    epoch_ = answer.head.epoch;
    orders_taken_ = orders_done_ = 0;
    is_draining_ = false;
    for (Undone& undone : undone_) undone.order = 0;
  }
  surroundings_.announcer.joined(answer.must_announce, answer.next_sequence);
}

// ---------------------------------------------------------------- heartbeats and orders

uint32_t Membership::load_permille(uint64_t now_ms) {
  const uint64_t busy_ns = surroundings_.busy_ns();
  const uint64_t passed_ns = (now_ms - std::exchange(load_since_ms_, now_ms)) * 1'000'000;
  const uint64_t spent_ns = busy_ns - std::exchange(load_since_busy_ns_, busy_ns);
  if (passed_ns == 0) return 0;
  return static_cast<uint32_t>(std::min(kPermille, spent_ns / (passed_ns / kPermille)));
}

void Membership::send_heartbeat(uint64_t now_ms) {
  is_heartbeat_out_ = true;
  heartbeat_at_ms_ = now_ms + heartbeat_interval_ms_;
  surroundings_.life.ask<HeartbeatReply>(
      HeartbeatRequest{0, node_, options_.member.incarnation, surroundings_.capacity_bytes(),
                       surroundings_.free_bytes(), load_permille(now_ms), surroundings_.tally()},
      Deadline::after_ms(options_.call_timeout_ms),
      [this, connection = connection_](Result<HeartbeatReply> reply) {
        surroundings_.post(
            [this, connection, reply = std::move(reply)] { answered(connection, reply); });
      });
}

void Membership::answered(uint64_t connection, const Result<HeartbeatReply>& reply) {
  look_at_connection();
  if (connection != connection_ || !is_joined_) return;
  is_heartbeat_out_ = false;
  if (!reply.ok()) return;  // The next one will tell.
  if (reply.value().head.code != Code::kOk) return leave_seat();
  members_version_ = reply.value().head.members_version;
  if (reply.value().must_announce) surroundings_.announcer.announce_again();
  take_orders(reply.value());
}

void Membership::take_orders(const HeartbeatReply& reply) {
  look_at_connection();
  if (!is_joined_ || reply.head.code != Code::kOk) return;
  if (surroundings_.on_heard) surroundings_.on_heard(reply);
  for (const Order& order : reply.orders) {
    if (order.number > orders_taken_) {
      carry_out(order);
    } else if (order.number <= orders_done_) {
      surroundings_.announcer.want_batch();  // It does not know yet.
    }
  }
}

void Membership::carry_out(const Order& order) {
  ++counts_.orders;
  orders_taken_ = order.number;
  uint64_t ticket = 0;
  switch (order.kind) {
    case OrderKind::kClearSpace:
      ticket = surroundings_.clear(order.digest);
      break;
    case OrderKind::kDrain:
      is_draining_ = true;
      break;
    case OrderKind::kEndDrain:
      is_draining_ = false;
      break;
  }
  undone_.push_back({order.number, ticket});
  surroundings_.announcer.set_paused(true);
}

void Membership::note_done() {
  if (undone_.empty()) return;
  while (!undone_.empty() && surroundings_.is_done(undone_.front().ticket)) {
    orders_done_ = std::max(orders_done_, undone_.front().order);
    undone_.pop_front();
  }
  if (!undone_.empty()) return;
  surroundings_.announcer.set_paused(false);
  surroundings_.announcer.want_batch();
}

// ---------------------------------------------------------------- batches

void Membership::send_batches(uint64_t now_ms) {
  Announcer& announcer = surroundings_.announcer;
  const uint64_t connection = surroundings_.bulk.connection_number();
  if (connection != bulk_connection_) {
    bulk_connection_ = connection;
    batches_at_ms_ = 0;
    announcer.resend();
  }
  if (connection == 0 || now_ms < batches_at_ms_) return;
  while (const Announcer::Batch* batch = announcer.next(now_ms)) {
    const uint64_t sequence = batch->sequence;
    announcer.sent(sequence);
    surroundings_.bulk.ask<BatchReply>(
        BatchRequest{0, node_, options_.member.incarnation, sequence, orders_done_, batch->kind,
                     batch->digest, batch->changes},
        Deadline::after_ms(options_.call_timeout_ms), [this, sequence](Result<BatchReply> reply) {
          surroundings_.post(
              [this, sequence, reply = std::move(reply)] { taken(sequence, reply); });
        });
  }
}

void Membership::taken(uint64_t sequence, const Result<BatchReply>& reply) {
  if (!reply.ok()) {
    surroundings_.announcer.resend();
    batches_at_ms_ = now_ms_ + kBatchesAgainMs;
    return;
  }
  const BatchReply& answer = reply.value();
  if (answer.head.code == Code::kOk || answer.head.code == Code::kNoSpace) {
    counts_.refused_batches += answer.head.code == Code::kNoSpace;
    surroundings_.announcer.taken(sequence, answer.must_announce, answer.next_sequence);
    return;
  }
  // Who was asked does not know this node: it joins again, and is told what is wanted then.
  surroundings_.announcer.resend();
  batches_at_ms_ = now_ms_ + kBatchesAgainMs;
  if (is_joined_) {
    leave_seat();
    join_at_ms_ = now_ms_ + kJoinAgainMs;
  }
}

}  // namespace hicache
