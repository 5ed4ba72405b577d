#include "store/pool_pinner.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace hicache {
namespace {

// The node backs memory after a put has used some: where a copy has come to a new unit, more will
// have memory soon.
constexpr std::chrono::milliseconds kLookEvery{100};
constexpr int kLooksInVainMax = 20;  // Then the thread waits for a copy to come to a new unit.
// The driver keeps who launches kernels waiting while it pins, and pins what is mapped in half the
// time. Whoever wants to map or unmap memory waits for a step of mapping.
constexpr uint64_t kMapStepSize = 8 * kMiB;
constexpr int kNiceBy = 5;  // As copies: the engine's own threads come first.

}  // namespace

PoolPinner::PoolPinner(SharedMemory& memory, std::shared_ptr<GpuLane> lane)
    : memory_(memory),
      lane_(std::move(lane)),
      unit_count_((memory.size_bytes() + kUnitSize - 1) / kUnitSize),
      units_(std::make_unique<std::atomic<State>[]>(unit_count_)) {
  const auto run = [](void* self) -> void* {
    static_cast<PoolPinner*>(self)->run();
    return nullptr;
  };
  // Not std::thread, which throws where there is a limit on threads.
  has_thread_ = pthread_create(&thread_, nullptr, run, this) == 0;
}

PoolPinner::~PoolPinner() {
  {
    const std::lock_guard lock(wake_mutex_);
    closing_ = true;
  }
  wake_.notify_one();
  if (has_thread_) pthread_join(thread_, nullptr);
  for (uint64_t unit = 0; unit < unit_count_; ++unit) {
    if (units_[unit] == State::kPinned) lane_->unpin(memory_.address() + unit * kUnitSize);
  }
}

uint64_t PoolPinner::unit_size(uint64_t unit) const {
  return std::min(kUnitSize, memory_.size_bytes() - unit * kUnitSize);
}

bool PoolPinner::pin_unit(uint64_t offset) {
  const uint64_t unit = offset / kUnitSize;
  State state = units_[unit].load(std::memory_order_acquire);
  if (state == State::kOpen) {
    {
      const std::lock_guard lock(mutex_);
      state = units_[unit].load(std::memory_order_relaxed);
      if (state == State::kOpen) {
        const Status pinned = lane_->pin(memory_.address() + unit * kUnitSize, unit_size(unit));
        state = pinned.ok() ? State::kPinned : State::kRefused;
        units_[unit].store(state, std::memory_order_release);
      }
    }
    wake_thread();
  }
  return state == State::kPinned;
}

void PoolPinner::wake_thread() {
  {
    const std::lock_guard lock(wake_mutex_);
    is_awake_ = true;
  }
  wake_.notify_one();
}

void PoolPinner::run() {
  const auto self = static_cast<id_t>(gettid());
  setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + kNiceBy);
  for (int in_vain = 0;;) {
    in_vain = pin_backed() ? 0 : in_vain + 1;
    std::unique_lock lock(wake_mutex_);
    if (in_vain < kLooksInVainMax) {
      wake_.wait_for(lock, kLookEvery, [this] { return closing_.load(); });
    } else {
      is_awake_ = false;
      wake_.wait(lock, [this] { return closing_ || is_awake_; });
      in_vain = 0;
    }
    if (closing_) return;
  }
}

/// Pins every unit that has memory. False: there was none.
bool PoolPinner::pin_backed() {
  bool is_any = false;
  for (uint64_t unit = 0; unit < unit_count_ && !closing_; ++unit) {
    if (units_[unit] != State::kOpen) continue;
    const uint64_t begin = unit * kUnitSize;
    const auto backed = memory_.backed_range(begin, unit_size(unit));
    if (!backed) return is_any;
    if (backed->offset != begin || backed->size_bytes < unit_size(unit)) continue;
    if (!map_unit(begin, backed->size_bytes) || !pin_unit(begin)) return is_any;
    is_any = true;
  }
  return is_any;
}

/// Maps a unit that has memory into this process.
bool PoolPinner::map_unit(uint64_t begin, uint64_t size) {
  for (uint64_t done = 0; done < size; done += kMapStepSize) {
    const uint64_t step = std::min(kMapStepSize, size - done);
    if (!memory_.populate(begin + done, step, SharedMemory::Access::kWrite).ok()) return false;
  }
  return true;
}

}  // namespace hicache
