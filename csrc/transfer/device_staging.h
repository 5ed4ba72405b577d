// Copies between memory of GPUs and of the CPU, and the pinned memory through which transports
// move what they cannot touch.
//
// Copies run on streams of their own, one for each device and direction, and end in the order in
// which they began. They are not ordered with the caller's streams: whoever has a transfer read GPU
// memory synchronises with the kernels that wrote it first, and whoever writes into it knows when
// the transfer is complete.
//
// Pinned memory is lent in slots of one size: at most kSlotsMax of them, taken from the driver as
// they are first wanted. Who finds none is called when one is free, in the order of asking.
//
// What cannot be promised: a deadline inside a copy. CUDA takes none back, so memory that a copy
// touches is given up when the copy has ended, which takes a device that works microseconds.
//
// Nothing is asked of the driver before the first slot or copy; then a thread is started.
//
// Threads: any.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "io/gpu.h"

namespace hicache {

class DeviceStaging {
 public:
  static constexpr uint64_t kSlotSize = 512 * kKiB;
  static constexpr size_t kSlotsMax = 64;
  static constexpr uint64_t kNever = UINT64_MAX;

  /// A piece of pinned memory, kSlotSize bytes, given back when this ends.
  class Slot {
   public:
    Slot() = default;
    Slot(Slot&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)), memory_(other.memory_) {}
    Slot& operator=(Slot&& other) noexcept {
      if (this != &other) {
        reset();
        owner_ = std::exchange(other.owner_, nullptr);
        memory_ = other.memory_;
      }
      return *this;
    }
    ~Slot() { reset(); }

    explicit operator bool() const { return owner_ != nullptr; }
    uint8_t* memory() const { return memory_; }
    uint64_t address() const { return reinterpret_cast<uintptr_t>(memory_); }
    void reset();

   private:
    friend class DeviceStaging;
    Slot(DeviceStaging* owner, uint8_t* memory) : owner_(owner), memory_(memory) {}
    DeviceStaging* owner_ = nullptr;
    uint8_t* memory_ = nullptr;
  };

  /// Who takes slots. Called by the staging's thread without a lock; must not block.
  class Customer {
   public:
    virtual ~Customer() = default;
    /// The slot that take() could not give.
    virtual void on_slot(Slot slot) = 0;
    /// A time that wake_by() named has come. Returns the next one of this customer.
    virtual uint64_t on_time(uint64_t now_ns) = 0;
  };

  enum class Way : uint8_t { kToDevice, kFromDevice };
  using Done = std::function<void(Status)>;

  /// `thread_name`: 15 letters at most.
  explicit DeviceStaging(std::string thread_name) : thread_name_(std::move(thread_name)) {}
  /// Requires: no slot is lent.
  ~DeviceStaging();
  DeviceStaging(const DeviceStaging&) = delete;
  DeviceStaging& operator=(const DeviceStaging&) = delete;

  /// Ends the copies that have begun, then the thread. Nothing more is lent or copied.
  void stop();

  /// An empty slot: the customer is called with one later. An error: there will be none.
  Result<Slot> take(const std::weak_ptr<Customer>& customer, int device);
  /// Has on_time() called.
  void wake_by(uint64_t time_ns, const std::weak_ptr<Customer>& customer);

  /// Begins a copy; neither range may change or go until `done`, which is called once, by the
  /// staging's thread. After stop() it is called inside.
  void copy(uint64_t target, uint64_t source, uint64_t size, int device, Way way, Done done);

  /// Copies between any memory of this process, of which one at least is a GPU's, and blocks until
  /// that is done.
  Status move(uint64_t target, uint64_t source, uint64_t size);

  /// Blocks until a slot is free. For threads that hold no other.
  Result<Slot> take_waiting(int device);
  /// Blocks.
  Status copy_waiting(uint64_t target, uint64_t source, uint64_t size, int device, Way way);

  uint64_t copied_bytes() const { return copied_bytes_.load(std::memory_order_relaxed); }
  uint64_t pinned_bytes() const;

 private:
  struct Device {
    GpuContext context = nullptr;
    GpuStream streams[2] = {};
    Status failure;  // Why it cannot be used.
  };
  struct Copy {
    GpuContext context = nullptr;
    GpuEvent event = nullptr;
    Status failure;  // It has not begun.
    Done done;
  };

  // All of these: locked.
  Device& device_of(int device);
  Status open(int ordinal, Device& device);
  Status add_slots(Device& device);
  Status start_thread();
  GpuEvent spare_event(const Device& device, Status& status);

  Copy begin(uint64_t target, uint64_t source, uint64_t size, int device, Way way);
  Status end(Copy& copy);
  Status failed(const std::string& tried, int error) const;
  Status move_pageable(uint64_t target, uint64_t source, uint64_t size, int device, Way way);
  void give_back(uint8_t* memory);
  void run();
  bool run_one(std::unique_lock<std::mutex>& lock);
  void run_times(std::unique_lock<std::mutex>& lock, uint64_t now_ns);

  const std::string thread_name_;
  std::atomic<uint64_t> copied_bytes_{0};

  mutable std::mutex mutex_;  // Of what follows.
  std::condition_variable wake_;
  std::condition_variable slot_free_;
  const GpuDriver* driver_ = nullptr;
  std::map<int, Device> devices_;
  std::vector<std::pair<GpuContext, GpuEvent>> events_;  // Spare.
  std::vector<std::pair<GpuContext, void*>> arenas_;
  std::vector<uint8_t*> free_;
  size_t slot_count_ = 0;
  std::deque<std::weak_ptr<Customer>> waiting_;
  std::vector<std::weak_ptr<Customer>> timed_;
  uint64_t wake_ns_ = kNever;
  std::deque<Copy> copies_;
  bool is_stopping_ = false;
  bool has_thread_ = false;
  pthread_t thread_{};
};

}  // namespace hicache
