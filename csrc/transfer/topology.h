// Which local network device is near to which memory: a table that is read once, from the JSON that
// mooncake_hicache/topology writes or that somebody wrote by hand, and then only looked up.
//
//   {"version": 1,
//    "locations": {"cpu:0": {"preferred": ["mlx5_0"], "others": ["mlx5_1"],
//                            "costs": {"mlx5_0": {"fixed_ns": 2000, "ns_per_byte": 0.04}}}}}
//
// or, as the original has it, {"cpu:0": [["mlx5_0"], ["mlx5_1"]]}. Costs that are not told are
// those of the list. Not here: finding out (Python does, from sysfs), and correcting costs by what
// was measured (rail_choice.h).
//
// Pure, and immutable once read: any thread may look up.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "transfer/transport.h"

namespace hicache {

/// Of a listed device whose costs are not told: 100 Gb/s. The same as in Python's model.py.
inline constexpr PathCost kPreferredCost = {2000.0, 0.08};
inline constexpr PathCost kOtherCost = {3000.0, 0.16};

class Topology {
 public:
  /// Knows nothing: every cost() is empty.
  Topology() = default;

  /// kInvalidArgument says what is wrong, and where.
  static Result<Topology> parse(std::string_view json);

  /// What a transfer between memory at `location` ("cpu:0", "cuda:1") and the local `device` costs;
  /// empty if the topology does not say, then what the path says of itself counts. The location "*"
  /// of the topology counts for every one that it does not list.
  std::optional<PathCost> cost(std::string_view location, std::string_view device) const;

  /// What the device costs from the place that is nearest to it; empty: it is not known.
  std::optional<PathCost> nearest_cost(std::string_view device) const;

  /// Whether the device is among the nearest for memory at `location`.
  bool is_preferred(std::string_view location, std::string_view device) const;

  bool empty() const { return locations_.empty(); }

 private:
  struct Entry {
    PathCost cost;
    bool is_preferred;
  };
  using Devices = std::map<std::string, Entry, std::less<>>;

  const Entry* find(std::string_view location, std::string_view device) const;

  std::map<std::string, Devices, std::less<>> locations_;

  friend class TopologyReader;
};

}  // namespace hicache
