#include "transfer/tcp/range_table.h"

#include <string>

namespace hicache {

void RangeTable::Use::end() {
  if (range_ == nullptr) return;
  if (range_->users.fetch_sub(1, std::memory_order_acq_rel) == 1) range_->users.notify_all();
  range_.reset();
}

Status RangeTable::add(const Buffer& buffer) {
  auto range = std::make_shared<Range>();
  range->address = buffer.address;
  range->size = buffer.size;
  range->remote_write = buffer.remote_write;
  range->is_on_device = buffer.kind == MemoryKind::kCuda;
  const std::lock_guard lock(mutex_);
  if (!ranges_.emplace(buffer.id, std::move(range)).second) {
    return Status(Code::kAlreadyExists, "the buffer " + std::to_string(buffer.id) +
                                            " is registered with the TCP transport already");
  }
  return Status();
}

void RangeTable::remove(BufferId buffer) {
  std::shared_ptr<Range> range;
  {
    const std::lock_guard lock(mutex_);
    const auto found = ranges_.find(buffer);
    if (found == ranges_.end()) return;
    range = std::move(found->second);
    ranges_.erase(found);
  }
  for (uint32_t users; (users = range->users.load(std::memory_order_acquire)) != 0;) {
    range->users.wait(users, std::memory_order_acquire);
  }
}

RangeTable::Use RangeTable::use(BufferId buffer, uint64_t address, uint64_t size,
                                Access access) const {
  const std::lock_guard lock(mutex_);
  const auto found = ranges_.find(buffer);
  if (found == ranges_.end()) return Use();
  const Range& range = *found->second;
  if (access == Access::kWrite && !range.remote_write) return Use();
  if (address < range.address || size > range.size || address - range.address > range.size - size) {
    return Use();
  }
  found->second->users.fetch_add(1, std::memory_order_relaxed);
  return Use(found->second);
}

bool RangeTable::is_on_device(BufferId buffer) const {
  const std::lock_guard lock(mutex_);
  const auto found = ranges_.find(buffer);
  return found != ranges_.end() && found->second->is_on_device;
}

}  // namespace hicache
