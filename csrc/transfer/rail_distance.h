// How far the rails of one peer are from the places of local memory, as a topology tells it.
//
// A rail's cost is measured over all memory that it moves; this adds what one place of memory costs
// more than the nearest one: crossing sockets, leaving a GPU's switch. Without a topology, and for
// places and devices that it does not name, nothing is added.
//
// Pure. Threads: one owner.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transfer/topology.h"

namespace hicache {

class RailDistance {
 public:
  /// From now on this one counts; null: none.
  void set_topology(std::shared_ptr<const Topology> topology);
  const std::shared_ptr<const Topology>& topology() const { return topology_; }

  /// The next rail, which goes through this local device; empty: through none.
  void add_rail(std::string_view device);

  /// For each rail what a byte costs more from that place, in ns; empty: nothing is known. Valid
  /// until the next call of any other method.
  std::span<const double> extra_ns_per_byte(std::string_view location);

 private:
  std::vector<double> distances_from(std::string_view location) const;

  std::shared_ptr<const Topology> topology_;
  std::vector<std::string> devices_;  // By rail.
  std::map<std::string, std::vector<double>, std::less<>> known_;
};

}  // namespace hicache
