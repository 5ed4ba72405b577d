#include "transfer/tcp/tcp_path.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/clock.h"
#include "net/secure_channel.h"

namespace hicache {
namespace {

constexpr size_t kOpsMax = 1024;
constexpr uint64_t kPartSize = 512 * kKiB;
static_assert(kPartSize >= kArrivalSizeMax);
// Under way on one lane: what a link of 100 Gbit/s with a round trip of 1 ms holds, over a few.
constexpr uint64_t kLaneBytesMax = 4 * kMiB;
// To a peer on this machine nothing is gained by more than keeps both ends busy, and what waits in
// sockets leaves the cache: measured, 4 MiB cost 60 % more CPU per byte than 256 KiB.
constexpr uint64_t kNearLaneBytesMax = 256 * kKiB;
constexpr uint64_t kSliceSize = 4 * kMiB;
// Below this a lane's load is not told apart from another's.
constexpr uint64_t kLoadStep = 64 * kKiB;
constexpr uint64_t kProbeMs = 900;  // Of connecting and pinging together: less than a second.

constexpr PathCost kCost{.fixed_ns = 30'000, .ns_per_byte = 0.4};

}  // namespace

TcpPath::TcpPath(Setup setup, CompletionSink& sink, TcpCounters& counters)
    : setup_(std::move(setup)),
      first_lane_(random_token() % setup_.lanes),
      state_(std::make_shared<PathState>(kOpsMax, kPartSize, sink, counters)),
      name_("tcp -> " + to_string(setup_.peer)) {
  state_->lanes.resize(setup_.lanes);
}

PathCost TcpPath::cost() const {
  return kCost;
}

uint64_t TcpPath::slice_size_bytes() const {
  return kSliceSize;
}

bool TcpPath::has_lanes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->has_lanes();
}

Status TcpPath::open_lane(size_t index, Deadline deadline) {
  Result<Fd> socket = tcp_connect(setup_.peer, deadline);
  if (!socket.ok()) return socket.status();
  const Greeting greeting{Purpose::kTcpLane, setup_.peer_epoch};
  Result<uint64_t> greeted = greet_server(socket.value(), setup_.secret, greeting, deadline);
  if (!greeted.ok()) return greeted.status();
  HICACHE_RETURN_IF_ERROR(tune(socket.value()));
  IoLoop& loop = *setup_.loops[(first_lane_ + index) % setup_.loops.size()];
  const bool is_near = is_same_machine(socket.value());
  const uint64_t bytes_max = is_near ? kNearLaneBytesMax : kLaneBytesMax;
  auto lane = std::make_shared<ClientLane>(std::move(socket.value()), loop, state_,
                                           setup_.peer_epoch, setup_.is_checked, bytes_max);
  const std::lock_guard lock(state_->mutex);
  if (state_->is_closed) return Status(Code::kClosed, "the path " + name_ + " was closed");
  HICACHE_RETURN_IF_ERROR(lane->start());
  state_->lanes[index] = std::move(lane);
  return Status();
}

Status TcpPath::open_lanes(Deadline deadline) {
  const std::lock_guard opening(opening_);
  for (size_t i = 0; i < setup_.lanes; ++i) {
    {
      const std::lock_guard lock(state_->mutex);
      if (state_->lanes[i] != nullptr) continue;
    }
    // Where one cannot be opened, the others cannot either.
    HICACHE_RETURN_IF_ERROR(open_lane(i, deadline));
  }
  return Status();
}

/// Locked. Takes ops as far as there is room, or ends them at once.
size_t TcpPath::take(std::span<const Op> ops, std::vector<OpDone>& done, uint64_t& deadline_ns) {
  const bool has_lanes = state_->has_lanes();
  const uint64_t now_ns = monotonic_ns();
  size_t taken = 0;
  for (const Op& op : ops) {
    if (op.size == 0) {
      done.push_back({op.token, Status()});
    } else if (op.local_address > UINT64_MAX - op.size || op.remote_buffer == kNoBuffer ||
               op.remote_address > UINT64_MAX - op.size) {
      done.push_back({op.token, Status(Code::kInvalidArgument,
                                       "the op's range of " + std::to_string(op.size) +
                                           " bytes does not exist, here or at the peer")});
    } else if (!has_lanes) {
      done.push_back({op.token, Status(Code::kUnavailable, "no lane of " + name_ + " is open")});
    } else if (op.deadline_ns <= now_ns) {
      done.push_back({op.token, Status(Code::kTimeout, "the op's deadline has passed already")});
    } else if (!state_->ops.add(op)) {
      break;
    } else {
      deadline_ns = std::min(deadline_ns, op.deadline_ns);
    }
    ++taken;
  }
  return taken;
}

/// Locked. The least loaded lane with room; null: there is none.
std::shared_ptr<ClientLane> TcpPath::lane_for(Priority priority) const {
  std::shared_ptr<ClientLane> best;
  for (size_t i = 0; i < setup_.lanes; ++i) {
    const auto& lane = state_->lanes[i];
    if (lane == nullptr || !lane->has_room(priority)) continue;
    if (best == nullptr ||
        lane->bytes_under_way() / kLoadStep < best->bytes_under_way() / kLoadStep) {
      best = lane;
    }
  }
  return best;
}

/// Locked. Gives lanes what they have room for.
void TcpPath::distribute(std::vector<std::shared_ptr<ClientLane>>& to_pump) {
  for (const Priority priority : {Priority::kUrgent, Priority::kBackground}) {
    while (state_->ops.has_queued(priority)) {
      const std::shared_ptr<ClientLane> lane = lane_for(priority);
      if (lane == nullptr) break;
      lane->give(state_->ops.take(priority));
      if (std::find(to_pump.begin(), to_pump.end(), lane) == to_pump.end()) {
        to_pump.push_back(lane);
      }
    }
  }
}

size_t TcpPath::submit(std::span<const Op> ops) {
  std::vector<OpDone> done;
  std::vector<std::shared_ptr<ClientLane>> to_pump;
  uint64_t deadline_ns = IoLoop::kNever;
  std::unique_lock lock(state_->mutex);
  if (state_->is_closed) return 0;
  const size_t taken = take(ops, done, deadline_ns);
  distribute(to_pump);
  if (deadline_ns != IoLoop::kNever) {
    for (const auto& lane : state_->lanes) {
      if (lane != nullptr) lane->wake_by(deadline_ns);
    }
  }
  std::erase_if(to_pump, [](const auto& lane) {
    if (lane->is_heavy()) lane->pump_later();
    return lane->is_heavy();
  });
  state_->deliver(lock, done);
  lock.unlock();
  for (const auto& lane : to_pump) lane->pump(ClientLane::kOwnThreadMax);
  return taken;
}

Status TcpPath::probe() {
  const Deadline deadline = Deadline::after_ms(kProbeMs);
  const Status opened = open_lanes(deadline);
  const Status answered = ping_lanes(deadline);
  return answered.ok() || opened.ok() ? answered : opened;
}

Status TcpPath::ping_lanes(Deadline deadline) {
  const std::lock_guard opening(opening_);
  struct Pinged {
    std::shared_ptr<ClientLane> lane;
    uint64_t received;
  };
  std::vector<Pinged> pinged;
  {
    const std::lock_guard lock(state_->mutex);
    for (const auto& lane : state_->lanes) {
      if (lane == nullptr) continue;
      lane->ping();
      pinged.push_back({lane, lane->received_total()});
    }
  }
  for (const Pinged& one : pinged) one.lane->pump(ClientLane::kOwnThreadMax);

  std::unique_lock lock(state_->mutex);
  const auto is_open = [&](const Pinged& one) {
    return std::find(state_->lanes.begin(), state_->lanes.end(), one.lane) != state_->lanes.end();
  };
  const auto has_answered = [&](const Pinged& one) { return one.lane->has_answered(); };
  state_->changed.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()), [&] {
    return state_->is_closed || std::all_of(pinged.begin(), pinged.end(), [&](const Pinged& one) {
             return has_answered(one) || !is_open(one);
           });
  });
  size_t alive = 0;
  for (const Pinged& one : pinged) {
    if (!is_open(one)) continue;
    // A lane that is full of payload may answer late; one over which nothing comes is dead.
    if (has_answered(one) || one.lane->received_total() != one.received) {
      ++alive;
    } else {
      one.lane->break_off(Status(Code::kUnavailable, "a lane of " + name_ + " did not answer"));
    }
  }
  if (state_->is_closed) return Status(Code::kClosed, "the path " + name_ + " was closed");
  if (alive == 0) return Status(Code::kUnavailable, "no lane of " + name_ + " answers");
  return Status();
}

void TcpPath::close() {
  std::unique_lock lock(state_->mutex);
  const Status reason(Code::kCancelled, "the path " + name_ + " was closed");
  if (!state_->is_closed) {
    state_->is_closed = true;
    state_->changed.notify_all();
    std::vector<OpDone> done;
    state_->ops.fail_queued(reason, done);
    state_->deliver(lock, done);
    for (const auto& lane : state_->lanes) {
      if (lane != nullptr) lane->break_off(reason);
    }
  }
  state_->changed.wait(lock, [&] { return !state_->has_lanes() && state_->deliveries == 0; });
}

}  // namespace hicache
