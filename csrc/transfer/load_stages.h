// How a load into memory that somebody is about to use tells him what has arrived: layer by layer.
//
// A load is made of parts, each a get of its own (of the pools of an engine, say), and of stages,
// which arrive in order (the model's layers). Each part says of each stage when its copies are
// queued, or that it has ended; the user waits for a stage, on a stream of a GPU or asleep, and has
// it when all parts have.
//
// Having a stage is no proof that it is right: checksums are of whole pages. Whether a load was,
// its gets say when they return; until then nothing that was made of it may be shown to anybody.
//
// Threads: any.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "transfer/gpu_lane.h"

namespace hicache {

class LoadStages {
 public:
  LoadStages(size_t stage_count, size_t part_count);

  size_t stage_count() const { return stage_count_; }
  size_t part_count() const { return parts_.size(); }

  /// The next stage of a part is queued on a GPU; `mark` comes when it has been copied.
  void queued(size_t part, std::shared_ptr<const GpuLane::Mark> mark);
  /// A part has ended, well or not: nobody waits for it any more.
  void end(size_t part);

  /// Blocks until all parts have queued a stage or ended, and has `stream` wait for what is queued.
  /// False: not until the deadline, or the driver failed.
  bool wait(size_t stage, GpuStream stream, Deadline deadline) const;

 private:
  struct Part {
    std::vector<std::shared_ptr<const GpuLane::Mark>> marks;  // Of stages that are queued.
    bool has_ended = false;
  };

  const size_t stage_count_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<Part> parts_;
};

}  // namespace hicache
