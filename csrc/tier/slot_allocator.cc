#include "tier/slot_allocator.h"

#include <algorithm>
#include <bit>

namespace hicache {
namespace {

constexpr uint64_t kSmallSizeMin = 64;  // One cache line.
constexpr uint64_t kSmallSizeMax = kSlotSize / 2;
constexpr uint32_t kClassesPerDoubling = 4;

/// 64, 80, 96, 112, 128, 160 … 32768: at most a fifth of an object is lost to its class.
uint64_t class_size(uint32_t class_index) {
  const uint64_t base = kSmallSizeMin << (class_index / kClassesPerDoubling);
  return base + base / kClassesPerDoubling * (class_index % kClassesPerDoubling);
}

constexpr uint32_t kClassCount =
    static_cast<uint32_t>(std::countr_zero(kSmallSizeMax / kSmallSizeMin)) * kClassesPerDoubling +
    1;

}  // namespace

SlotAllocator::SlotAllocator() : roomy_(kClassCount) {}

uint64_t SlotAllocator::footprint(uint64_t size) {
  return size <= kSmallSizeMax ? class_size(class_of(size)) : round_up(size, kSlotSize);
}

bool SlotAllocator::shares_slots(std::span<const Extent> extents) {
  return extents.size() == 1 && extents[0].size <= kSmallSizeMax;
}

uint32_t SlotAllocator::class_of(uint64_t size) {
  uint32_t low = 0;
  uint32_t high = kClassCount - 1;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (class_size(middle) < size) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void SlotAllocator::add(uint64_t offset, uint64_t size) {
  total_slots_ += size / kSlotSize;
  give_back(offset / kSlotSize, size / kSlotSize);
}

bool SlotAllocator::allocate(uint64_t size, Extents& extents) {
  if (size <= kSmallSizeMax) return allocate_small(size, extents);
  if (size > free_bytes()) return false;  // Also sizes so large that rounding them would wrap.
  uint64_t slots = round_up(size, kSlotSize) / kSlotSize;
  used_bytes_ += size;
  while (slots != 0) {
    Slot start;
    const uint64_t taken = take(slots, &start);
    slots -= taken;
    const uint64_t bytes = std::min(size, taken * kSlotSize);
    extents.push_back({start * kSlotSize, bytes});
    size -= bytes;
  }
  return true;
}

void SlotAllocator::release(std::span<const Extent> extents) {
  if (extents.size() == 1 && shared_slots_.contains(extents[0].offset / kSlotSize)) {
    release_small(extents[0]);
    return;
  }
  for (const Extent& extent : extents) {
    used_bytes_ -= extent.size;
    give_back(extent.offset / kSlotSize, round_up(extent.size, kSlotSize) / kSlotSize);
  }
}

void SlotAllocator::retire(std::span<const Extent> extents) {
  const Slot first = extents[0].offset / kSlotSize;
  if (auto shared = shared_slots_.find(first); shared != shared_slots_.end()) {
    shared->second.is_retired = true;
    roomy_[shared->second.class_index].erase(first);
    release_small(extents[0]);
    return;
  }
  for (const Extent& extent : extents) {
    used_bytes_ -= extent.size;
    total_slots_ -= round_up(extent.size, kSlotSize) / kSlotSize;
  }
}

uint64_t SlotAllocator::take(uint64_t count, Slot* start) {
  // The smallest run that fits; when none does, the longest, so that extents stay few.
  auto best = run_counts_.lower_bound({count, 0});
  if (best == run_counts_.end()) --best;
  const auto [run_count, run_start] = *best;
  erase_run(run_starts_.find(run_start));
  const uint64_t taken = std::min(count, run_count);
  if (taken < run_count) insert_run(run_start + taken, run_count - taken);
  free_slots_ -= taken;
  *start = run_start;
  return taken;
}

void SlotAllocator::give_back(Slot start, uint64_t count) {
  free_slots_ += count;
  auto next = run_starts_.lower_bound(start);
  if (next != run_starts_.end() && next->first == start + count) {
    count += next->second;
    auto after = std::next(next);
    erase_run(next);
    next = after;
  }
  if (next != run_starts_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == start) {
      start = before->first;
      count += before->second;
      erase_run(before);
    }
  }
  insert_run(start, count);
}

void SlotAllocator::insert_run(Slot start, uint64_t count) {
  run_starts_.emplace(start, count);
  run_counts_.emplace(count, start);
}

void SlotAllocator::erase_run(std::map<Slot, uint64_t>::iterator run) {
  run_counts_.erase({run->second, run->first});
  run_starts_.erase(run);
}

bool SlotAllocator::allocate_small(uint64_t size, Extents& extents) {
  const uint32_t class_index = class_of(size);
  std::set<Slot>& roomy = roomy_[class_index];
  if (roomy.empty()) {
    if (free_slots_ == 0) return false;
    Slot slot;
    take(1, &slot);
    const auto count = static_cast<uint32_t>(kSlotSize / class_size(class_index));
    SharedSlot shared{class_index, count, false,
                      std::vector<uint64_t>((count + 63) / 64, ~uint64_t{0})};
    if (count % 64 != 0) shared.free_bits.back() = (uint64_t{1} << (count % 64)) - 1;
    shared_slots_.emplace(slot, std::move(shared));
    roomy.insert(slot);
  }
  // The lowest slot with room: high ones drain and become whole slots again.
  const Slot slot = *roomy.begin();
  SharedSlot& shared = shared_slots_.at(slot);
  size_t word = 0;
  while (shared.free_bits[word] == 0) ++word;
  const auto bit = static_cast<size_t>(std::countr_zero(shared.free_bits[word]));
  shared.free_bits[word] &= shared.free_bits[word] - 1;
  if (--shared.free_count == 0) roomy.erase(roomy.begin());
  extents.push_back({slot * kSlotSize + (word * 64 + bit) * class_size(class_index), size});
  used_bytes_ += size;
  return true;
}

void SlotAllocator::release_small(const Extent& extent) {
  const Slot slot = extent.offset / kSlotSize;
  auto found = shared_slots_.find(slot);
  SharedSlot& shared = found->second;
  const uint64_t number = extent.offset % kSlotSize / class_size(shared.class_index);
  shared.free_bits[number / 64] |= uint64_t{1} << (number % 64);
  used_bytes_ -= extent.size;
  ++shared.free_count;
  if (shared.free_count == 1 && !shared.is_retired) roomy_[shared.class_index].insert(slot);
  if (shared.free_count != kSlotSize / class_size(shared.class_index)) return;
  const bool is_retired = shared.is_retired;
  roomy_[shared.class_index].erase(slot);
  shared_slots_.erase(found);
  if (is_retired) {
    --total_slots_;
  } else {
    give_back(slot, 1);
  }
}

std::string SlotAllocator::check_invariants() const {
  uint64_t counted = 0;
  uint64_t end = 0;
  for (const auto& [start, count] : run_starts_) {
    if (count == 0 || (counted != 0 && start <= end)) return "free runs touch or overlap";
    if (!run_counts_.contains({count, start})) return "a free run is missing in the size order";
    end = start + count;
    counted += count;
  }
  if (run_starts_.size() != run_counts_.size()) return "the two orders of free runs differ";
  if (counted != free_slots_) return "the count of free slots is wrong";
  for (const auto& [slot, shared] : shared_slots_) {
    const uint64_t count = kSlotSize / class_size(shared.class_index);
    uint64_t free_count = 0;
    for (uint64_t bits : shared.free_bits) free_count += static_cast<uint64_t>(std::popcount(bits));
    if (free_count != shared.free_count) return "a shared slot's count of free places is wrong";
    if (free_count == count) return "an empty shared slot was kept";
    const bool must_be_roomy = free_count != 0 && !shared.is_retired;
    if (must_be_roomy != roomy_[shared.class_index].contains(slot)) {
      return "a shared slot is in the wrong list";
    }
  }
  const uint64_t taken = (total_slots_ - free_slots_) * kSlotSize;
  if (used_bytes_ > taken || shared_slots_.size() * kSlotSize > taken) {
    return "more bytes are used than slots are taken";
  }
  return "";
}

}  // namespace hicache
