// Space inside the pool. Pure: knows offsets, touches no memory.
//
// The pool is cut into slots of 64 KiB. A page takes whole slots, next to each other when a long
// enough run is free (the smallest that fits) and in several extents when not, so free space never
// becomes useless by being scattered: any n free slots hold any page of n slots. Real page sizes
// (512 KiB … 9 MiB) lose at most 1.7 % to the last slot. Objects of up to half a slot share slots:
// each such slot serves one size class, four classes per doubling.
//
//   slots   | 9 MiB page ..................... | free | small: 256 x 256 B | 512 KiB page .. |
//
// Threads: one owner.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "tier/extent.h"

namespace hicache {

inline constexpr uint64_t kSlotSize = 64 * kKiB;

class SlotAllocator {
 public:
  SlotAllocator();

  /// Bytes of the pool that an object of `size` takes away from others.
  static uint64_t footprint(uint64_t size);

  /// Whether these extents of one object lie in a slot that others may use as well.
  static bool shares_slots(std::span<const Extent> extents);

  /// Gives the allocator more room. Requires: whole slots that were not added before.
  void add(uint64_t offset, uint64_t size);

  /// Appends the extents of `size` bytes (>= 1) to `extents`. Their sizes add up to `size`.
  /// Returns false, with nothing changed, when there is not enough room.
  bool allocate(uint64_t size, Extents& extents);

  /// Takes back what one allocate() returned.
  void release(std::span<const Extent> extents);

  /// Takes back slots that turned out to be unusable and does not give them out again; add() may
  /// bring whole ones back. A slot that small objects share goes when the last of them has left.
  void retire(std::span<const Extent> extents);

  /// Bytes of free slots. Small objects may fit even when it is 0.
  uint64_t free_bytes() const { return free_slots_ * kSlotSize; }
  uint64_t size_bytes() const { return total_slots_ * kSlotSize; }
  /// Bytes of the objects, without what rounding costs.
  uint64_t used_bytes() const { return used_bytes_; }
  /// Bytes that are neither free nor used: the ends of last slots, and holes in shared slots.
  uint64_t waste_bytes() const { return size_bytes() - free_bytes() - used_bytes_; }
  /// Runs of free slots: 1 is ideal.
  uint64_t free_run_count() const { return run_starts_.size(); }

  /// What is inconsistent, or "" (slow; for tests).
  std::string check_invariants() const;

 private:
  using Slot = uint64_t;  // Slot number in the pool.

  struct SharedSlot {
    uint32_t class_index;
    uint32_t free_count;
    bool is_retired;
    std::vector<uint64_t> free_bits;
  };

  static uint32_t class_of(uint64_t size);
  void insert_run(Slot start, uint64_t count);
  void erase_run(std::map<Slot, uint64_t>::iterator run);
  /// Takes up to `count` slots from the best run; returns how many.
  uint64_t take(uint64_t count, Slot* start);
  void give_back(Slot start, uint64_t count);
  bool allocate_small(uint64_t size, Extents& extents);
  void release_small(const Extent& extent);

  std::map<Slot, uint64_t> run_starts_;                // Free runs: start -> count of slots.
  std::set<std::pair<uint64_t, Slot>> run_counts_;     // The same by (count, start).
  std::unordered_map<Slot, SharedSlot> shared_slots_;  // Slots that small objects share.
  std::vector<std::set<Slot>> roomy_;                  // Per class: shared slots with room.
  uint64_t free_slots_ = 0;
  uint64_t total_slots_ = 0;
  uint64_t used_bytes_ = 0;
};

}  // namespace hicache
