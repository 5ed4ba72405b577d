// Maps what is in the pool already into a process that has just connected.
//
// An OS page of shared memory is mapped into a process at its first touch there, which takes longer
// than copying it: an engine that restarts beside a node full of pages would pay for that in its
// first hits. This thread does it beforehand, once, for what memory stands behind: it never makes
// the kernel back anything.
//
// It is no guarantee: whoever touches the pool still calls ClientConnection::back() first.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <functional>

#include "io/memory.h"

namespace hicache {

class PoolMapper {
 public:
  /// More of the pool is mapped as it is touched: page tables take an eighth of a percent of it (of
  /// 4 KiB OS pages), in each process.
  static constexpr uint64_t kMappedBytesMax = 64ULL << 30;

  /// Called on the mapper's thread for each part that is mapped.
  using OnMapped = std::function<void(uint64_t offset, uint64_t size)>;

  /// Starts the thread; without one, if the system allows no more, nothing is mapped ahead.
  PoolMapper(SharedMemory& memory, OnMapped on_mapped);
  /// Waits for one step of the thread: some milliseconds.
  ~PoolMapper();
  PoolMapper(const PoolMapper&) = delete;
  PoolMapper& operator=(const PoolMapper&) = delete;

  /// Whether everything is done that will be.
  bool is_finished() const { return finished_; }

 private:
  void run();

  SharedMemory& memory_;
  const OnMapped on_mapped_;
  std::atomic<bool> closing_{false};
  std::atomic<bool> finished_{false};
  bool has_thread_ = false;
  pthread_t thread_{};
};

}  // namespace hicache
