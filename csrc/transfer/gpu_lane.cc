#include "transfer/gpu_lane.h"

namespace hicache {

GpuLane::Mark::~Mark() {
  if (!lane_->is_of_this_process()) return;
  const CurrentGpuContext current(lane_->driver_, lane_->context_);
  (void)lane_->driver_.event_destroy(event_);
}

Status GpuLane::Mark::wait() const {
  const CurrentGpuContext current(lane_->driver_, lane_->context_);
  int error = current.error();
  if (error == 0) error = lane_->driver_.event_wait(event_);
  return error == 0 ? Status() : lane_->failed("copying", error);
}

Status GpuLane::Mark::hold(GpuStream stream) const {
  const CurrentGpuContext current(lane_->driver_, lane_->context_);
  int error = current.error();
  if (error == 0) error = lane_->driver_.stream_wait_event(stream, event_);
  return error == 0 ? Status() : lane_->failed("having a stream wait for copies", error);
}

Result<std::shared_ptr<GpuLane>> GpuLane::open(int device) {
  const GpuDriver* driver = GpuDriver::of_process();
  if (driver == nullptr) {
    return Status(Code::kUnsupported,
                  "cuda:" + std::to_string(device) + ": this process does not use the CUDA driver");
  }
  std::shared_ptr<GpuLane> lane = std::unique_ptr<GpuLane>(new GpuLane(*driver, device));
  HICACHE_RETURN_IF_ERROR(lane->start());
  return lane;
}

Status GpuLane::start() {
  if (const int error = driver_.context_retain(device_, &context_); error != 0) {
    context_ = nullptr;
    return failed("taking the primary context", error);
  }
  const CurrentGpuContext current(driver_, context_);
  int error = current.error();
  if (error == 0) error = driver_.stream_create(&stream_);
  return error == 0 ? Status() : failed("making a stream for copies", error);
}

GpuLane::~GpuLane() {
  if (!is_of_this_process() || context_ == nullptr) return;
  {
    const CurrentGpuContext current(driver_, context_);
    if (stream_ != nullptr) (void)driver_.stream_destroy(stream_);
  }
  (void)driver_.context_release(device_);
}

Status GpuLane::copy(std::span<const GpuCopy> copies) {
  if (copies.empty()) return Status();
  const CurrentGpuContext current(driver_, context_);
  int error = current.error();
  if (error == 0) error = driver_.copy_all_async(copies, stream_);
  return error == 0 ? Status() : failed("queueing copies", error);
}

Status GpuLane::copy_pageable(std::span<const GpuCopy> copies) {
  if (copies.empty()) return Status();
  const CurrentGpuContext current(driver_, context_);
  int error = current.error();
  for (const GpuCopy& copy : copies) {
    if (error == 0) error = driver_.copy_async(copy.target, copy.source, copy.size, stream_);
  }
  return error == 0 ? Status() : failed("copying memory that is not pinned", error);
}

Result<std::shared_ptr<const GpuLane::Mark>> GpuLane::mark() {
  const CurrentGpuContext current(driver_, context_);
  GpuEvent event = nullptr;
  int error = current.error();
  if (error == 0) error = driver_.event_create(&event);
  if (error != 0) return failed("making an event", error);
  std::shared_ptr<const Mark> mark = std::unique_ptr<Mark>(new Mark(shared_from_this(), event));
  error = driver_.event_record(event, stream_);
  if (error != 0) return failed("recording an event", error);
  return mark;
}

void GpuLane::drain() {
  const CurrentGpuContext current(driver_, context_);
  if (current.error() == 0) (void)driver_.stream_wait(stream_);
}

Status GpuLane::pin(void* address, size_t size) {
  const CurrentGpuContext current(driver_, context_);
  int error = current.error();
  if (error == 0) error = driver_.host_register(address, size);
  return error == 0 ? Status() : failed("pinning memory of the pool", error);
}

void GpuLane::unpin(void* address) {
  if (!is_of_this_process()) return;
  const CurrentGpuContext current(driver_, context_);
  if (current.error() == 0) (void)driver_.host_unregister(address);
}

Status GpuLane::failed(const char* tried, int error) const {
  return Status(Code::kIo, "cuda:" + std::to_string(device_) + ": " + tried +
                               ": the CUDA driver answers " + driver_.error_name(error));
}

}  // namespace hicache
