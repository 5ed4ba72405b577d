// Takes out of a reply what would make it larger than a frame may be.
#pragma once

#include <vector>

#include "base/status.h"
#include "net/frame.h"
#include "store/messages.h"

namespace hicache {

/// A batch of scattered pages can have more extents than one frame holds. Those that do not fit are
/// answered kBusy: ask again for fewer. Returns what they were.
template <typename Place>
std::vector<PageRef> cut_to_frame(std::vector<Place>& places, size_t size_max) {
  constexpr size_t kPlaceSizeMax = 32;  // Without extents.
  std::vector<PageRef> cut;
  size_t left = size_max - 2 * sizeof(uint32_t) - places.size() * kPlaceSizeMax;
  static_assert(kBatchCountMax * kPlaceSizeMax < kPayloadSizeMax / 2);
  for (Place& place : places) {
    if (place.extents.size_bytes() <= left) {
      left -= place.extents.size_bytes();
      continue;
    }
    cut.push_back(place.ref);
    place.code = Code::kBusy;
    place.ref = PageRef{kNoPage, 0};
    place.extents = {};
  }
  return cut;
}

}  // namespace hicache
