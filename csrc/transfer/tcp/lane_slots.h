// The pinned slots that one server lane holds: a few at most, so that a peer which is slow to read
// its answers keeps no others waiting.
//
// Threads: take() the loop's. Slots may end anywhere; who waits for one is told by the loop.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "io/io_loop.h"
#include "transfer/device_staging.h"

namespace hicache {

class LaneSlots : public DeviceStaging::Customer, public std::enable_shared_from_this<LaneSlots> {
 public:
  static constexpr size_t kMax = 4;

  class Slot {
   public:
    Slot(std::shared_ptr<LaneSlots> lane, DeviceStaging::Slot slot, int device)
        : lane_(std::move(lane)), slot_(std::move(slot)), device_(device) {}
    ~Slot();
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;

    uint8_t* memory() const { return slot_.memory(); }
    uint64_t address() const { return slot_.address(); }
    int device() const { return device_; }

   private:
    const std::shared_ptr<LaneSlots> lane_;
    DeviceStaging::Slot slot_;
    const int device_;
  };
  using Lent = std::shared_ptr<Slot>;

  /// For make().
  LaneSlots(DeviceStaging& staging, IoLoop& loop, std::function<void()> go_on)
      : staging_(staging), loop_(loop), go_on_(std::move(go_on)) {}

  /// `go_on` is called by the loop when take() may give one that it could not.
  static std::shared_ptr<LaneSlots> make(DeviceStaging& staging, IoLoop& loop,
                                         std::function<void()> go_on) {
    return std::make_shared<LaneSlots>(staging, loop, std::move(go_on));
  }

  /// For a copy of what is at `address`. Gives none when there is none now. `lane` is kept alive
  /// until `go_on` was called. An error: the address is no GPU's, or the driver fails.
  Status take(std::shared_ptr<IoLoop::Source> lane, uint64_t address, Lent& slot);

  /// Nothing waits for a slot any more: what came meanwhile is for others.
  void give_up();

  void on_slot(DeviceStaging::Slot slot) override;
  uint64_t on_time(uint64_t) override { return DeviceStaging::kNever; }

 private:
  void call_back();

  DeviceStaging& staging_;
  IoLoop& loop_;
  const std::function<void()> go_on_;

  std::mutex mutex_;  // Of what follows.
  size_t used_ = 0;
  bool is_waiting_ = false;  // For the staging.
  std::weak_ptr<IoLoop::Source> waiter_;
  DeviceStaging::Slot granted_;
};

}  // namespace hicache
