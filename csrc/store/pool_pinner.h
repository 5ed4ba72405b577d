// Pins the pool for GPUs, so that they read and write pages without the CPU.
//
// Pinning takes some 50 ms per GiB, and the driver wants memory behind all of it. So it is done a
// unit at a time: by a thread, for what has memory, which the node sees to ahead of the writers;
// for the rest when a copy first touches it. Whatever the driver refuses is copied all the same,
// through its own staging.
//
// Threads: any.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "base/bytes.h"
#include "io/memory.h"
#include "transfer/gpu_lane.h"

namespace hicache {

class PoolPinner {
 public:
  /// No copy may cross a border between units.
  static constexpr uint64_t kUnitSize = 64 * kMiB;

  /// Starts the thread; without one, if the system allows no more, nothing is pinned ahead.
  PoolPinner(SharedMemory& memory, std::shared_ptr<GpuLane> lane);
  /// Waits for one unit of the thread, and unpins everything.
  ~PoolPinner();
  PoolPinner(const PoolPinner&) = delete;
  PoolPinner& operator=(const PoolPinner&) = delete;

  /// Pins the unit that an offset lies in, with memory behind all of it, as the caller has seen to.
  /// False: the driver refuses. Blocks some milliseconds the first time.
  bool pin_unit(uint64_t offset);
  /// There is no memory for all of a unit: it is not tried again, unless another has pinned it.
  void refuse_unit(uint64_t offset) {
    State open = State::kOpen;
    units_[offset / kUnitSize].compare_exchange_strong(open, State::kRefused);
  }

  enum class State : uint8_t { kOpen, kPinned, kRefused };
  State state(uint64_t offset) const {
    return units_[offset / kUnitSize].load(std::memory_order_acquire);
  }
  /// Whether the thread waits for a copy that comes to a new unit.
  bool is_asleep() {
    const std::lock_guard lock(wake_mutex_);
    return !is_awake_;
  }

 private:
  uint64_t unit_size(uint64_t unit) const;
  void wake_thread();
  void run();
  bool pin_backed();
  bool map_unit(uint64_t begin, uint64_t size);

  SharedMemory& memory_;
  const std::shared_ptr<GpuLane> lane_;
  const uint64_t unit_count_;
  const std::unique_ptr<std::atomic<State>[]> units_;
  std::mutex mutex_;  // Of the driver's calls.
  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool is_awake_ = true;  // Guarded by wake_mutex_.
  std::atomic<bool> closing_{false};
  bool has_thread_ = false;
  pthread_t thread_{};
};

}  // namespace hicache
