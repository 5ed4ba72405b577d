// Replays requests against an eviction policy in a cache of equal pages.  Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tier/eviction.h"

namespace hicache {

// Requests in order; request i names the pages ids[starts[i]] to ids[starts[i + 1] - 1], root
// first.  Equal ids are one page, whose parent is the page before it.
struct ReplayRequests {
  std::span<const uint64_t> starts;  // one more than requests, ascending
  std::span<const uint64_t> ids;
  std::span<const uint64_t> now_ms;  // one per request
};

struct ReplayResult {
  std::vector<uint32_t> hits;  // per request: its leading pages that were there
  uint64_t memory_size_bytes;  // of the policy, at the end
};

// A request hits the longest run of its leading pages that are there; then all its pages are
// there, each brought in by evicting one if the cache is full.  Requires capacity_pages > 0.
ReplayResult replay(EvictionKind kind, uint64_t capacity_pages, uint64_t seed,
                    const ReplayRequests& requests);

}  // namespace hicache
