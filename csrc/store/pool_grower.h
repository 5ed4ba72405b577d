// Backs the pool with real memory ahead of demand, so that a node uses what it needs and a put does
// not wait for the kernel to clear pages.
//
// A thread populates steps of the pool while free populated memory is short; a put that outruns it
// populates one step itself. Steps become usable only when populated. When the machine has no
// memory left the pool stays as large as it is, with a notice.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/memory.h"
#include "tier/extent.h"

namespace hicache {

class PoolGrower {
 public:
  /// `on_ready` is called on the grower's thread whenever take_ready() or failure() may have
  /// something new.
  PoolGrower(SharedMemory& memory, uint64_t pool_size_bytes, std::function<void()> on_ready);
  ~PoolGrower();

  /// Populated steps not taken yet. Never blocks on the kernel.
  std::vector<Extent> take_ready();

  /// Makes take_ready() have something new, unless the pool is complete: waits for the step in
  /// progress, or populates one on the calling thread. Blocks.
  void grow_now();

  /// Asks the thread to keep this much populated and unused memory.
  void want(uint64_t free_bytes);

  /// True once there is nothing more to populate, or no memory for it.
  bool is_complete() const;

  /// Why the pool could not grow to its size; empty while it can.
  std::string failure() const;

 private:
  /// Populates one step into ready_, or finds the pool complete. Requires: grow_mutex_ held.
  void grow();
  void run();

  SharedMemory& memory_;
  const uint64_t pool_size_bytes_;
  const std::function<void()> on_ready_;
  std::mutex grow_mutex_;  // One step at a time.
  uint64_t populated_bytes_ = 0;
  mutable std::mutex mutex_;  // Guards what follows.
  std::condition_variable wake_;
  std::vector<Extent> ready_;
  std::string failure_;
  bool is_wanted_ = false;
  bool is_complete_ = false;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace hicache
