#include "transfer/rdma/rdma_path.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/bytes.h"

namespace hicache {
namespace {

// Large enough that a request costs nothing beside its bytes, small enough to spread.
constexpr uint64_t kPartSizeMax = kMiB;
// More under way on one queue pair gains nothing, and makes a flush longer.
constexpr uint64_t kLaneSizeMax = 8 * kMiB;
constexpr size_t kPostMax = 16;
constexpr uint64_t kPostSizeMax = 256 * kKiB;
constexpr int kPollMax = 32;
// Before others whose completions come to the same thread have their turn.
constexpr int kPollRounds = 8;
// Within kDeadlineGraceMs, with time left to destroy what does not flush.
constexpr uint64_t kFlushNs = 120'000'000;
constexpr uint64_t kDestroyAgainNs = 20'000'000;
constexpr double kFixedNs = 5'000;
// Other pairs of rails are there for the case that the matching ones are not.
constexpr double kMismatchNs = 500'000;

std::string failure_text(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
      return "the peer does not answer: it is gone, or the link to it is down";
    case IBV_WC_REM_ACCESS_ERR:
      return "the peer refused it: outside what it has registered (any more)";
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_INV_RD_REQ_ERR:
      return "the peer's device refused it";
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
      return "the device could not use the local memory: was it unmapped while registered?";
    case IBV_WC_WR_FLUSH_ERR:
      return "the device gave the queue pair up";
    default:
      return "the device failed";
  }
}

bool is_peers_refusal(ibv_wc_status status) {
  return status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_INV_REQ_ERR ||
         status == IBV_WC_REM_INV_RD_REQ_ERR;
}

bool is_local_refusal(ibv_wc_status status) {
  return status == IBV_WC_LOC_PROT_ERR || status == IBV_WC_LOC_LEN_ERR ||
         status == IBV_WC_LOC_QP_OP_ERR || status == IBV_WC_LOC_ACCESS_ERR;
}

uint64_t part_size_max(const RdmaRail& rail) {
  return std::max<uint64_t>(1, std::min(kPartSizeMax, rail.limits().message_size_max));
}

}  // namespace

RdmaPathCore::RdmaPathCore(Ends ends, Services services, std::shared_ptr<const PeerKeys> peer_keys)
    : ends_(std::move(ends)),
      services_(services),
      name_(ends_.rail->name() + " -> " + ends_.remote.name),
      lane_count_(ends_.rail->settings().queue_pairs),
      lane_depth_(std::min<size_t>(ends_.rail->settings().queue_depth,
                                   static_cast<size_t>(ends_.rail->limits().requests_max))),
      ops_(2 * lane_count_ * lane_depth_, part_size_max(*ends_.rail)),
      pins_(2 * lane_count_ * lane_depth_),
      peer_keys_(std::move(peer_keys)) {}

Status RdmaPathCore::prepare() {
  client_id_ = ends_.rail->add_client(weak_from_this());
  // Lanes that are being flushed count beside those that replace them.
  const size_t entries = std::min<size_t>(4 * lane_count_ * lane_depth_,
                                          static_cast<size_t>(ends_.rail->limits().entries_max));
  const Verbs& verbs = ends_.rail->verbs();
  queue_ = verbs.create_cq(ends_.rail->domain()->context, static_cast<int>(entries),
                           reinterpret_cast<void*>(client_id_), ends_.rail->channel());
  if (queue_ == nullptr) {
    return ends_.rail->error(Code::kNoSpace,
                             "ibv_create_cq(" + std::to_string(entries) + " entries)", errno,
                             "lower queue_depth or queue_pairs, or raise `ulimit -l`");
  }
  if (const int rc = verbs.request_notify(queue_); rc != 0) {
    return ends_.rail->error(Code::kIo, "ibv_req_notify_cq", rc);
  }
  return Status();
}

RdmaPathCore::~RdmaPathCore() {
  ends_.rail->remove_client(client_id_);
  lanes_.clear();
  retired_.clear();
  if (queue_ != nullptr) (void)ends_.rail->verbs().destroy_cq(queue_);
}

PathCost RdmaPathCore::cost() const {
  const uint32_t speed_mbps =
      std::max(1U, std::min(ends_.rail->describe().speed_mbps, ends_.remote.speed_mbps));
  return {kFixedNs + (ends_.is_matching ? 0 : kMismatchNs), 8'000.0 / speed_mbps};
}

uint64_t RdmaPath::slice_size_bytes() const {
  return kPartSizeMax;
}

Status RdmaPathCore::named(Code code, const std::string& what) const {
  return Status(code, "RDMA " + name_ + ": " + what);
}

void RdmaPathCore::update(std::shared_ptr<const PeerKeys> peer_keys) {
  const std::lock_guard lock(mutex_);
  peer_keys_ = std::move(peer_keys);
}

// ---- ops

size_t RdmaPathCore::submit(std::span<const Op> ops) {
  const uint64_t now_ns = monotonic_ns();
  last_used_ns_.store(now_ns, std::memory_order_relaxed);
  uint64_t wake_ns = UINT64_MAX;
  std::unique_lock lock(mutex_);
  size_t taken = 0;
  for (; taken < ops.size() && ops_.has_room() && state_ != State::kClosed; ++taken) {
    const Op& op = ops[taken];
    if (Status status = admit(op, now_ns); !status.ok() || op.size == 0) {
      over_.push_back({op.token, std::move(status)});
    } else {
      wake_ns = std::min(wake_ns, op.deadline_ns);
    }
  }
  if (wake_ns != UINT64_MAX) ends_.rail->loop().wake_by(wake_ns);
  pump();
  if (state_ == State::kIdle && !ops_.empty()) want_connection();
  deliver(lock);
  return taken;
}

/// Puts the op into the queue, unless it is of 0 bytes; otherwise says how it ends at once.
Status RdmaPathCore::admit(const Op& op, uint64_t now_ns) {
  if (state_ == State::kDown) return why_down_;
  if (op.deadline_ns <= now_ns) return named(Code::kTimeout, "the deadline has passed already");
  const bool writes = op.direction == Direction::kWrite;
  Result<KeyedRange> remote =
      peer_keys_->find(op.remote_buffer, ends_.remote_index, op.remote_address, op.size, writes);
  if (!remote.ok()) return named(remote.status().code(), remote.status().message());
  Result<MemoryKeys::Local> local =
      services_.keys.use(op.local_buffer, ends_.rail_index, op.local_address, op.size);
  if (!local.ok()) return named(local.status().code(), local.status().message());
  if (op.size == 0) return Status();
  const OpSlot slot = ops_.add(op, std::move(local.value().range), std::move(remote.value()));
  pins_[slot] = std::move(local.value().pin);
  return Status();
}

Lane* RdmaPathCore::roomiest_lane() {
  Lane* best = nullptr;
  for (const auto& lane : lanes_) {
    const bool has_room = lane->state == Lane::State::kUp && lane->count() < lane_depth_ &&
                          lane->size_bytes() < kLaneSizeMax;
    if (!has_room) continue;
    if (best == nullptr || lane->size_bytes() < best->size_bytes()) best = lane.get();
  }
  return best;
}

void RdmaPathCore::pump() {
  while (state_ == State::kUp && ops_.has_work()) {
    Lane* lane = roomiest_lane();
    if (lane == nullptr) return;
    post_some(*lane);
  }
}

void RdmaPathCore::post_some(Lane& lane) {
  const size_t count_max =
      std::min({kPostMax, lane_depth_ - lane.count(), std::max<size_t>(1, lane_depth_ / 4)});
  ibv_send_wr requests[kPostMax];
  ibv_sge ranges[kPostMax];
  WorkPart parts[kPostMax];
  size_t count = 0;
  for (uint64_t size = 0; count < count_max && size < kPostSizeMax && ops_.has_work(); ++count) {
    const WorkPart part = ops_.take();
    const WorkOrder order = ops_.order(part);
    const bool writes = order.direction == Direction::kWrite;
    size += part.size;
    parts[count] = part;
    ranges[count] = {order.local_address, static_cast<uint32_t>(part.size), order.local_key};
    ibv_send_wr& request = requests[count];
    std::memset(&request, 0, sizeof(request));
    request.wr_id = lane.request_id(count);
    request.sg_list = &ranges[count];
    request.num_sge = 1;
    request.opcode = writes ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ;
    // Inline is copied by the CPU.
    if (writes && part.size <= lane.pair.inline_bytes() && !pins_[part.slot].is_on_device()) {
      request.send_flags = IBV_SEND_INLINE;
    }
    request.wr.rdma.remote_addr = order.remote_address;
    request.wr.rdma.rkey = order.remote_key;
    if (count > 0) requests[count - 1].next = &request;
  }
  requests[count - 1].send_flags |= IBV_SEND_SIGNALED;
  ibv_send_wr* bad = nullptr;
  const int rc = lane.pair.post(requests, &bad);
  const size_t posted = rc == 0 ? count : bad != nullptr ? static_cast<size_t>(bad - requests) : 0;
  for (size_t i = 0; i < posted; ++i) lane.push(parts[i]);
  if (rc == 0) return;
  // Those that were posted do not ask for a completion: only a flush brings them back.
  go_down(ends_.rail->error(Code::kUnavailable,
                            "ibv_post_send of " + std::to_string(count) + " requests, " +
                                std::to_string(posted) + " posted",
                            rc < 0 ? errno : rc));
  for (size_t i = posted; i < count; ++i) part_lost(parts[i]);
}

void RdmaPathCore::finish(OpSlot slot) {
  pins_[slot].reset();
  over_.push_back(ops_.remove(slot));
}

void RdmaPathCore::fail_op(OpSlot slot, const Status& status) {
  if (ops_.fail(slot, status)) finish(slot);
}

void RdmaPathCore::part_done(Lane& lane, const WorkPart& part) {
  if (part.slot == kPing) {
    ++*lane.pings_done;
    if (lane.state == Lane::State::kJoining) lane.state = Lane::State::kUp;
    changed_.notify_all();
    return;
  }
  const bool writes = ops_.order(part).direction == Direction::kWrite;
  (writes ? services_.counters.bytes_written : services_.counters.bytes_read)
      .fetch_add(part.size, std::memory_order_relaxed);
  if (ops_.part_done(part)) finish(part.slot);
}

void RdmaPathCore::part_lost(const WorkPart& part) {
  if (part.slot != kPing && ops_.part_lost(part)) finish(part.slot);
}

// ---- completions

void RdmaPathCore::on_completions() {
  const Verbs& verbs = ends_.rail->verbs();
  (void)verbs.request_notify(queue_);  // Before polling: what comes after it brings an event.
  ibv_wc completions[kPollMax];
  for (int round = 0; round < kPollRounds; ++round) {
    const int count = verbs.poll_cq(queue_, kPollMax, completions);
    if (count <= 0) return;
    std::unique_lock lock(mutex_);
    for (int i = 0; i < count; ++i) on_completion(completions[i]);
    retire_broken();
    pump();
    deliver(lock);
  }
  ends_.rail->loop().post([self = weak_from_this()] {
    if (const auto living = self.lock()) living->on_completions();
  });
}

void RdmaPathCore::on_completion(const ibv_wc& completion) {
  Lane* lane = find_lane(static_cast<uint32_t>(completion.wr_id >> 32));
  // Of a queue pair that was destroyed, or nothing of ours.
  if (lane == nullptr) return;
  const size_t count = lane->count_through(completion.wr_id);
  if (count == 0) return;
  if (completion.status == IBV_WC_SUCCESS) {
    for (size_t i = 0; i < count; ++i) part_done(*lane, lane->pop());
    return;
  }
  // What came before the failed one is very likely done; asking again costs less than a proof.
  std::vector<WorkPart> parts;
  for (size_t i = 0; i < count; ++i) parts.push_back(lane->pop());
  on_failure(*lane, completion, parts.back());
  for (const WorkPart& part : parts) part_lost(part);
}

void RdmaPathCore::on_failure(Lane& lane, const ibv_wc& completion, const WorkPart& culprit) {
  if (lane.state == Lane::State::kBroken) return;
  std::string what = failure_text(completion.status) + " (completion status " +
                     std::to_string(completion.status) + ", vendor " +
                     std::to_string(completion.vendor_err) + ")";
  const bool is_ops_fault =
      is_peers_refusal(completion.status) || is_local_refusal(completion.status);
  if (!is_ops_fault || culprit.slot == kPing) {
    const Status status = named(Code::kUnavailable, what);
    break_lane(lane, status);  // It may be one that joins a path that is down.
    go_down(status);
    return;
  }
  const Code code = is_peers_refusal(completion.status) ? Code::kInvalidArgument : Code::kIo;
  const Status status = named(code, what);
  // Not over yet: the culprit counts as under way.
  (void)ops_.fail(culprit.slot, status);
  break_lane(lane, status);
}

void RdmaPathCore::break_lane(Lane& lane, const Status& why) {
  if (lane.state == Lane::State::kBroken) return;
  lane.state = Lane::State::kBroken;
  why_broken_ = why;
  services_.counters.lanes_broken.fetch_add(1, std::memory_order_relaxed);
  changed_.notify_all();
  lane.flush_by_ns = monotonic_ns() + (lane.pair.flush() ? kFlushNs : 0);
  ends_.rail->loop().wake_by(lane.flush_by_ns);
}

/// Lanes that nothing is under way on any more go.
void RdmaPathCore::retire_broken() {
  const auto is_over = [](const auto& lane) {
    return lane->state == Lane::State::kBroken && lane->count() == 0;
  };
  bool any = false;
  for (auto& lane : lanes_) {
    if (!is_over(lane)) continue;
    retired_.push_back(std::move(lane));
    any = true;
  }
  if (!any) return;
  std::erase(lanes_, nullptr);
  changed_.notify_all();
  if (state_ == State::kUp) want_connection();
}

void RdmaPathCore::fail_all(const Status& status) {
  for (const OpSlot slot : ops_.slots()) fail_op(slot, status);
  for (const auto& lane : lanes_) break_lane(*lane, status);
}

void RdmaPathCore::go_down(const Status& why) {
  if (state_ == State::kDown || state_ == State::kClosed) return;
  state_ = State::kDown;
  why_down_ = why;
  services_.counters.paths_lost.fetch_add(1, std::memory_order_relaxed);
  fail_all(why);
}

void RdmaPathCore::on_rail_lost(const Status& status) {
  std::unique_lock lock(mutex_);
  if (state_ != State::kIdle) go_down(named(Code::kUnavailable, status.message()));
  retire_broken();
  deliver(lock);
}

// ---- deadlines

uint64_t RdmaPathCore::on_time(uint64_t now_ns) {
  std::unique_lock lock(mutex_);
  for (const OpSlot slot : ops_.expired(now_ns)) {
    const Status status = named(Code::kTimeout, std::to_string(ops_.size_of(slot)) +
                                                    " bytes were not moved by the deadline");
    services_.counters.timeouts.fetch_add(1, std::memory_order_relaxed);
    for (const auto& lane : lanes_) {
      if (lane->carries(slot)) break_lane(*lane, status);
    }
    fail_op(slot, status);
  }
  for (const auto& lane : lanes_) {
    if (lane->state != Lane::State::kBroken || lane->flush_by_ns > now_ns) continue;
    // It does not flush. Once it is destroyed the device has let go of all memory; until then no op
    // of it may be completed.
    services_.counters.flushes_overdue.fetch_add(1, std::memory_order_relaxed);
    lane->flush_by_ns = now_ns + kDestroyAgainNs;
    if (!lane->pair.destroy()) continue;
    while (lane->count() > 0) part_lost(lane->pop());
  }
  retire_broken();
  pump();
  uint64_t next_ns = ops_.next_deadline_ns();
  for (const auto& lane : lanes_) next_ns = std::min(next_ns, lane->flush_by_ns);
  deliver(lock);
  return next_ns;
}

/// Tells the sink and destroys queue pairs, both without the lock.
void RdmaPathCore::deliver(std::unique_lock<std::mutex>& lock) {
  if (over_.empty() && retired_.empty()) return;
  ++deliveries_;
  while (!over_.empty() || !retired_.empty()) {
    std::vector<OpQueue::Over> over;
    std::vector<std::unique_ptr<Lane>> retired;
    over.swap(over_);
    retired.swap(retired_);
    lock.unlock();
    retired.clear();
    for (OpQueue::Over& one : over) services_.sink.complete(one.token, std::move(one.status));
    lock.lock();
  }
  --deliveries_;
  changed_.notify_all();
}

}  // namespace hicache
