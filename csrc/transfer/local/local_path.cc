#include "transfer/local/local_path.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "base/bytes.h"
#include "base/clock.h"
#include "transfer/memory_place.h"

namespace hicache {
namespace {

constexpr uint64_t kOpsMax = 1024;
constexpr uint64_t kSliceSize = 8 * kMiB;
/// An op of this size is copied sooner than another thread is awake.
constexpr uint64_t kInlineMax = 128 * kKiB;
/// An op of this size is copied sooner than it is handed over.
constexpr uint64_t kTinyMax = 16 * kKiB;
/// What one call of submit() copies itself, with what is submitted from inside its completions;
/// ops that are not tiny only if all of them together are no more: else threads share them.
constexpr uint64_t kInlineBudget = 512 * kKiB;
/// Larger ops would push everything else out of the cache.
constexpr uint64_t kStreamingMin = 8 * kMiB;
/// Less is not worth another thread's waking up; more is noticed late (peer_link.h).
constexpr CopyQueue::Job::PieceLimits kPieces{256 * kKiB, kLocalPieceMax};
/// Between a GPU and memory that it reaches itself threads only wait. Pieces of 2 MiB took 6 us
/// each beside the copy itself on an H200, which was 13 % of the time; of these it is 4 %.
constexpr CopyQueue::Job::PieceLimits kDevicePieces{kSliceSize, kSliceSize};

constexpr PathCost kCost{.fixed_ns = 2'000, .ns_per_byte = 0.12};

/// Where an address becomes memory, for the local end of an op that the CPU can reach.
uint8_t* local_memory_at(uint64_t address) {
  return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address));
}

}  // namespace

class LocalPath::State : public PeerLink::User, public std::enable_shared_from_this<State> {
 public:
  State(std::shared_ptr<PeerLink> peer, CopyQueue& copies, DeviceStaging& gpu, IoLoop& io,
        CompletionSink& completions, LocalCounters& counted)
      : link(std::move(peer)),
        counters(counted),
        queue(copies),
        staging(gpu),
        loop(io),
        sink(completions) {}

  size_t submit(std::span<const Op> ops);
  void close();

  void on_news() override { start_waiting(); }
  void on_lost() override;
  uint64_t on_link_time(uint64_t now_ns) override;

  const std::shared_ptr<PeerLink> link;
  LocalCounters& counters;

 private:
  class OpJob;
  /// Completions that this thread delivers, one after the other: an op that is submitted from
  /// inside a completion does not deepen the stack.
  struct Turn {
    struct Completion {
      std::shared_ptr<State> state;
      uint64_t token;
      Status status;
    };
    bool is_delivering = false;
    uint64_t inline_left = kInlineBudget;
    std::deque<Completion> completions;
  };
  static Turn& turn() {
    thread_local Turn own;
    return own;
  }

  uint64_t make_room(uint64_t wanted);
  void delivered(uint64_t count);
  void start(const Op& op, uint64_t inline_max);
  /// False: the op has to wait for news. `status` is set if it is over.
  bool check(const Op& op, std::shared_ptr<PeerLink::RemoteBuffer>& buffer, Status& status) const;
  Status copy(const Op& op, PeerLink::RemoteBuffer& buffer, uint64_t offset, uint64_t size) const;
  bool is_direct(const Op& op, const MemoryPlace& local, const LocalRange& range) const;
  Status copy_on_device(const Op& op, PeerLink::RemoteBuffer& buffer, uint64_t offset,
                        uint64_t size) const;
  Status closed_status() const;
  void start_waiting();
  void complete(const Op& op, Status status);
  void deliver(uint64_t token, Status status);

  CopyQueue& queue;
  DeviceStaging& staging;
  IoLoop& loop;
  CompletionSink& sink;

  std::atomic<bool> is_closed{false};
  // Taken and not completed. Counted down before the completion is delivered, so that whoever hears
  // of it finds the room.
  std::atomic<uint64_t> in_flight{0};
  std::atomic<uint64_t> undelivered{0};  // Counted down after it.

  std::mutex mutex;  // Of what follows.
  std::condition_variable idle;
  std::vector<Op> waiting;  // For news of their buffers.
};

class LocalPath::State::OpJob : public CopyQueue::Job {
 public:
  OpJob(std::shared_ptr<State> state, const Op& op, std::shared_ptr<PeerLink::RemoteBuffer> buffer,
        bool is_on_device, PieceLimits pieces)
      : Job(state.get(), op.size, pieces, op.deadline_ns, op.priority),
        state_(std::move(state)),
        op_(op),
        buffer_(std::move(buffer)),
        is_on_device_(is_on_device) {}

 private:
  Status copy_piece(uint64_t offset, uint64_t size) override {
    if (state_->is_closed) return state_->closed_status();
    return is_on_device_ ? state_->copy_on_device(op_, *buffer_, offset, size)
                         : state_->copy(op_, *buffer_, offset, size);
  }
  void finish(Status status) override {
    buffer_.reset();
    if (!turn().is_delivering) turn().inline_left = kInlineBudget;
    state_->complete(op_, std::move(status));
  }

  const std::shared_ptr<State> state_;
  const Op op_;
  std::shared_ptr<PeerLink::RemoteBuffer> buffer_;
  const bool is_on_device_;
};

Status LocalPath::State::closed_status() const {
  return Status(Code::kCancelled, "the path \"" + link->name() + "\" was closed");
}

size_t LocalPath::State::submit(std::span<const Op> ops) {
  const auto self = shared_from_this();
  const uint64_t wanted = ops.size();
  // Counted first: close() waits for all that it does not see refused.
  undelivered.fetch_add(wanted);
  const uint64_t taken = is_closed ? 0 : make_room(wanted);
  if (!turn().is_delivering) turn().inline_left = kInlineBudget;
  uint64_t total = 0;
  for (const Op& op : ops.first(taken)) total += std::min(op.size, kInlineBudget);
  const uint64_t inline_max = total <= kInlineBudget ? kInlineMax : kTinyMax;
  for (const Op& op : ops.first(taken)) start(op, inline_max);
  delivered(wanted - taken);
  return taken;
}

uint64_t LocalPath::State::make_room(uint64_t wanted) {
  uint64_t before = in_flight.load();
  uint64_t taken;
  do {
    taken = std::min(wanted, kOpsMax - before);
  } while (!in_flight.compare_exchange_weak(before, before + taken));
  return taken;
}

void LocalPath::State::delivered(uint64_t count) {
  if (undelivered.fetch_sub(count) != count || !is_closed) return;
  {
    const std::lock_guard lock(mutex);
  }  // close() is before its look, or asleep.
  idle.notify_all();
}

bool LocalPath::State::check(const Op& op, std::shared_ptr<PeerLink::RemoteBuffer>& buffer,
                             Status& status) const {
  if (is_closed) {
    status = closed_status();
  } else if (link->is_lost()) {
    status = Status(Code::kUnavailable, "the local peer is gone; open it again");
  } else if (op.deadline_ns <= monotonic_ns()) {
    status = Status(Code::kTimeout, "the deadline has passed");
  } else if (op.remote_buffer == kNoBuffer) {
    status = Status(Code::kInvalidArgument, "an op names no buffer of the peer");
  }
  if (!status.ok()) return true;
  buffer = link->find(op.remote_buffer);
  if (buffer == nullptr) return false;
  const LocalRange& range = buffer->range;
  const uint64_t offset = op.remote_address - range.address;
  if (!range.is_there) {
    status = Status(Code::kInvalidArgument,
                    "the peer has no buffer " + std::to_string(op.remote_buffer) + " any more");
  } else if (op.remote_address < range.address || offset > range.size ||
             op.size > range.size - offset) {
    status = Status(Code::kInvalidArgument,
                    std::to_string(op.size) + " bytes at " + std::to_string(op.remote_address) +
                        " are not within the peer's buffer " + std::to_string(op.remote_buffer));
  } else if (op.direction == Direction::kWrite && !range.remote_write) {
    status = Status(Code::kInvalidArgument,
                    "the peer lets nobody write to its buffer " + std::to_string(op.remote_buffer));
  } else if (range.is_on_device && !link->is_own_process()) {
    status = Status(Code::kUnsupported,
                    "memory of a GPU in another process is not reached by the local transport");
  }
  return true;
}

void LocalPath::State::start(const Op& op, uint64_t inline_max) {
  std::shared_ptr<PeerLink::RemoteBuffer> buffer;
  Status status;
  if (!check(op, buffer, status)) {
    {
      const std::lock_guard lock(mutex);
      waiting.push_back(op);
    }
    loop.wake_by(op.deadline_ns);
    // What it waits for, the end of the peer or of the path may have come meanwhile.
    if (is_closed || link->is_lost() || link->find(op.remote_buffer) != nullptr) start_waiting();
    return;
  }
  if (!status.ok() || op.size == 0) return complete(op, std::move(status));
  const Result<MemoryPlace> place = place_of(op.local_address, op.size);
  if (!place.ok()) return complete(op, place.status());
  const bool is_on_device = place.value().is_on_device() || buffer->range.is_on_device;
  uint64_t& inline_left = turn().inline_left;
  if (!is_on_device && op.size <= inline_max && op.size <= inline_left) {
    inline_left -= op.size;
    counters.inline_ops.fetch_add(1, std::memory_order_relaxed);
    return complete(op, copy(op, *buffer, 0, op.size));
  }
  counters.queued_ops.fetch_add(1, std::memory_order_relaxed);
  loop.wake_by(op.deadline_ns);
  const auto pieces =
      is_on_device && is_direct(op, place.value(), buffer->range) ? kDevicePieces : kPieces;
  queue.add(
      std::make_shared<OpJob>(shared_from_this(), op, std::move(buffer), is_on_device, pieces));
}

/// Starts the ops that waited, as far as there is news; ends them if there will be none.
void LocalPath::State::start_waiting() {
  std::vector<Op> ops;
  {
    const std::lock_guard lock(mutex);
    ops.swap(waiting);
  }
  // Not in this thread, which may be the loop's.
  for (const Op& op : ops) start(op, 0);
}

Status LocalPath::State::copy(const Op& op, PeerLink::RemoteBuffer& buffer, uint64_t offset,
                              uint64_t size) const {
  return link->copy(buffer, op.direction, local_memory_at(op.local_address + offset),
                    op.remote_address + offset, size, op.size >= kStreamingMin);
}

/// Whether a GPU reaches both ends by itself.
bool LocalPath::State::is_direct(const Op& op, const MemoryPlace& local,
                                 const LocalRange& range) const {
  if (!link->is_own_process() || (!local.is_on_device() && !local.is_pinned)) return false;
  if (range.is_on_device) return true;
  const Result<MemoryPlace> remote = place_of(op.remote_address, op.size);
  return remote.ok() && remote.value().is_pinned;
}

/// One end at least is memory of a GPU; in another process, only the local one.
Status LocalPath::State::copy_on_device(const Op& op, PeerLink::RemoteBuffer& buffer,
                                        uint64_t offset, uint64_t size) const {
  const bool is_read = op.direction == Direction::kRead;
  const uint64_t local = op.local_address + offset;
  const uint64_t remote = op.remote_address + offset;
  if (link->is_own_process()) {
    return link->use(buffer, [&] {
      return staging.move(is_read ? local : remote, is_read ? remote : local, size);
    });
  }
  const Result<MemoryPlace> place = place_of(local, size);
  if (!place.ok()) return place.status();
  const int device = place.value().device;
  const Result<DeviceStaging::Slot> slot = staging.take_waiting(device);
  if (!slot.ok()) return slot.status();
  uint8_t* memory = slot.value().memory();
  const uint64_t address = slot.value().address();
  for (uint64_t done = 0; done < size; done += DeviceStaging::kSlotSize) {
    const uint64_t piece = std::min(DeviceStaging::kSlotSize, size - done);
    if (is_read) {
      HICACHE_RETURN_IF_ERROR(
          link->copy(buffer, Direction::kRead, memory, remote + done, piece, false));
      HICACHE_RETURN_IF_ERROR(staging.copy_waiting(local + done, address, piece, device,
                                                   DeviceStaging::Way::kToDevice));
    } else {
      HICACHE_RETURN_IF_ERROR(staging.copy_waiting(address, local + done, piece, device,
                                                   DeviceStaging::Way::kFromDevice));
      HICACHE_RETURN_IF_ERROR(
          link->copy(buffer, Direction::kWrite, memory, remote + done, piece, false));
    }
  }
  return Status();
}

void LocalPath::State::complete(const Op& op, Status status) {
  if (!status.ok()) {
    counters.failed_ops.fetch_add(1, std::memory_order_relaxed);
  } else {
    auto& bytes = op.direction == Direction::kRead ? counters.read_bytes : counters.written_bytes;
    bytes.fetch_add(op.size, std::memory_order_relaxed);
  }
  deliver(op.token, std::move(status));
}

void LocalPath::State::deliver(uint64_t token, Status status) {
  Turn& own = turn();
  own.completions.push_back({shared_from_this(), token, std::move(status)});
  if (own.is_delivering) return;
  own.is_delivering = true;
  while (!own.completions.empty()) {
    Turn::Completion next = std::move(own.completions.front());
    own.completions.pop_front();
    next.state->in_flight.fetch_sub(1);
    next.state->sink.complete(next.token, std::move(next.status));
    next.state->delivered(1);
  }
  own.is_delivering = false;
}

void LocalPath::State::on_lost() {
  const Status status(Code::kUnavailable, "the local peer is gone; open it again");
  queue.fail(this, status);
  start_waiting();
}

uint64_t LocalPath::State::on_link_time(uint64_t now_ns) {
  uint64_t next_ns = queue.expire(this, now_ns);
  start_waiting();
  const std::lock_guard lock(mutex);
  for (const Op& op : waiting) next_ns = std::min(next_ns, op.deadline_ns);
  return next_ns;
}

void LocalPath::State::close() {
  is_closed = true;
  queue.fail(this, closed_status());
  start_waiting();
  std::unique_lock lock(mutex);
  idle.wait(lock, [this] { return undelivered == 0; });
  lock.unlock();
  link->close();
}

// ---- The path

LocalPath::LocalPath(std::shared_ptr<PeerLink> link, CopyQueue& queue, DeviceStaging& staging,
                     IoLoop& loop, CompletionSink& sink, LocalCounters& counters)
    : state_(std::make_shared<State>(std::move(link), queue, staging, loop, sink, counters)) {
  state_->counters.paths.fetch_add(1);
  state_->link->start(state_);
}

LocalPath::~LocalPath() {
  close();
  state_->counters.paths.fetch_sub(1);
}

const std::string& LocalPath::name() const {
  return state_->link->name();
}

PathCost LocalPath::cost() const {
  return kCost;
}

uint64_t LocalPath::slice_size_bytes() const {
  return kSliceSize;
}

size_t LocalPath::submit(std::span<const Op> ops) {
  return state_->submit(ops);
}

Status LocalPath::probe() {
  return state_->link->probe();
}

void LocalPath::close() {
  state_->close();
}

PeerLink& LocalPath::link() const {
  return *state_->link;
}

}  // namespace hicache
