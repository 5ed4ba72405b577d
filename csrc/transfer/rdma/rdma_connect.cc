// How a path connects, is tried, gives up its connection and closes.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "transfer/rdma/rdma_path.h"

namespace hicache {
namespace {

constexpr uint64_t kConnectNs = 1'000'000'000;
constexpr uint64_t kProbeNs = 950'000'000;
constexpr uint64_t kFarewellNs = 80'000'000;

using Clock = std::chrono::steady_clock;

Clock::time_point time_of(uint64_t deadline_ns) {
  return Clock::time_point(std::chrono::nanoseconds(deadline_ns));  // Both are CLOCK_MONOTONIC.
}

}  // namespace

Lane* RdmaPathCore::find_lane(uint32_t serial) {
  for (const auto& lane : lanes_) {
    if (lane->serial() == serial) return lane.get();
  }
  return nullptr;
}

size_t RdmaPathCore::lanes_up() const {
  return static_cast<size_t>(std::ranges::count_if(
      lanes_, [](const auto& lane) { return lane->state == Lane::State::kUp; }));
}

/// Locked. Connects what is missing, from a thread that may block.
void RdmaPathCore::want_connection() {
  if (is_connecting_ || state_ == State::kClosed) return;
  is_connecting_ = run_job(Errands::Urgency::kAwaited, [this] { connect_wanted(); });
  if (is_connecting_) return;
  if (state_ == State::kIdle) state_ = State::kUp;  // So that it can go down.
  go_down(named(Code::kUnavailable, "no thread could be started that connects: `ulimit -u`?"));
}

/// Locked. False: no thread is to be had.
bool RdmaPathCore::run_job(Errands::Urgency urgency, std::function<void()> job) {
  ++jobs_;
  // The peer is the owner: one that does not answer holds up few of the threads.
  const bool is_begun = ends_.rail->connector().add(
      &services_.control, urgency, [self = shared_from_this(), work = std::move(job)] {
        work();
        const std::lock_guard lock(self->mutex_);
        --self->jobs_;
        self->changed_.notify_all();
      });
  if (!is_begun) --jobs_;
  return is_begun;
}

void RdmaPathCore::connect_wanted() {
  uint64_t until_ns = monotonic_ns() + kConnectNs;
  {
    const std::lock_guard lock(mutex_);
    until_ns = std::max(until_ns, connect_until_ns_);
  }
  (void)connect_and_note(until_ns);
}

/// Requires: is_connecting_, set by the caller.
Status RdmaPathCore::connect_and_note(uint64_t deadline_ns) {
  Status status = services_.connections.admit(shared_from_this());
  if (status.ok()) status = connect(deadline_ns);
  auto& counters = services_.counters;
  (status.ok() ? counters.connects : counters.connect_failures)
      .fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(mutex_);
  is_connecting_ = false;
  if (state_ == State::kClosed) {
    status = named(Code::kCancelled, "the path was closed");
  } else if (status.ok()) {
    state_ = State::kUp;
    retire_broken();
    if (lanes_up() < lane_count_) want_connection();
    pump();
  } else {
    if (state_ == State::kIdle) state_ = State::kUp;  // So that it can go down.
    go_down(status);
    retire_broken();
  }
  const std::vector<uint64_t> dead = take_dead_connections();
  changed_.notify_all();
  deliver(lock);
  lock.unlock();
  disconnect_later(dead);
  return status;
}

Status RdmaPathCore::connect(uint64_t deadline_ns) {
  size_t missing = 0;
  {
    const std::lock_guard lock(mutex_);
    missing = lane_count_ - std::min(lane_count_, lanes_up());
  }
  if (missing == 0) return Status();
  const Result<RailRoute> route = ends_.rail->route();
  if (!route.ok()) return named(Code::kUnavailable, route.status().message());
  Result<std::vector<QueuePair>> pairs = make_pairs(route.value(), missing);
  if (!pairs.ok()) return named(pairs.status().code(), pairs.status().message());
  ConnectRequest request{ends_.peer_epoch,
                         random_token(),
                         static_cast<uint8_t>(ends_.remote_index),
                         route.value().address,
                         {}};
  for (const QueuePair& pair : pairs.value()) request.pairs.push_back(pair.address());
  const Result<ConnectReply> reply = exchange(request, deadline_ns);
  if (!reply.ok()) return named(reply.status().code(), reply.status().message());
  for (size_t i = 0; i < missing; ++i) {
    const Status status = pairs.value()[i].connect(route.value(), reply.value().to,
                                                   reply.value().pairs[i], /*asks=*/true);
    if (!status.ok()) return named(status.code(), status.message());
  }
  return join(std::move(pairs.value()), request.connection, deadline_ns);
}

Result<std::vector<QueuePair>> RdmaPathCore::make_pairs(const RailRoute& route, size_t count) {
  std::vector<QueuePair> pairs;
  pairs.reserve(count);
  while (pairs.size() < count) {
    const QueuePair::Size size{static_cast<unsigned>(lane_depth_),
                               ends_.rail->settings().inline_size_bytes};
    Result<QueuePair> pair = QueuePair::make(ends_.rail, route, queue_, size);
    if (!pair.ok()) return pair.status();
    pairs.push_back(std::move(pair.value()));
  }
  return pairs;
}

Result<ConnectReply> RdmaPathCore::exchange(const ConnectRequest& request, uint64_t deadline_ns) {
  {
    const std::lock_guard lock(mutex_);
    connections_.push_back(request.connection);
  }
  const Result<std::vector<uint8_t>> bytes =
      services_.control.call(TransportKind::kRdma, encode(request), deadline_ns);
  if (!bytes.ok()) {
    return Status(Code::kUnavailable,
                  "exchanging queue pairs with the peer: " + bytes.status().message());
  }
  Result<ConnectReply> reply = decode_connect_reply(bytes.value());
  if (!reply.ok()) return reply;
  if (reply.value().pairs.size() != request.pairs.size() ||
      reply.value().to.link_layer != request.from.link_layer) {
    return Status(Code::kCorrupt, "the peer's queue pairs do not match those that were offered");
  }
  return reply;
}

/// Takes the connected pairs in, as soon as each has answered.
Status RdmaPathCore::join(std::vector<QueuePair> pairs, uint64_t connection, uint64_t deadline_ns) {
  std::vector<AwaitedPing> pings;
  std::unique_lock lock(mutex_);
  for (QueuePair& pair : pairs) {
    if (state_ == State::kClosed) return named(Code::kCancelled, "the path was closed");
    lanes_.push_back(std::make_unique<Lane>(next_serial_++, connection, std::move(pair)));
    pings.push_back(AwaitedPing(*lanes_.back()));
    if (!ping(*lanes_.back())) {
      return named(Code::kUnavailable, "ibv_post_send on a new queue pair failed");
    }
  }
  Status status;
  for (const AwaitedPing& ping : pings) {
    if (status.ok()) status = await_ping(lock, ping, deadline_ns);
  }
  if (status.ok()) return status;
  for (const AwaitedPing& ping : pings) {
    if (Lane* lane = find_lane(ping.serial)) break_lane(*lane, status);
  }
  return status;
}

/// Locked.
bool RdmaPathCore::ping(Lane& lane) {
  ibv_send_wr request{};
  request.wr_id = lane.request_id(0);
  request.opcode = IBV_WR_RDMA_READ;
  request.send_flags = IBV_SEND_SIGNALED;
  ibv_send_wr* bad = nullptr;
  if (lane.pair.post(&request, &bad) != 0) {
    break_lane(lane, named(Code::kUnavailable, "ibv_post_send failed"));
    return false;
  }
  lane.push({kPing, 0, 0});
  return true;
}

/// Locked; waits without the lock until the lane has answered more than `before` pings, or is gone
/// without.
Status RdmaPathCore::await_ping(std::unique_lock<std::mutex>& lock, const AwaitedPing& ping,
                                uint64_t deadline_ns) {
  const auto is_answered = [&] { return *ping.done > ping.before; };
  const auto is_over = [&] {
    const Lane* lane = find_lane(ping.serial);
    return is_answered() || lane == nullptr || lane->state == Lane::State::kBroken;
  };
  if (!changed_.wait_until(lock, time_of(deadline_ns), is_over)) {
    return named(Code::kUnavailable, "the peer does not answer on its queue pair");
  }
  return is_answered() ? Status() : why_broken_;
}

Status RdmaPathCore::probe() {
  const uint64_t deadline_ns = monotonic_ns() + kProbeNs;
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, time_of(deadline_ns), [this] { return !is_connecting_; })) {
    return named(Code::kUnavailable, "it is still being connected");
  }
  if (state_ == State::kClosed) return named(Code::kCancelled, "the path was closed");
  if (state_ == State::kUp && lanes_up() == lane_count_) {
    Lane& lane = *lanes_.front();
    const AwaitedPing awaited(lane);
    if (lane.state == Lane::State::kUp && lane.count() < lane_depth_ && ping(lane)) {
      const Status status = await_ping(lock, awaited, deadline_ns);
      if (status.ok() || state_ != State::kUp || monotonic_ns() >= deadline_ns) return status;
      // An op that was refused has broken it, which says nothing of the peer: connected anew, it
      // answers or not.
      if (!changed_.wait_until(lock, time_of(deadline_ns), [this] { return !is_connecting_; })) {
        return named(Code::kUnavailable, "it is still being connected");
      }
    }
  }
  is_connecting_ = true;
  ++jobs_;
  lock.unlock();
  const Status status = connect_and_note(deadline_ns);
  lock.lock();
  --jobs_;
  changed_.notify_all();
  return status;
}

void RdmaPathCore::connect_soon(uint64_t deadline_ns) {
  const std::lock_guard lock(mutex_);
  connect_until_ns_ = deadline_ns;
  want_connection();
}

Status RdmaPathCore::await_connected(uint64_t deadline_ns) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, time_of(deadline_ns), [this] { return !is_connecting_; })) {
    return named(Code::kTimeout, "it was not connected in time");
  }
  return state_ == State::kUp ? Status() : why_down_;
}

bool RdmaPathCore::evict() {
  std::vector<uint64_t> dead;
  {
    std::unique_lock lock(mutex_);
    const bool is_idle =
        ops_.empty() && !is_connecting_ && state_ != State::kClosed &&
        std::ranges::all_of(lanes_, [](const auto& lane) { return lane->count() == 0; });
    if (!is_idle) return false;
    if (state_ == State::kUp) state_ = State::kIdle;
    for (auto& lane : lanes_) retired_.push_back(std::move(lane));
    lanes_.clear();
    dead = take_dead_connections();
    deliver(lock);
  }
  disconnect_later(dead);
  return true;
}

/// Locked. Connections that no lane of ours belongs to any more.
std::vector<uint64_t> RdmaPathCore::take_dead_connections() {
  std::vector<uint64_t> dead;
  std::erase_if(connections_, [&](uint64_t connection) {
    const bool is_alive = std::ranges::any_of(
        lanes_, [&](const auto& lane) { return lane->connection() == connection; });
    if (!is_alive) dead.push_back(connection);
    return !is_alive;
  });
  return dead;
}

void RdmaPathCore::disconnect(uint64_t connection, uint64_t deadline_ns) {
  // The peer drops what is idle sooner or later; this only makes it sooner.
  (void)services_.control.call(
      TransportKind::kRdma, encode(DisconnectRequest{ends_.peer_epoch, connection}), deadline_ns);
}

void RdmaPathCore::disconnect_later(std::vector<uint64_t> connections) {
  if (connections.empty()) return;
  const std::lock_guard lock(mutex_);
  if (state_ == State::kClosed) {
    connections_.insert(connections_.end(), connections.begin(), connections.end());
    return;
  }
  (void)run_job(Errands::Urgency::kClosing, [this, gone = std::move(connections)] {
    for (const uint64_t connection : gone) disconnect(connection, monotonic_ns() + kFarewellNs);
  });
}

void RdmaPathCore::close() {
  std::vector<uint64_t> connections;
  {
    std::unique_lock lock(mutex_);
    const bool is_first = state_ != State::kClosed;
    if (is_first) {
      state_ = State::kClosed;
      fail_all(named(Code::kCancelled, "the path was closed"));
      retire_broken();
      deliver(lock);
    }
    changed_.notify_all();
    changed_.wait(lock, [this] { return ops_.empty() && over_.empty() && deliveries_ == 0; });
    if (is_first) connections.swap(connections_);
  }
  services_.connections.leave(*this);
  const uint64_t deadline_ns = monotonic_ns() + kFarewellNs;
  for (const uint64_t connection : connections) disconnect(connection, deadline_ns);
}

void RdmaPathCore::wait_for_threads() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return jobs_ == 0 && deliveries_ == 0; });
}

}  // namespace hicache
