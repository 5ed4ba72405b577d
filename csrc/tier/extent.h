// A byte range of the pool (or, for other tiers, of a file).
#pragma once

#include <cstdint>
#include <vector>

namespace hicache {

struct Extent {
  uint64_t offset;
  uint64_t size;

  bool operator==(const Extent&) const = default;
};

/// Where the bytes of one page lie, in the page's order.
using Extents = std::vector<Extent>;

}  // namespace hicache
