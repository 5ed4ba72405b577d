#include "store/pool_grower.h"

#include <algorithm>

#include "base/bytes.h"

namespace hicache {
namespace {

constexpr uint64_t kStepSize = 32 * kMiB;
constexpr uint64_t kAheadSize = 256 * kMiB;

}  // namespace

PoolGrower::PoolGrower(SharedMemory& memory, uint64_t pool_size_bytes,
                       std::function<void()> on_ready)
    : memory_(memory),
      pool_size_bytes_(pool_size_bytes),
      on_ready_(std::move(on_ready)),
      thread_([this] { run(); }) {}

PoolGrower::~PoolGrower() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::vector<Extent> PoolGrower::take_ready() {
  std::lock_guard lock(mutex_);
  return std::exchange(ready_, {});
}

std::optional<Extent> PoolGrower::grow_now() {
  return grow();
}

void PoolGrower::want(uint64_t free_bytes) {
  const bool wanted = free_bytes < kAheadSize;
  {
    std::lock_guard lock(mutex_);
    if (is_wanted_ == wanted) return;
    is_wanted_ = wanted;
  }
  if (wanted) wake_.notify_all();
}

std::string PoolGrower::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

std::optional<Extent> PoolGrower::grow() {
  std::lock_guard step_lock(grow_mutex_);
  const uint64_t size = std::min(kStepSize, pool_size_bytes_ - populated_bytes_);
  {
    std::lock_guard lock(mutex_);
    if (is_complete_) return std::nullopt;
  }
  Status status;
  if (size != 0) status = memory_.populate(populated_bytes_, size);
  std::lock_guard lock(mutex_);
  is_complete_ = size == 0 || !status.ok();
  if (is_complete_) {
    failure_ = status.message();
    return std::nullopt;
  }
  const Extent step{populated_bytes_, size};
  populated_bytes_ += size;
  return step;
}

void PoolGrower::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return closing_ || (is_wanted_ && !is_complete_); });
    if (closing_) return;
    lock.unlock();
    const std::optional<Extent> step = grow();
    lock.lock();
    if (!step) continue;
    ready_.push_back(*step);
    is_wanted_ = false;  // The owner adds the step and asks again if that is not enough.
    lock.unlock();
    on_ready_();
    lock.lock();
  }
}

}  // namespace hicache
