#include "store/pool_backer.h"

#include <algorithm>

#include "base/bytes.h"

namespace hicache {
namespace {

constexpr uint64_t kStepSize = 32 * kMiB;  // What closing may have to wait for: some 20 ms.

}  // namespace

PoolBacker::PoolBacker(SharedMemory& memory, std::function<void()> on_failure)
    : memory_(memory), on_failure_(std::move(on_failure)), thread_([this] { run(); }) {}

PoolBacker::~PoolBacker() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void PoolBacker::want(uint64_t end_offset) {
  {
    std::lock_guard lock(mutex_);
    if (end_offset <= wanted_bytes_) return;
    wanted_bytes_ = std::min(end_offset, memory_.size_bytes());
  }
  wake_.notify_all();
}

uint64_t PoolBacker::backed_bytes() const {
  std::lock_guard lock(mutex_);
  return backed_bytes_;
}

std::string PoolBacker::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

void PoolBacker::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return closing_ || backed_bytes_ < wanted_bytes_; });
    if (closing_) return;
    const uint64_t offset = backed_bytes_;
    const uint64_t size = std::min(kStepSize, wanted_bytes_ - offset);
    lock.unlock();
    const Status status = memory_.populate(offset, size, SharedMemory::Access::kWrite);
    lock.lock();
    failure_ = status.message();
    if (status.ok()) {
      backed_bytes_ += size;
      continue;
    }
    wanted_bytes_ = backed_bytes_;  // Until somebody wants more again.
    lock.unlock();
    on_failure_();
    lock.lock();
  }
}

}  // namespace hicache
