#include "transfer/tcp/lane_slots.h"

#include <utility>

#include "transfer/memory_place.h"

namespace hicache {

Status LaneSlots::take(std::shared_ptr<IoLoop::Source> lane, uint64_t address, Lent& slot) {
  const Result<MemoryPlace> place = place_of(address, 1);
  if (!place.ok()) return place.status();
  if (!place.value().is_on_device()) {
    return Status(Code::kInvalidArgument, "what was registered as memory of a GPU is none");
  }
  const std::lock_guard lock(mutex_);
  waiter_ = lane;
  if (used_ == kMax || is_waiting_) return Status();
  DeviceStaging::Slot taken = std::move(granted_);
  if (!taken) {
    Result<DeviceStaging::Slot> asked = staging_.take(weak_from_this(), place.value().device);
    if (!asked.ok()) return asked.status();
    taken = std::move(asked.value());
    is_waiting_ = !taken;
    if (is_waiting_) return Status();
  }
  ++used_;
  slot = std::make_shared<Slot>(shared_from_this(), std::move(taken), place.value().device);
  return Status();
}

LaneSlots::Slot::~Slot() {
  slot_ = DeviceStaging::Slot();
  {
    const std::lock_guard lock(lane_->mutex_);
    --lane_->used_;
  }
  lane_->call_back();
}

void LaneSlots::on_slot(DeviceStaging::Slot slot) {
  {
    const std::lock_guard lock(mutex_);
    is_waiting_ = false;
    granted_ = std::move(slot);
  }
  call_back();
}

void LaneSlots::give_up() {
  const std::lock_guard lock(mutex_);
  granted_.reset();
}

void LaneSlots::call_back() {
  std::shared_ptr<IoLoop::Source> lane;
  {
    const std::lock_guard lock(mutex_);
    lane = waiter_.lock();
    waiter_.reset();
    if (lane == nullptr) granted_.reset();  // The lane is gone; others wait for it.
  }
  if (lane == nullptr) return;
  loop_.post([self = shared_from_this(), lane] { self->go_on_(); });
}

}  // namespace hicache
