#include "transfer/staged_path.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "transfer/memory_place.h"
#include "transfer/tcp/op_table.h"

namespace hicache {
namespace {

constexpr size_t kOpsMax = 1024;
/// Of one path: 8 MiB in slots, on the wire and in copies together.
constexpr size_t kPathSlotsMax = 16;
/// Marks the tokens of parts; those of ops are below (transport.h).
constexpr uint64_t kPartToken = uint64_t{1} << 63;

Status closed_status() {
  return Status(Code::kCancelled, "the path was closed");
}

}  // namespace

class StagedPath::State : public CompletionSink,
                          public DeviceStaging::Customer,
                          public std::enable_shared_from_this<State> {
 public:
  State(DeviceStaging& staging, CompletionSink& sink)
      : staging_(staging), sink_(sink), ops_(kOpsMax, DeviceStaging::kSlotSize) {}

  void set_inner(Path& inner) { inner_ = &inner; }
  /// False: there is no room, or it is closed.
  bool add(const Op& op);
  /// Ends an op that was never begun.
  void refuse(const Op& op, Status status) { sink_.complete(op.token, std::move(status)); }
  void pump();
  void close();
  void await_end();

  void complete(uint64_t token, Status status) override;
  void on_slot(DeviceStaging::Slot slot) override;
  uint64_t on_time(uint64_t now_ns) override;

 private:
  using Lock = std::unique_lock<std::mutex>;
  using PartIndex = uint32_t;
  struct Part {
    OpPart of_op;
    int device = -1;
    DeviceStaging::Slot slot;
    bool is_used = false;
  };

  // All of these: locked, and so again when they return.
  void begin_parts();
  bool take_slot(int device, DeviceStaging::Slot& slot);
  void hand_over(Lock& lock);
  void finish(PartIndex index, const Status& status);
  void deliver(Lock& lock);
  bool has_queued() const {
    return ops_.has_queued(Priority::kUrgent) || ops_.has_queued(Priority::kBackground);
  }
  bool is_idle() const {
    return slots_used_ == 0 && deliveries_ == 0 && !is_handing_over_ && done_.empty();
  }

  Op op_of(PartIndex index) const;
  void copy_part(PartIndex index, DeviceStaging::Way way);
  void on_copied(PartIndex index, DeviceStaging::Way way, const Status& status);

  DeviceStaging& staging_;
  CompletionSink& sink_;
  Path* inner_ = nullptr;

  /// Completions of the inner path, each of which may have made room.
  std::atomic<uint64_t> completions_{0};
  std::atomic<bool> has_ready_{false};  // As ready_; written under the mutex.

  std::mutex mutex_;  // Of what follows.
  std::condition_variable idle_;
  OpTable ops_;
  std::array<Part, kPathSlotsMax> parts_;
  std::deque<PartIndex> ready_;  // For the inner path.
  std::vector<OpDone> done_;
  DeviceStaging::Slot granted_;
  size_t slots_used_ = 0;
  size_t deliveries_ = 0;
  bool is_waiting_ = false;  // For a slot.
  bool is_handing_over_ = false;
  bool is_closed_ = false;
};

bool StagedPath::State::add(const Op& op) {
  {
    const std::lock_guard lock(mutex_);
    if (is_closed_ || !ops_.add(op)) return false;
  }
  staging_.wake_by(op.deadline_ns, weak_from_this());
  return true;
}

void StagedPath::State::pump() {
  Lock lock(mutex_);
  begin_parts();
  hand_over(lock);
  deliver(lock);
}

void StagedPath::State::begin_parts() {
  DeviceStaging::Slot slot;
  while (!is_closed_ && has_queued() && slots_used_ < kPathSlotsMax) {
    const Priority priority =
        ops_.has_queued(Priority::kUrgent) ? Priority::kUrgent : Priority::kBackground;
    // Where it is is asked again for each part: memory that was freed meanwhile is an error here.
    const OpPart next = ops_.peek(priority);
    const Result<MemoryPlace> place = place_of(next.local_address, next.size);
    if (!place.ok() || !place.value().is_on_device()) {
      ops_.finish(ops_.take(priority).op,
                  place.ok() ? Status(Code::kInvalidArgument,
                                      "the local range was a GPU's memory, and is no longer")
                             : place.status(),
                  done_);
      continue;
    }
    if (!take_slot(place.value().device, slot)) return;
    const auto free = std::ranges::find(parts_, false, &Part::is_used);
    *free = Part{ops_.take(priority), place.value().device, std::move(slot), true};
    ++slots_used_;
    const auto index = static_cast<PartIndex>(free - parts_.begin());
    if (free->of_op.direction == Direction::kWrite) {
      copy_part(index, DeviceStaging::Way::kFromDevice);
    } else {
      ready_.push_back(index);
    }
  }
  if (!has_queued()) granted_.reset();  // Others wait for it.
}

/// False: there is none now.
bool StagedPath::State::take_slot(int device, DeviceStaging::Slot& slot) {
  if (granted_) {
    slot = std::move(granted_);
    return true;
  }
  if (is_waiting_) return false;
  Result<DeviceStaging::Slot> taken = staging_.take(weak_from_this(), device);
  if (!taken.ok()) {
    ops_.fail_queued(taken.status(), done_);
    return false;
  }
  is_waiting_ = !taken.value();
  slot = std::move(taken.value());
  return !is_waiting_;
}

void StagedPath::State::on_slot(DeviceStaging::Slot slot) {
  {
    const std::lock_guard lock(mutex_);
    is_waiting_ = false;
    granted_ = std::move(slot);
  }
  pump();
}

Op StagedPath::State::op_of(PartIndex index) const {
  const Part& part = parts_[index];
  return Op{.direction = part.of_op.direction,
            .priority = part.of_op.priority,
            .local_address = part.slot.address(),
            .local_buffer = kNoBuffer,
            .remote_address = part.of_op.remote_address,
            .remote_buffer = part.of_op.remote_buffer,
            .size = part.of_op.size,
            .deadline_ns = part.of_op.deadline_ns,
            .token = kPartToken | index};
}

/// Gives the inner path what is ready, as far as it has room.
void StagedPath::State::hand_over(Lock& lock) {
  if (is_handing_over_) return;  // Whoever does looks again.
  is_handing_over_ = true;
  while (!ready_.empty()) {
    std::array<Op, kPathSlotsMax> ops;
    const size_t count = ready_.size();
    for (size_t i = 0; i < count; ++i) ops[i] = op_of(ready_[i]);
    std::deque<PartIndex> offered = std::exchange(ready_, {});
    const uint64_t seen = completions_.load();
    has_ready_ = true;  // So that who completes one from here on comes back.
    lock.unlock();
    const size_t taken = inner_->submit(std::span(ops).first(count));
    lock.lock();
    ready_.insert(ready_.begin(), offered.begin() + static_cast<ptrdiff_t>(taken), offered.end());
    if (is_closed_) break;
    if (taken < count && completions_.load() == seen) break;  // One that comes will tell of room.
  }
  is_handing_over_ = false;
  if (is_closed_) {
    for (const PartIndex index : std::exchange(ready_, {})) finish(index, closed_status());
    idle_.notify_all();
  }
  has_ready_ = !ready_.empty();
}

void StagedPath::State::complete(uint64_t token, Status status) {
  completions_.fetch_add(1);
  if ((token & kPartToken) == 0) {
    sink_.complete(token, std::move(status));
    if (has_ready_) pump();
    return;
  }
  const auto index = static_cast<PartIndex>(token & ~kPartToken);
  {
    const std::lock_guard lock(mutex_);
    if (status.ok() && parts_[index].of_op.direction == Direction::kRead) {
      copy_part(index, DeviceStaging::Way::kToDevice);
    } else {
      finish(index, status);
    }
  }
  pump();
}

void StagedPath::State::copy_part(PartIndex index, DeviceStaging::Way way) {
  const Part& part = parts_[index];
  const bool is_in = way == DeviceStaging::Way::kToDevice;
  staging_.copy(is_in ? part.of_op.local_address : part.slot.address(),
                is_in ? part.slot.address() : part.of_op.local_address, part.of_op.size,
                part.device, way, [self = shared_from_this(), index, way](const Status& status) {
                  self->on_copied(index, way, status);
                });
}

void StagedPath::State::on_copied(PartIndex index, DeviceStaging::Way way, const Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (way == DeviceStaging::Way::kToDevice || !status.ok()) {
      finish(index, status);
    } else if (is_closed_) {
      finish(index, closed_status());
    } else {
      ready_.push_back(index);  // The inner path knows about deadlines.
    }
  }
  pump();
}

void StagedPath::State::finish(PartIndex index, const Status& status) {
  Part& part = parts_[index];
  ops_.finish(part.of_op.op, status, done_);
  part.slot.reset();
  part.is_used = false;
  --slots_used_;
  if (is_closed_) idle_.notify_all();
}

void StagedPath::State::deliver(Lock& lock) {
  if (done_.empty()) return;
  std::vector<OpDone> told = std::exchange(done_, {});
  ++deliveries_;
  lock.unlock();
  for (OpDone& one : told) sink_.complete(one.token, std::move(one.status));
  lock.lock();
  --deliveries_;
  if (is_closed_) idle_.notify_all();
}

uint64_t StagedPath::State::on_time(uint64_t now_ns) {
  Lock lock(mutex_);
  ops_.expire(now_ns, done_);
  std::erase_if(ready_, [&](PartIndex index) {
    if (parts_[index].of_op.deadline_ns > now_ns) return false;
    finish(index, Status(Code::kTimeout, "the path had no room for the op until its deadline"));
    return true;
  });
  uint64_t next_ns = ops_.earliest_deadline();
  for (const PartIndex index : ready_) {
    next_ns = std::min(next_ns, parts_[index].of_op.deadline_ns);
  }
  deliver(lock);
  return next_ns;
}

void StagedPath::State::close() {
  Lock lock(mutex_);
  is_closed_ = true;
  ops_.fail_queued(closed_status(), done_);
  if (!is_handing_over_) hand_over(lock);
  granted_.reset();
  deliver(lock);
}

/// After the inner path was closed: until copies have ended and all was told.
void StagedPath::State::await_end() {
  Lock lock(mutex_);
  idle_.wait(lock, [this] { return is_idle(); });
}

// ---- The path

std::shared_ptr<StagedPath::State> StagedPath::make_state(DeviceStaging& staging,
                                                          CompletionSink& sink) {
  return std::make_shared<State>(staging, sink);
}

CompletionSink& StagedPath::inner_sink(State& state) {
  return state;
}

StagedPath::StagedPath(std::shared_ptr<State> state, std::unique_ptr<Path> inner)
    : state_(std::move(state)), inner_(std::move(inner)) {
  state_->set_inner(*inner_);
}

size_t StagedPath::submit(std::span<const Op> ops) {
  size_t taken = 0;
  size_t plain = 0;  // Ops from `taken` on that go through as they are.
  bool is_staged = false;
  bool has_room = true;
  for (const Op& op : ops) {
    // What is no range at all is refused by the inner path.
    const bool is_range = op.local_address <= UINT64_MAX - op.size;
    const Result<MemoryPlace> place =
        is_range ? place_of(op.local_address, op.size) : MemoryPlace{};
    if (place.ok() && !place.value().is_on_device()) {
      ++plain;
      continue;
    }
    if (plain != 0) {
      const size_t passed = inner_->submit(ops.subspan(taken, plain));
      taken += passed;
      has_room = passed == plain;
      if (!has_room) break;
      plain = 0;
    }
    if (!place.ok()) {
      state_->refuse(op, place.status());
    } else if (!state_->add(op)) {
      has_room = false;
      break;
    }
    is_staged |= place.ok();
    ++taken;
  }
  if (has_room && plain != 0) taken += inner_->submit(ops.subspan(taken, plain));
  if (is_staged) state_->pump();
  return taken;
}

void StagedPath::close() {
  state_->close();
  inner_->close();
  state_->await_end();
}

}  // namespace hicache
