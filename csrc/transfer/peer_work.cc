// A peer's batches: from requests to the paths and back.
#include <array>
#include <charconv>
#include <utility>

#include "transfer/peer.h"

namespace hicache {
namespace {

constexpr size_t kOpsAtOnce = 64;

constexpr uint64_t kMs = 1'000'000;
/// What a slice may take beyond eight times its estimate before another rail gets it: a rail that
/// swallows what it is given without failing must not hold a batch until its deadline.
constexpr uint64_t kSliceGraceNs = 3000 * kMs;
/// For asking what a peer has registered by now.
constexpr uint64_t kLookUpTimeoutNs = 5000 * kMs;

std::string hex(uint64_t value) {
  char digits[17];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value, 16).ptr;
  return "0x" + std::string(digits, end);
}

std::string_view name_of(Direction direction) {
  return direction == Direction::kRead ? "reading " : "writing ";
}

}  // namespace

// ---- in

/// The buffer that holds all of a range, if the peer lets it be used so.
Result<const BufferDescriptor*> Peer::find_remote(const SegmentDescriptor& descriptor,
                                                  Direction direction, uint64_t remote_address,
                                                  uint64_t size) {
  const BufferDescriptor* buffer = descriptor.find(remote_address, size);
  const bool is_refused =
      buffer != nullptr && direction == Direction::kWrite && !buffer->remote_write;
  if (buffer != nullptr && !is_refused) return buffer;
  return Status(Code::kInvalidArgument,
                std::string(name_of(direction)) + std::to_string(size) + " bytes at " +
                    hex(remote_address) + " of " + descriptor.name +
                    (is_refused ? ": it registered that range for reading only"
                                : ": no memory that it has registered holds that range"));
}

Status Peer::resolve_with(const SegmentDescriptor& descriptor,
                          std::span<const TransferRequest> requests,
                          std::vector<BatchTable::Request>& resolved) const {
  resolved.clear();
  const BufferDescriptor* buffer = nullptr;
  for (const TransferRequest& request : requests) {
    const bool is_same = buffer != nullptr && request.remote_address >= buffer->address &&
                         request.remote_address - buffer->address <= buffer->size &&
                         request.size <= buffer->size - (request.remote_address - buffer->address);
    if (!is_same || (request.direction == Direction::kWrite && !buffer->remote_write)) {
      const Result<const BufferDescriptor*> found =
          find_remote(descriptor, request.direction, request.remote_address, request.size);
      if (!found.ok()) return found.status();
      buffer = found.value();
    }
    if (request.local_address == 0 || request.local_address + request.size < request.size) {
      return Status(Code::kInvalidArgument, std::to_string(request.size) + " bytes at " +
                                                hex(request.local_address) +
                                                " are no memory of this process");
    }
    resolved.push_back(
        {request.direction, context_.memory->find(request.local_address, request.size), buffer->id,
         request.local_address, request.remote_address, request.size, request.arrival});
  }
  return Status();
}

Status Peer::resolve(std::span<const TransferRequest> requests, uint64_t deadline_ns,
                     std::vector<BatchTable::Request>& resolved) {
  if (!is_stale_) {
    const Status status = resolve_with(*descriptor(), requests, resolved);
    if (status.ok()) return status;
  }
  // Perhaps it has been registered since.
  const Result<std::shared_ptr<const SegmentDescriptor>> fetched = refresh(deadline_ns);
  if (!fetched.ok()) return fetched.status();
  return resolve_with(*fetched.value(), requests, resolved);
}

/// With the lock held. True: what is parked now will be tried again, or fail.
bool Peer::look_up_anew() {
  if (!is_looking_up_) {
    is_looking_up_ =
        run_errand(Errands::Urgency::kAwaited, [](Peer& peer) { peer.refresh_parked(); });
  }
  return is_looking_up_;
}

/// Asks the peer what it has registered by now, on behalf of slices that it denied.
void Peer::refresh_parked() {
  for (;;) {
    uint64_t parks_max;
    {
      const std::lock_guard lock(mutex_);
      is_looking_up_ = table_.has_parked();
      if (!is_looking_up_) return;
      parks_max = table_.parks();
    }
    const Result<std::shared_ptr<const SegmentDescriptor>> fetched =
        refresh(monotonic_ns() + kLookUpTimeoutNs);
    std::vector<BatchKey> done;
    const auto look_up = [&](BatchTable::Request& request) {
      if (!fetched.ok()) return fetched.status();
      const Result<const BufferDescriptor*> found =
          find_remote(*fetched.value(), request.direction, request.remote_address, request.size);
      if (found.ok()) request.remote_buffer = found.value()->id;
      return found.status();
    };
    {
      const std::lock_guard lock(mutex_);
      table_.unpark(parks_max, look_up, done);
    }
    signal_done(done);
    (void)dispatch();
  }
}

Result<BatchKey> Peer::submit(std::span<const TransferRequest> requests, Priority priority,
                              uint64_t deadline_ns) {
  thread_local std::vector<BatchTable::Request> resolved;
  if (is_lost_) return lost_status();
  HICACHE_RETURN_IF_ERROR(resolve(requests, deadline_ns, resolved));
  Result<BatchKey> key = BatchKey{};
  bool is_done;
  {
    const std::lock_guard lock(mutex_);
    if (is_lost_) return lost_;
    key = table_.add(resolved, priority, deadline_ns, context_.next_generation());
    if (!key.ok()) return key;
    is_done = table_.state(key.value())->is_done;
    signal_of(key.value().slot).begin(key.value().generation);
  }
  if (is_done) {
    signal_done({key.value()});
    return key;
  }
  if (dispatch()) context_.wake_at(deadline_ns);
  return key;
}

DoneSignal& Peer::signal_of(uint32_t slot) {
  while (signals_.size() <= slot) signals_.emplace_back();
  return signals_[slot];
}

// ---- to the paths

/// The dispatches that this thread is inside of: a path may complete ops inside submit().
struct Peer::Frame {
  const Peer* peer;
  Frame* outer;
  bool again;
};

/// True: something waits, for room or for a rail.
bool Peer::dispatch() {
  thread_local Frame* innermost = nullptr;
  for (Frame* frame = innermost; frame != nullptr; frame = frame->outer) {
    if (frame->peer != this) continue;
    frame->again = true;  // Once it is back there, however much is completed at once.
    return false;
  }
  Frame frame{this, innermost, true};
  innermost = &frame;
  Taken taken{};
  while (frame.again) {
    frame.again = false;
    std::array<Op, kOpsAtOnce> ops;
    do {
      taken = take_some(ops);
      if (taken.count == 0) break;
      const size_t accepted = taken.path->submit(std::span(ops).first(taken.count));
      if (accepted == taken.count) continue;
      give_back(std::span(ops).subspan(accepted, taken.count - accepted), taken.rail,
                accepted == 0 && taken.was_idle);
      taken.has_more = true;
    } while (taken.has_more);
  }
  innermost = frame.outer;
  return taken.has_more;
}

/// Takes slices for one rail.
Peer::Taken Peer::take_some(std::span<Op> ops) {
  const std::lock_guard lock(mutex_);
  Taken taken{0, kNoRail, nullptr, false, false};
  size_t& count = taken.count;
  uint64_t now_ns = 0;
  while (count < ops.size() && !is_lost_) {
    const std::optional<BatchTable::Next> next = table_.next();
    if (!next) break;
    if (now_ns == 0) now_ns = monotonic_ns();
    const RailChoice::Choice choice =
        rails_.choose(next->size, next->tier_min, next->avoid, table_.waiting_bytes(),
                      distances_from(next->local_buffer), next->without);
    if (choice.rail == kNoRail) {
      if (!choice.any_usable && count == 0) no_rail(*next, now_ns);
      break;
    }
    if (count != 0 && choice.rail != taken.rail) break;
    const RailIndex rail = choice.rail;
    const RailChoice::Rail& chosen = rails_.rail(rail);
    if (count == 0) {
      taken.rail = rail;
      taken.path = paths_[rail].path.get();
      taken.was_idle = chosen.outstanding_count == 0;
    }
    Op& op = ops[count++];
    table_.take(
        rail, context_.slice_size_bytes == 0 ? chosen.slice_size_bytes : context_.slice_size_bytes,
        now_ns, op);
    rails_.begin(rail, op.size, now_ns);
    if (rails_.has_alternative(rail)) {
      const auto patience_ns = static_cast<uint64_t>(8 * rails_.estimate_ns(rail, 0));
      op.deadline_ns = std::min(op.deadline_ns, now_ns + kSliceGraceNs + patience_ns);
    }
  }
  taken.has_more = table_.has_waiting();
  return taken;
}

/// With the lock held. Buffer ids are never used twice, so what was asked for stays true.
std::span<const double> Peer::distances_from(BufferId buffer) {
  if (distance_.topology() == nullptr || rails_.count() < 2) return {};
  if (buffer != placed_buffer_ || buffer == kNoBuffer) {
    placed_location_ = context_.memory->location_of(buffer);
    placed_buffer_ = buffer;
  }
  return distance_.extra_ns_per_byte(placed_location_);
}

/// What a path did not take waits again. `is_refusal`: it took nothing although it was idle.
void Peer::give_back(std::span<const Op> ops, RailIndex rail, bool is_refusal) {
  std::vector<BatchKey> done;
  uint64_t probe_ns = UINT64_MAX;
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = ops.size(); i-- > 0;) {
      rails_.undo(rail, ops[i].size);
      const BatchTable::Settled settled = table_.undo(ops[i].token);
      if (settled.is_done) done.push_back(settled.batch);
    }
    if (is_refusal) {
      rails_.fail(rail, monotonic_ns());
      last_failure_ = paths_[rail].path->name() + ": it takes nothing";
      probe_ns = rails_.next_probe_ns();
    } else if (rails_.rail(rail).outstanding_count != 0) {
      rails_.set_full(rail);  // Otherwise all were completed meanwhile, and there is room again.
    }
  }
  signal_done(done);
  if (is_refusal) context_.wake_at(probe_ns);
}

/// No rail is there for what comes next, healthy or busy: tries worse transports, and waits for
/// probes. With the lock held.
void Peer::no_rail(const BatchTable::Next& next, uint64_t now_ns) {
  bool may_come = rails_.has_tier(next.tier_min, next.without);
  for (size_t i = next.tier_min; i < tiers_.size(); ++i) {
    Tier& tier = tiers_[i];
    may_come |= tier.is_opening;
    if (tier.has_paths || tier.is_opening || tier.next_try_ns > now_ns) continue;
    tier.is_opening = run_errand(Errands::Urgency::kAwaited, [i](Peer& peer) {
      (void)peer.open_tier(i, monotonic_ns() + kSliceGraceNs);
      (void)peer.dispatch();
    });
    may_come |= tier.is_opening;
    if (tier.is_opening) break;  // One after the other: the next is worse.
  }
  if (may_come) return;
  const BatchTable::Settled settled = table_.drop_next(
      Status(Code::kUnavailable, "no path to " + address_name_ + " can do this: " + last_failure_));
  if (settled.is_done) signal_of(settled.batch.slot).signal(settled.batch.generation);
}

// ---- and back

void Peer::complete(uint64_t token, Status status) {
  const uint64_t now_ns = monotonic_ns();
  DoneSignal* signal = nullptr;
  BatchTable::Settled settled{};
  bool has_waiting;
  uint64_t wake_ns = UINT64_MAX;
  {
    const std::lock_guard lock(mutex_);
    const BatchTable::Slice* slice = table_.find(token);
    if (slice == nullptr) {
      ++context_.unknown_completions;
      return;
    }
    rails_.end(slice->rail, slice->size, status.ok(), slice->started_ns, now_ns);
    BatchTable::Verdict verdict = BatchTable::Verdict::kDone;
    if (!status.ok()) {
      verdict = judge(*slice, status, now_ns);
      status = explained(*slice, status);
      wake_ns = verdict == BatchTable::Verdict::kPark ? table_.deadline_of(*slice)
                                                      : rails_.next_probe_ns();
    }
    settled = table_.settle(token, verdict, std::move(status), now_ns);
    if (settled.is_done) signal = &signal_of(settled.batch.slot);
    has_waiting = table_.has_waiting();
  }
  if (signal != nullptr) signal->signal(settled.batch.generation);
  if (wake_ns != UINT64_MAX) context_.wake_at(wake_ns);
  if (has_waiting) (void)dispatch();
}

/// What a failed op means for its slice and for its path.
BatchTable::Verdict Peer::judge(const BatchTable::Slice& slice, const Status& status,
                                uint64_t now_ns) {
  using Verdict = BatchTable::Verdict;
  if (is_lost_) return Verdict::kFail;
  switch (status.code()) {
    case Code::kInvalidArgument:
      // What the peer denies it may have registered anew since.
      is_stale_ = true;
      return !slice.was_parked && look_up_anew() ? Verdict::kPark : Verdict::kFail;
    case Code::kNotFound:
      last_failure_ = paths_[slice.rail].path->name() + ": " + status.message();
      return Verdict::kRetryOtherRail;
    case Code::kUnsupported:
      last_failure_ = status.message();
      return Verdict::kRetryWorseTier;
    case Code::kCorrupt:
      rails_.fail_corrupt(slice.rail, now_ns);
      return Verdict::kRetry;
    case Code::kTimeout:
      if (now_ns + kDeadlineGraceMs * kMs < table_.deadline_of(slice)) {
        rails_.fail(slice.rail, now_ns);
      }
      break;
    default:
      rails_.fail(slice.rail, now_ns);
      break;
  }
  last_failure_ = paths_[slice.rail].path->name() + ": " + status.message();
  return Verdict::kRetry;
}

Status Peer::explained(const BatchTable::Slice& slice, const Status& status) const {
  if (is_lost_) return lost_;
  const BatchTable::Request& request = table_.request_of(slice);
  return Status(status.code(), std::string(name_of(request.direction)) +
                                   std::to_string(slice.size) + " bytes at " +
                                   hex(request.remote_address + slice.offset) + " of " +
                                   address_name_ + " over " + paths_[slice.rail].path->name() +
                                   ": " + status.message());
}

void Peer::signal_done(const std::vector<BatchKey>& done) {
  for (const BatchKey& key : done) {
    DoneSignal* signal;
    {
      const std::lock_guard lock(mutex_);
      signal = &signal_of(key.slot);
    }
    signal->signal(key.generation);
  }
}

// ---- out

bool Peer::has_batches() const {
  const std::lock_guard lock(mutex_);
  return table_.batch_count() != 0;
}

std::optional<BatchState> Peer::poll(BatchKey key) const {
  const std::lock_guard lock(mutex_);
  return table_.state(key);
}

std::optional<BatchState> Peer::wait(BatchKey key, uint64_t deadline_ns) {
  DoneSignal* signal;
  {
    const std::lock_guard lock(mutex_);
    const std::optional<BatchState> state = table_.state(key);
    if (!state || state->is_done) return state;
    signal = &signal_of(key.slot);
  }
  (void)signal->wait(key.generation, deadline_ns, context_.spin_us);
  return poll(key);
}

std::optional<BatchState> Peer::finish(BatchKey key) {
  std::optional<BatchState> state;
  for (;;) {
    DoneSignal* signal;
    {
      const std::lock_guard lock(mutex_);
      state = table_.state(key);
      if (state && state->is_done) (void)table_.release(key);
      if (!state || state->is_done) return state;
      signal = &signal_of(key.slot);
    }
    (void)signal->wait(key.generation, UINT64_MAX, context_.spin_us);
  }
}

bool Peer::release(BatchKey key) {
  bool is_done;
  {
    const std::lock_guard lock(mutex_);
    const std::optional<BatchState> state = table_.state(key);
    if (!state) return false;
    if (state->is_done) return table_.release(key);
    is_done = table_.cancel(key, Status(Code::kCancelled, "the batch was released"));
  }
  if (is_done) {
    signal_done({key});
  } else {
    (void)wait(key, UINT64_MAX);
  }
  const std::lock_guard lock(mutex_);
  return table_.release(key);
}

}  // namespace hicache
