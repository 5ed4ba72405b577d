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

void PoolGrower::grow_now() {
  std::lock_guard step_lock(grow_mutex_);
  {
    // What the thread was populating meanwhile is enough.
    std::lock_guard lock(mutex_);
    if (!ready_.empty()) return;
  }
  grow();
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

bool PoolGrower::is_complete() const {
  std::lock_guard lock(mutex_);
  return is_complete_ && ready_.empty();
}

std::string PoolGrower::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

void PoolGrower::grow() {
  const uint64_t size = std::min(kStepSize, pool_size_bytes_ - populated_bytes_);
  {
    std::lock_guard lock(mutex_);
    if (is_complete_) return;
  }
  Status status;
  if (size != 0) status = memory_.populate(populated_bytes_, size);
  std::lock_guard lock(mutex_);
  is_complete_ = size == 0 || !status.ok();
  if (is_complete_) {
    failure_ = status.message();
    return;
  }
  ready_.push_back({populated_bytes_, size});
  populated_bytes_ += size;
}

void PoolGrower::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return closing_ || (is_wanted_ && !is_complete_); });
    if (closing_) return;
    lock.unlock();
    {
      std::lock_guard step_lock(grow_mutex_);
      grow();
    }
    lock.lock();
    is_wanted_ = false;  // The owner adds the step and asks again if that is not enough.
    lock.unlock();
    on_ready_();
    lock.lock();
  }
}

}  // namespace hicache
