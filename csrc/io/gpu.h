// The calls of the CUDA driver that moving bytes needs, found in a process that uses CUDA.
//
// The driver is never loaded here: memory of a GPU exists only in processes that have loaded it
// themselves. So of_process() looks whether libcuda.so.1 is there already, and nobody else pays for
// it, not even with a context. Nor is it initialised here: before cuInit() no pointer is a GPU's. A
// process that was forked after the driver was seen in use has none (CUDA does not survive fork).
//
// Results are the driver's own: 0 is success, everything else has an error_name(). No header of
// CUDA is needed; the numbers are those of cuda.h, whose names stand beside them in gpu.cc.
//
// An interface and not a struct of pointers, so that tests can stand in a device of their own.
//
// Threads: any. context_push() and context_pop() act on the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace hicache {

/// What the driver knows about an address.
struct PointerFacts {
  enum class Kind : uint8_t {
    kUnknown,  // None of CUDA's: plain memory of the process.
    kPinned,   // Host memory that devices reach.
    kManaged,  // Moves between host and device by itself; the CPU can touch it.
    kDevice,   // Of a GPU: the CPU cannot touch it.
  };
  Kind kind = Kind::kUnknown;
  int device = -1;
};

/// One copy of many, between any two addresses that the driver knows.
struct GpuCopy {
  uint64_t target;
  uint64_t source;
  size_t size;
};

using GpuContext = void*;
using GpuStream = void*;
using GpuEvent = void*;

class GpuDriver {
 public:
  virtual ~GpuDriver() = default;

  /// nullptr: this process does not use CUDA (yet), or must not. Costs 100 ns.
  static const GpuDriver* of_process();
  /// Tests alone: stands in for the machine's; nullptr: as before.
  static void stand_in(const GpuDriver* driver);

  /// An address that it does not know is no failure.
  virtual int pointer_facts(uint64_t address, PointerFacts* facts) const = 0;

  /// The primary context, which the CUDA runtime uses as well.
  virtual int context_retain(int device, GpuContext* context) const = 0;
  virtual int context_release(int device) const = 0;
  virtual int context_push(GpuContext context) const = 0;
  virtual int context_pop() const = 0;

  // With a context pushed:
  /// Waits for no other stream, nor they for it.
  virtual int stream_create(GpuStream* stream) const = 0;
  virtual int stream_destroy(GpuStream stream) const = 0;
  virtual int stream_wait(GpuStream stream) const = 0;
  /// Waiting for it sleeps.
  virtual int event_create(GpuEvent* event) const = 0;
  virtual int event_destroy(GpuEvent event) const = 0;
  virtual int event_record(GpuEvent event, GpuStream stream) const = 0;
  virtual int event_wait(GpuEvent event) const = 0;
  /// What is queued on the stream from now on waits for the event. Does not block.
  virtual int stream_wait_event(GpuStream stream, GpuEvent event) const = 0;
  /// Between any two addresses that the driver knows.
  virtual int copy_async(uint64_t target, uint64_t source, size_t size, GpuStream stream) const = 0;
  /// Many copies at once, which is an order of magnitude cheaper than one by one. They may run in
  /// any order among themselves.
  virtual int copy_all_async(std::span<const GpuCopy> copies, GpuStream stream) const = 0;
  /// Pinned for all devices.
  virtual int host_alloc(void** address, size_t size) const = 0;
  virtual int host_free(void* address) const = 0;
  /// Pins memory of the process that exists already, for all devices: they then read and write it
  /// without the CPU. A copy must not cross the border of two registered ranges.
  virtual int host_register(void* address, size_t size) const = 0;
  virtual int host_unregister(void* address) const = 0;
  /// A dma-buf of memory of a GPU, through which other devices reach it; to be closed. The range
  /// begins and ends where OS pages of the CPU do.
  virtual int export_dmabuf(uint64_t address, size_t size, int* dmabuf) const = 0;

  virtual std::string error_name(int error) const = 0;
};

/// Makes a context the calling thread's, for as long as it lives.
class CurrentGpuContext {
 public:
  CurrentGpuContext(const GpuDriver& driver, GpuContext context)
      : driver_(driver), error_(driver.context_push(context)) {}
  ~CurrentGpuContext() {
    if (error_ == 0) (void)driver_.context_pop();
  }
  CurrentGpuContext(const CurrentGpuContext&) = delete;
  CurrentGpuContext& operator=(const CurrentGpuContext&) = delete;
  int error() const { return error_; }

 private:
  const GpuDriver& driver_;
  const int error_;
};

}  // namespace hicache
