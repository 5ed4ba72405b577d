// What pages of a simulated world hold, and what whoever reads one may find: bytes that somebody
// put under that name, whole. The oracle knows all versions of every page that there ever were.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <vector>

#include "support.h"
#include "tier/extent.h"

namespace hicache::testing {

/// Bytes that lie in pieces of a pool.
inline std::vector<uint8_t> gather(const uint8_t* pool, std::span<const Extent> extents) {
  std::vector<uint8_t> bytes;
  for (const Extent& extent : extents) {
    bytes.insert(bytes.end(), pool + extent.offset, pool + extent.offset + extent.size);
  }
  return bytes;
}

/// Writes those from `begin` to `end` to their places.
inline void scatter(uint8_t* pool, std::span<const Extent> extents,
                    const std::vector<uint8_t>& bytes, size_t begin, size_t end) {
  size_t at = 0;  // Of the extent.
  for (const Extent& extent : extents) {
    const size_t first = std::max(begin, at);
    const size_t last = std::min(end, at + static_cast<size_t>(extent.size));
    if (first < last) std::memcpy(pool + extent.offset + first - at, &bytes[first], last - first);
    at += extent.size;
  }
}

class PageOracle {
 public:
  static constexpr uint64_t kSpaces = 2;
  static constexpr uint64_t kKeys = 40;  // Of each.

  /// What a client puts: the present version, or another one.
  std::vector<uint8_t> put(uint64_t space, uint64_t key, bool replaces) {
    uint64_t& version = last_[{space, key}];
    if (replaces) ++version;
    return content(space, key, version);
  }
  /// Whether anybody ever put that.
  bool is_right(uint64_t space, uint64_t key, const std::vector<uint8_t>& bytes) const {
    const auto last = last_.find({space, key});
    uint64_t version = UINT64_MAX;
    if (bytes.size() >= sizeof(version)) std::memcpy(&version, bytes.data(), sizeof(version));
    return last != last_.end() && version <= last->second && bytes == content(space, key, version);
  }
  bool is_newest(uint64_t space, uint64_t key, const std::vector<uint8_t>& bytes) const {
    return bytes == content(space, key, last_.at({space, key}));
  }

 private:
  static std::vector<uint8_t> content(uint64_t space, uint64_t key, uint64_t version) {
    constexpr uint64_t kSizes[] = {100, 5000, 20'000, 65'536, 70'000, 150'000};
    const uint64_t n = (space * 1000 + key) * 10'000 + version;
    std::vector<uint8_t> bytes = bytes_of(n, kSizes[n % std::size(kSizes)]);
    std::memcpy(bytes.data(), &version, sizeof(version));
    return bytes;
  }

  std::map<std::pair<uint64_t, uint64_t>, uint64_t> last_;  // Versions.
};

inline NamespaceDigest space_digest(uint64_t space) {
  return key_of(888'000 + space);
}

}  // namespace hicache::testing
