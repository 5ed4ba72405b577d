#include "transfer/load_stages.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace hicache {

LoadStages::LoadStages(size_t stage_count, size_t part_count)
    : stage_count_(stage_count), parts_(part_count) {}

void LoadStages::queued(size_t part, std::shared_ptr<const GpuLane::Mark> mark) {
  {
    const std::lock_guard lock(mutex_);
    parts_[part].marks.push_back(std::move(mark));
  }
  changed_.notify_all();
}

void LoadStages::end(size_t part) {
  {
    const std::lock_guard lock(mutex_);
    parts_[part].has_ended = true;
  }
  changed_.notify_all();
}

bool LoadStages::wait(size_t stage, GpuStream stream, Deadline deadline) const {
  std::vector<std::shared_ptr<const GpuLane::Mark>> marks;
  {
    std::unique_lock lock(mutex_);
    const auto is_there = [&] {
      return std::all_of(parts_.begin(), parts_.end(), [&](const Part& part) {
        return part.has_ended || part.marks.size() > stage;
      });
    };
    if (!changed_.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()), is_there)) {
      return false;
    }
    for (const Part& part : parts_) {
      // One that has ended has waited for its copies.
      if (!part.has_ended) marks.push_back(part.marks[stage]);
    }
  }
  bool is_held = true;
  for (const auto& mark : marks) is_held &= mark->hold(stream).ok();
  return is_held;
}

}  // namespace hicache
