// A stream of one GPU for copies, in the order in which they are queued, and marks in it.
//
// It is not ordered with the caller's streams: whoever has GPU memory read synchronises with the
// kernels that wrote it first; whoever reads what was copied waits for a mark, or has his stream
// wait for it.
//
// Threads: any. A lane lives as long as one of its marks.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "io/gpu.h"

namespace hicache {

class GpuLane : public std::enable_shared_from_this<GpuLane> {
 public:
  /// A place in the stream: reached when everything queued before it has been copied.
  class Mark {
   public:
    ~Mark();
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;
    /// Blocks, asleep, until it is reached. CUDA knows no deadline: a device that works takes
    /// milliseconds. An error: of a copy before it.
    Status wait() const;
    /// What is queued on `stream` from now on comes after it. Does not block.
    Status hold(GpuStream stream) const;

   private:
    friend class GpuLane;
    Mark(std::shared_ptr<GpuLane> lane, GpuEvent event) : lane_(std::move(lane)), event_(event) {}
    std::shared_ptr<GpuLane> lane_;
    GpuEvent event_;
  };

  /// kUnsupported: this process does not use CUDA.
  static Result<std::shared_ptr<GpuLane>> open(int device);
  ~GpuLane();
  GpuLane(const GpuLane&) = delete;
  GpuLane& operator=(const GpuLane&) = delete;

  /// Queues copies, which may run in any order among themselves. All host memory is pinned.
  Status copy(std::span<const GpuCopy> copies);
  /// The same for host memory that is not pinned: slower, and it may block for the copy.
  Status copy_pageable(std::span<const GpuCopy> copies);
  Result<std::shared_ptr<const Mark>> mark();
  /// Waits until nothing is queued any more, after an error.
  void drain();

  /// Pins memory for all devices, see GpuDriver::host_register().
  Status pin(void* address, size_t size);
  void unpin(void* address);

 private:
  GpuLane(const GpuDriver& driver, int device) : driver_(driver), device_(device) {}
  Status start();
  Status failed(const char* tried, int error) const;
  /// A forked child has no driver: nothing of CUDA may be touched there.
  bool is_of_this_process() const { return GpuDriver::of_process() == &driver_; }

  const GpuDriver& driver_;
  const int device_;
  GpuContext context_ = nullptr;
  GpuStream stream_ = nullptr;
};

}  // namespace hicache
