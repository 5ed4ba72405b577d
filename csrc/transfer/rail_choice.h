// Which path of a peer gets the next slice, and which get none for now.
//
// A rail is one path to the peer. Rails of a better tier (shared memory before RDMA before TCP) are
// used while one of them is healthy: combining a copy with a loop through the network stack helps
// nobody. Within a tier a slice goes to the rail that would finish it first:
// fixed + (outstanding + size) * ns_per_byte, with a cost that begins as the transport tells it and
// follows what is measured. A rail holds a window of bytes at most; the rest waits where another
// rail, or something more urgent, can still overtake it.
//
// A rail that failed gets nothing until a probe succeeds. Probes back off from 100 ms to 2 s, so
// with a probe of at most a second a rail is back within 5 s of working again.
//
// Pure: time is an argument. Threads: one owner.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "transfer/transport.h"

namespace hicache {

using RailIndex = uint16_t;
inline constexpr RailIndex kNoRail = UINT16_MAX;
/// Rails by index; those beyond its size are in none.
using RailSet = std::bitset<128>;

class RailChoice {
 public:
  struct Rail {
    PathCost cost;
    uint64_t slice_size_bytes;
    uint8_t tier;
    bool is_alive = true;
    bool is_full = false;        // The path took less than it was offered; until it completes one.
    bool is_probing = false;     // Somebody is trying it.
    unsigned corrupt_count = 0;  // Without a success in between.
    uint64_t outstanding_bytes = 0;
    uint64_t outstanding_count = 0;
    uint64_t done_bytes = 0;
    uint64_t failures = 0;
    uint64_t backoff_ns = 0;
    uint64_t next_probe_ns = 0;
    uint64_t alive_since_ns = 0;
    // The busy time that is being measured.
    uint64_t measured_from_ns = 0;
    uint64_t measured_bytes = 0;
    uint64_t begun_since_idle = 0;
  };

  struct Choice {
    RailIndex rail;   // kNoRail: none now.
    bool any_usable;  // Whether one will do later, once it has room.
  };

  RailIndex add(PathCost cost, uint8_t tier, uint64_t slice_size_bytes);
  size_t count() const { return rails_.size(); }
  const Rail& rail(RailIndex index) const { return rails_[index]; }
  /// Whether any rail but these, healthy or not, is of this tier or a worse one.
  bool has_tier(uint8_t tier_min, const RailSet& without = {}) const;
  /// Whether another healthy rail of the same tier could take over from this one.
  bool has_alternative(RailIndex index) const;

  /// For a slice of `size` bytes that may use tiers from `tier_min` on, none of the rails
  /// `without`, and better not `avoid`. `waiting_bytes`: what waits for a rail, this slice
  /// included. `extra_ns_per_byte`: what a byte of this slice costs more on each rail
  /// (rail_distance.h); empty: nothing.
  Choice choose(uint64_t size, uint8_t tier_min, RailIndex avoid, uint64_t waiting_bytes,
                std::span<const double> extra_ns_per_byte = {}, const RailSet& without = {}) const;

  /// The time that a rail will need for what it holds, as it is estimated.
  double estimate_ns(RailIndex index, uint64_t size) const;

  void begin(RailIndex index, uint64_t size, uint64_t now_ns);
  /// A slice that the path did not take: as if it had not been begun.
  void undo(RailIndex index, uint64_t size);
  /// Whatever became of it; only what `is_ok` is measured.
  void end(RailIndex index, uint64_t size, bool is_ok, uint64_t started_ns, uint64_t now_ns);
  void set_full(RailIndex index) { rails_[index].is_full = true; }

  /// The rail failed an operation. True if it was healthy until now.
  bool fail(RailIndex index, uint64_t now_ns);
  /// It brought damaged bytes: that may happen, but not again and again.
  bool fail_corrupt(RailIndex index, uint64_t now_ns);
  /// A rail that should be tried now; it counts as being tried until probe_ended().
  std::optional<RailIndex> take_probe(uint64_t now_ns);
  void probe_ended(RailIndex index, bool is_ok, uint64_t now_ns);
  /// UINT64_MAX: no rail waits for a probe.
  uint64_t next_probe_ns() const;

 private:
  uint64_t window_bytes(const Rail& rail) const;
  bool has_room(const Rail& rail) const {
    return !rail.is_full &&
           (rail.outstanding_count == 0 || rail.outstanding_bytes < window_bytes(rail));
  }
  void measure(Rail& rail, uint64_t size, uint64_t started_ns, uint64_t now_ns);

  std::vector<Rail> rails_;
};

}  // namespace hicache
