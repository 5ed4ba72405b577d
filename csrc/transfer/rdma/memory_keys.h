// Memory that this engine has registered with its rails, and the keys to it.
//
// A buffer is registered with all rails at the same time; what is longer than a device takes in one
// piece is cut. A rail that refuses does not lose the others: what it said is kept, and told to
// those who want to use the buffer on it. All refusing is the error.
//
// An op pins the buffer that it uses, so that de-registering waits for it.
//
// Memory of a GPU is registered by its address, which works where the kernel has nvidia-peermem,
// else as a dma-buf, which wants a driver and a device that know it. Where all rails refuse it,
// that is kUnsupported: another transport has to move it.
//
// Threads: any.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "transfer/rdma/op_queue.h"
#include "transfer/rdma/rdma_rail.h"
#include "transfer/segment.h"

namespace hicache {

class MemoryKeys {
  struct Registration;

 public:
  explicit MemoryKeys(std::vector<std::shared_ptr<RdmaRail>> rails) : rails_(std::move(rails)) {}
  /// Requires: no pin is left.
  ~MemoryKeys();

  /// What peers need. Blocks while pinning.
  Result<std::vector<uint8_t>> add(const Buffer& buffer);
  /// Once it returns no peer can touch the buffer. Blocks until no op uses it.
  void remove(BufferId id);

  /// Keeps a buffer registered.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept = default;
    Pin& operator=(Pin&& other) noexcept;
    ~Pin() { reset(); }
    void reset();
    /// Whether it is memory of a GPU, which the CPU cannot touch.
    bool is_on_device() const;

   private:
    friend class MemoryKeys;
    explicit Pin(std::shared_ptr<Registration> registration);
    std::shared_ptr<Registration> registration_;
  };

  struct Local {
    KeyedRange range;
    Pin pin;
  };
  /// For a range on a rail. kInvalidArgument: it is not inside that buffer. kUnsupported: there is
  /// no such buffer, or no rail has it. kNotFound: the rail has refused to register it.
  Result<Local> use(BufferId id, size_t rail, uint64_t address, uint64_t size) const;

  size_t count() const;
  uint64_t refusals() const { return refusals_.load(std::memory_order_relaxed); }

 private:
  struct Task;

  std::shared_ptr<Registration> plan(const Buffer& buffer, std::vector<Task>& tasks) const;
  void carry_out(Registration& registration, const Task& task) const;
  Status refusal(const RdmaRail& rail, const Buffer& buffer, uint64_t size, int error_number) const;
  void drop(Registration& registration) const;

  const std::vector<std::shared_ptr<RdmaRail>> rails_;
  std::atomic<uint64_t> refusals_{0};
  mutable std::shared_mutex mutex_;
  std::map<BufferId, std::shared_ptr<Registration>> registrations_;
};

}  // namespace hicache
