// Which peers had a page when the directory was asked last: so that what was found once is found
// while the directory does not answer.
//
// A fixed number of places, each for the page that came last; what is wrong or forgotten costs a
// question. Peers are named by numbers that are never used twice. Pure. Threads: one owner.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hicache {

using PeerId = uint32_t;
inline constexpr PeerId kNoPeer = 0;

/// Peers that have a page, the best first; the unused ones are kNoPeer.
struct PageSources {
  static constexpr size_t kCountMax = 8;
  std::array<PeerId, kCountMax> peers{};

  size_t count() const {
    size_t count = 0;
    while (count < kCountMax && peers[count] != kNoPeer) ++count;
    return count;
  }
  bool add(PeerId peer) {
    const size_t at = count();
    if (at == kCountMax) return false;
    peers[at] = peer;
    return true;
  }
};

class RouteCache {
 public:
  explicit RouteCache(size_t count_max) : places_(std::bit_floor(count_max | 1)) {}

  void put(uint64_t hash, const PageSources& sources) { place_of(hash) = {hash, sources}; }
  /// Without sources: not known.
  PageSources find(uint64_t hash) const {
    const Place& place = places_[hash & (places_.size() - 1)];
    return place.hash == hash ? place.sources : PageSources{};
  }
  void forget(uint64_t hash) {
    if (place_of(hash).hash == hash) place_of(hash) = {};
  }

 private:
  struct Place {
    uint64_t hash = 0;  // page_hash() is never 0.
    PageSources sources;
  };
  Place& place_of(uint64_t hash) { return places_[hash & (places_.size() - 1)]; }

  std::vector<Place> places_;
};

}  // namespace hicache
