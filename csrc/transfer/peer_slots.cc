#include "transfer/peer_slots.h"

#include <mutex>

namespace hicache {

SegmentId PeerSlots::reserve(uint32_t generation) {
  const std::lock_guard lock(mutex_);
  size_t index = 0;
  while (index < slots_.size() && slots_[index].id != 0) ++index;
  if (index == kPeersMax) return 0;
  if (index == slots_.size()) slots_.emplace_back();
  slots_[index].id = SegmentId{generation} * kPeersMax + index;
  return slots_[index].id;
}

void PeerSlots::abandon(SegmentId id) {
  const std::lock_guard lock(mutex_);
  slots_[index_of(id)] = Slot{};
}

SegmentId PeerSlots::insert(SegmentId id, std::shared_ptr<Peer>& peer) {
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_[index_of(id)];
  if (const SegmentId other = reopen_locked(peer->address_name()); other != 0) {
    slot = Slot{};
    return other;
  }
  slot.peer = std::move(peer);
  slot.opened = 1;
  return id;
}

SegmentId PeerSlots::reopen(const std::string& address) {
  const std::lock_guard lock(mutex_);
  return reopen_locked(address);
}

SegmentId PeerSlots::reopen_locked(const std::string& address) {
  for (Slot& slot : slots_) {
    if (slot.opened == 0 || slot.peer->address_name() != address) continue;
    if (!slot.peer->is_lost()) {
      ++slot.opened;
      return slot.id;
    }
    slot.opened = 0;
  }
  return 0;
}

std::shared_ptr<Peer> PeerSlots::close(SegmentId id) {
  const std::lock_guard lock(mutex_);
  if (index_of(id) >= slots_.size()) return nullptr;
  Slot& slot = slots_[index_of(id)];
  if (slot.id != id || slot.opened == 0) return nullptr;
  return --slot.opened == 0 ? slot.peer : nullptr;
}

std::shared_ptr<Peer> PeerSlots::find(SegmentId id) const {
  const std::shared_lock lock(mutex_);
  if (index_of(id) >= slots_.size()) return nullptr;
  const Slot& slot = slots_[index_of(id)];
  return slot.id == id && slot.opened != 0 ? slot.peer : nullptr;
}

BatchId PeerSlots::batch_id(SegmentId id, BatchKey key) {
  return uint64_t{index_of(id)} << 48 | uint64_t{key.slot} << 32 | key.generation;
}

std::pair<std::shared_ptr<Peer>, BatchKey> PeerSlots::find_batch(BatchId id) const {
  const BatchKey key{static_cast<uint32_t>(id >> 32 & 0xFFFF), static_cast<uint32_t>(id)};
  const std::shared_lock lock(mutex_);
  const size_t index = id >> 48;
  return {index < slots_.size() ? slots_[index].peer : nullptr, key};
}

std::vector<std::shared_ptr<Peer>> PeerSlots::reap() {
  std::vector<std::shared_ptr<Peer>> reaped;
  const std::lock_guard lock(mutex_);
  for (Slot& slot : slots_) {
    if (slot.peer == nullptr || slot.opened != 0 || slot.peer->has_batches()) continue;
    reaped.push_back(std::move(slot.peer));
    slot = Slot{};
  }
  return reaped;
}

std::vector<std::shared_ptr<Peer>> PeerSlots::all() const {
  const std::shared_lock lock(mutex_);
  std::vector<std::shared_ptr<Peer>> peers;
  for (const Slot& slot : slots_) {
    if (slot.peer != nullptr) peers.push_back(slot.peer);
  }
  return peers;
}

}  // namespace hicache
