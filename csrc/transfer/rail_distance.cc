#include "transfer/rail_distance.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace hicache {

void RailDistance::set_topology(std::shared_ptr<const Topology> topology) {
  topology_ = std::move(topology);
  known_.clear();
}

void RailDistance::add_rail(std::string_view device) {
  devices_.emplace_back(device);
  known_.clear();
}

std::span<const double> RailDistance::extra_ns_per_byte(std::string_view location) {
  if (topology_ == nullptr || devices_.size() < 2) return {};
  auto found = known_.find(location);
  if (found == known_.end()) {
    found = known_.emplace(location, distances_from(location)).first;
  }
  return found->second;
}

std::vector<double> RailDistance::distances_from(std::string_view location) const {
  std::vector<double> extra;
  for (const std::string& device : devices_) {
    const std::optional<PathCost> nearest = topology_->nearest_cost(device);
    const std::optional<PathCost> from_here = topology_->cost(location, device);
    const bool is_known = nearest.has_value() && from_here.has_value();
    extra.push_back(is_known ? std::max(0.0, from_here->ns_per_byte - nearest->ns_per_byte) : 0.0);
  }
  return extra;
}

}  // namespace hicache
