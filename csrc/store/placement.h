// Which node a copy of a page should go to: where there is room, not where it would be lost
// together with the original, and where there is time for it.
//
//   score = room × (4 where it is not lost together, else 1) × (1 − load)
//
// Room is free bytes. A node that is full takes what is worth more than the least it has, so it
// counts with a little of what it could hold.
//
// Pure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>

namespace hicache {

struct PlacementTarget {
  uint64_t free_bytes;
  uint64_t capacity_bytes;
  uint32_t load_permille;
  bool is_apart;     // Known not to be lost together with the original.
  bool is_excluded;  // It was asked before.
};

/// 0: it cannot take it.
inline double placement_score(const PlacementTarget& target, uint64_t size_bytes, bool may_evict) {
  constexpr double kApartFactor = 4;
  constexpr uint64_t kFullShare = 256;  // Of the capacity, where nothing is free.
  const bool has_room = target.free_bytes >= size_bytes;
  const bool can_take = has_room || (may_evict && target.capacity_bytes >= size_bytes);
  if (target.is_excluded || !can_take) return 0;
  const uint64_t room = has_room ? target.free_bytes : target.capacity_bytes / kFullShare;
  const double idle = (1001.0 - std::min<uint32_t>(target.load_permille, 1000)) / 1001.0;
  return static_cast<double>(std::max<uint64_t>(room, 1)) * (target.is_apart ? kApartFactor : 1) *
         idle;
}

/// The index of the best target, if any can take it.
inline std::optional<size_t> best_target(std::span<const PlacementTarget> targets,
                                         uint64_t size_bytes, bool may_evict) {
  std::optional<size_t> best;
  double best_score = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    const double score = placement_score(targets[i], size_bytes, may_evict);
    if (score <= best_score) continue;
    best_score = score;
    best = i;
  }
  return best;
}

}  // namespace hicache
