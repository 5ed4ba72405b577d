#include "transfer/device_staging.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "transfer/memory_place.h"

namespace hicache {
namespace {

/// Pinning costs a call of milliseconds, whatever its size.
constexpr size_t kSlotsAtOnce = 16;

Status stopped() {
  return Status(Code::kCancelled, "copies of GPU memory were stopped");
}

}  // namespace

DeviceStaging::~DeviceStaging() {
  stop();
  // In a forked child nothing of CUDA may be touched; the parent frees it.
  if (driver_ == nullptr || GpuDriver::of_process() != driver_) return;
  for (const auto& [context, event] : events_) {
    const CurrentGpuContext current(*driver_, context);
    (void)driver_->event_destroy(event);
  }
  for (const auto& [context, arena] : arenas_) {
    const CurrentGpuContext current(*driver_, context);
    (void)driver_->host_free(arena);
  }
  for (const auto& [ordinal, device] : devices_) {
    if (device.context == nullptr) continue;
    for (const GpuStream stream : device.streams) {
      const CurrentGpuContext current(*driver_, device.context);
      if (stream != nullptr) (void)driver_->stream_destroy(stream);
    }
    (void)driver_->context_release(ordinal);
  }
}

void DeviceStaging::stop() {
  std::unique_lock lock(mutex_);
  is_stopping_ = true;
  wake_.notify_all();
  slot_free_.notify_all();
  if (!std::exchange(has_thread_, false)) return;
  lock.unlock();
  pthread_join(thread_, nullptr);
}

Status DeviceStaging::failed(const std::string& tried, int error) const {
  return Status(Code::kIo, tried + ": the CUDA driver answers " + driver_->error_name(error));
}

// ---- Devices, slots, events

DeviceStaging::Device& DeviceStaging::device_of(int ordinal) {
  const auto [found, is_new] = devices_.try_emplace(ordinal);
  if (is_new) found->second.failure = open(ordinal, found->second);
  return found->second;
}

Status DeviceStaging::open(int ordinal, Device& device) {
  if (driver_ == nullptr) driver_ = GpuDriver::of_process();
  if (driver_ == nullptr) {
    return Status(Code::kUnsupported, "this process does not use the CUDA driver");
  }
  const std::string name = "cuda:" + std::to_string(ordinal);
  if (const int error = driver_->context_retain(ordinal, &device.context); error != 0) {
    device.context = nullptr;
    return failed("taking the primary context of " + name, error);
  }
  const CurrentGpuContext current(*driver_, device.context);
  int error = current.error();
  for (GpuStream& stream : device.streams) {
    if (error == 0) error = driver_->stream_create(&stream);
  }
  return error == 0 ? Status() : failed("making streams for copies on " + name, error);
}

Status DeviceStaging::add_slots(Device& device) {
  const CurrentGpuContext current(*driver_, device.context);
  void* arena = nullptr;
  int error = current.error();
  if (error == 0) error = driver_->host_alloc(&arena, kSlotsAtOnce * kSlotSize);
  if (error != 0) {
    return failed("pinning " + std::to_string(kSlotsAtOnce * kSlotSize) +
                      " bytes through which GPU memory is moved",
                  error);
  }
  arenas_.emplace_back(device.context, arena);
  for (size_t i = 0; i < kSlotsAtOnce; ++i) {
    free_.push_back(static_cast<uint8_t*>(arena) + i * kSlotSize);
  }
  slot_count_ += kSlotsAtOnce;
  return Status();
}

Status DeviceStaging::start_thread() {
  if (has_thread_) return Status();
  const auto run_it = [](void* self) -> void* {
    static_cast<DeviceStaging*>(self)->run();
    return nullptr;
  };
  const int error = pthread_create(&thread_, nullptr, run_it, this);
  if (error != 0) return io_error("starting the thread for copies of GPU memory", error);
  has_thread_ = true;
  pthread_setname_np(thread_, thread_name_.c_str());
  return Status();
}

Result<DeviceStaging::Slot> DeviceStaging::take(const std::weak_ptr<Customer>& customer,
                                                int device) {
  const std::lock_guard lock(mutex_);
  if (is_stopping_) return stopped();
  HICACHE_RETURN_IF_ERROR(device_of(device).failure);
  HICACHE_RETURN_IF_ERROR(start_thread());
  if (free_.empty() && slot_count_ < kSlotsMax) {
    const Status added = add_slots(device_of(device));
    if (!added.ok() && slot_count_ == 0) return added;  // Else those that there are have to do.
  }
  if (free_.empty() || !waiting_.empty()) {
    waiting_.push_back(customer);
    wake_.notify_all();
    return Slot();
  }
  uint8_t* memory = free_.back();
  free_.pop_back();
  return Slot(this, memory);
}

Result<DeviceStaging::Slot> DeviceStaging::take_waiting(int device) {
  std::unique_lock lock(mutex_);
  HICACHE_RETURN_IF_ERROR(device_of(device).failure);
  if (free_.empty() && slot_count_ < kSlotsMax) {
    const Status added = add_slots(device_of(device));
    if (!added.ok() && slot_count_ == 0) return added;
  }
  slot_free_.wait(lock, [&] { return is_stopping_ || (!free_.empty() && waiting_.empty()); });
  if (is_stopping_) return stopped();
  uint8_t* memory = free_.back();
  free_.pop_back();
  return Slot(this, memory);
}

void DeviceStaging::Slot::reset() {
  if (owner_ != nullptr) std::exchange(owner_, nullptr)->give_back(memory_);
}

void DeviceStaging::give_back(uint8_t* memory) {
  const std::lock_guard lock(mutex_);
  free_.push_back(memory);
  if (!waiting_.empty()) {
    wake_.notify_all();
  } else {
    slot_free_.notify_one();
  }
}

uint64_t DeviceStaging::pinned_bytes() const {
  const std::lock_guard lock(mutex_);
  return slot_count_ * kSlotSize;
}

void DeviceStaging::wake_by(uint64_t time_ns, const std::weak_ptr<Customer>& customer) {
  const std::lock_guard lock(mutex_);
  std::erase_if(timed_, [](const auto& one) { return one.expired(); });
  const bool is_known = std::any_of(timed_.begin(), timed_.end(), [&](const auto& one) {
    return !one.owner_before(customer) && !customer.owner_before(one);
  });
  if (!is_known) timed_.push_back(customer);
  if (time_ns >= wake_ns_) return;
  wake_ns_ = time_ns;
  wake_.notify_all();
}

GpuEvent DeviceStaging::spare_event(const Device& device, Status& status) {
  const auto found = std::find_if(events_.begin(), events_.end(),
                                  [&](const auto& spare) { return spare.first == device.context; });
  GpuEvent event = nullptr;
  if (found != events_.end()) {
    event = found->second;
    events_.erase(found);
  } else if (const int error = driver_->event_create(&event); error != 0) {
    status = failed("making an event for a copy", error);
  }
  return event;
}

// ---- Copying

DeviceStaging::Copy DeviceStaging::begin(uint64_t target, uint64_t source, uint64_t size,
                                         int ordinal, Way way) {
  Copy copy;
  const std::lock_guard lock(mutex_);
  const Device& device = device_of(ordinal);
  copy.failure = device.failure;
  if (!copy.failure.ok()) return copy;
  copy.context = device.context;
  const CurrentGpuContext current(*driver_, device.context);
  if (current.error() != 0) {
    copy.failure = failed("using cuda:" + std::to_string(ordinal), current.error());
    return copy;
  }
  copy.event = spare_event(device, copy.failure);
  if (!copy.failure.ok()) return copy;
  const GpuStream stream = device.streams[way == Way::kToDevice ? 0 : 1];
  int error = driver_->copy_async(target, source, size, stream);
  if (error == 0) {
    error = driver_->event_record(copy.event, stream);
    if (error != 0) (void)driver_->stream_wait(stream);  // It must not run on unseen.
  }
  if (error == 0) {
    copied_bytes_.fetch_add(size, std::memory_order_relaxed);
    return copy;
  }
  copy.failure =
      failed("copying " + std::to_string(size) + " bytes " +
                 (way == Way::kToDevice ? "to" : "from") + " cuda:" + std::to_string(ordinal),
             error);
  return copy;
}

/// Blocks until it has ended, and keeps its event for another.
Status DeviceStaging::end(Copy& copy) {
  Status status = std::move(copy.failure);
  if (status.ok()) {
    // What fails here is the device or its context: nothing runs there any more.
    const CurrentGpuContext current(*driver_, copy.context);
    const int error = driver_->event_wait(copy.event);
    if (error != 0) status = failed("waiting for a copy of GPU memory", error);
  }
  if (copy.event != nullptr) {
    const std::lock_guard lock(mutex_);
    events_.emplace_back(copy.context, copy.event);
  }
  return status;
}

void DeviceStaging::copy(uint64_t target, uint64_t source, uint64_t size, int device, Way way,
                         Done done) {
  Copy copy = begin(target, source, size, device, way);
  copy.done = std::move(done);
  {
    const std::lock_guard lock(mutex_);
    if (!is_stopping_) {
      const Status started = start_thread();
      if (started.ok()) {
        copies_.push_back(std::move(copy));
        wake_.notify_all();
        return;
      }
    }
  }
  Status status = end(copy);
  copy.done(std::move(status));
}

Status DeviceStaging::copy_waiting(uint64_t target, uint64_t source, uint64_t size, int device,
                                   Way way) {
  Copy copy = begin(target, source, size, device, way);
  return end(copy);
}

Status DeviceStaging::move(uint64_t target, uint64_t source, uint64_t size) {
  const Result<MemoryPlace> to = place_of(target, size);
  if (!to.ok()) return to.status();
  const Result<MemoryPlace> from = place_of(source, size);
  if (!from.ok()) return from.status();
  const Way way = to.value().is_on_device() ? Way::kToDevice : Way::kFromDevice;
  const MemoryPlace& on_device = way == Way::kToDevice ? to.value() : from.value();
  const MemoryPlace& other = way == Way::kToDevice ? from.value() : to.value();
  if (!on_device.is_on_device()) {
    return Status(Code::kInvalidArgument, "memory that was a GPU's is no longer");
  }
  if (other.is_on_device() || other.is_pinned) {
    return copy_waiting(target, source, size, on_device.device, way);
  }
  return move_pageable(target, source, size, on_device.device, way);
}

Status DeviceStaging::move_pageable(uint64_t target, uint64_t source, uint64_t size, int device,
                                    Way way) {
  const Result<Slot> slot = take_waiting(device);
  if (!slot.ok()) return slot.status();
  for (uint64_t done = 0; done < size; done += kSlotSize) {
    const uint64_t piece = std::min(kSlotSize, size - done);
    if (way == Way::kToDevice) {
      std::memcpy(slot.value().memory(), reinterpret_cast<const void*>(source + done), piece);
      HICACHE_RETURN_IF_ERROR(
          copy_waiting(target + done, slot.value().address(), piece, device, way));
    } else {
      HICACHE_RETURN_IF_ERROR(
          copy_waiting(slot.value().address(), source + done, piece, device, way));
      std::memcpy(reinterpret_cast<void*>(target + done), slot.value().memory(), piece);
    }
  }
  return Status();
}

// ---- The thread

void DeviceStaging::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (run_one(lock)) continue;
    if (is_stopping_) return;
    if (wake_ns_ == kNever) {
      wake_.wait(lock);
      continue;
    }
    const uint64_t now_ns = monotonic_ns();
    if (now_ns >= wake_ns_) {
      run_times(lock, now_ns);
    } else {
      wake_.wait_for(lock, std::chrono::nanoseconds(wake_ns_ - now_ns));
    }
  }
}

/// False: there was nothing to do.
bool DeviceStaging::run_one(std::unique_lock<std::mutex>& lock) {
  if (!waiting_.empty() && !free_.empty()) {
    const std::shared_ptr<Customer> customer = waiting_.front().lock();
    waiting_.pop_front();
    if (customer == nullptr) return true;
    Slot slot(this, free_.back());
    free_.pop_back();
    lock.unlock();
    customer->on_slot(std::move(slot));
  } else if (!copies_.empty()) {
    if (const uint64_t now_ns = monotonic_ns(); now_ns >= wake_ns_) run_times(lock, now_ns);
    Copy copy = std::move(copies_.front());
    copies_.pop_front();
    lock.unlock();
    Status status = end(copy);
    copy.done(std::move(status));
  } else {
    return false;
  }
  lock.lock();
  return true;
}

void DeviceStaging::run_times(std::unique_lock<std::mutex>& lock, uint64_t now_ns) {
  wake_ns_ = kNever;
  const std::vector<std::weak_ptr<Customer>> timed = timed_;
  lock.unlock();
  uint64_t next_ns = kNever;
  for (const auto& one : timed) {
    if (const auto customer = one.lock()) next_ns = std::min(next_ns, customer->on_time(now_ns));
  }
  lock.lock();
  wake_ns_ = std::min(wake_ns_, next_ns);
}

}  // namespace hicache
