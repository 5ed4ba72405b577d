#include "transfer/topology.h"

#include <algorithm>

#include "base/json_reader.h"

namespace hicache {

using Kind = JsonValue::Kind;

namespace {

constexpr double kVersion = 1;
constexpr size_t kLocationsMax = 4096;
constexpr size_t kDevicesMax = 1024;
constexpr size_t kNameSizeMax = 64;
constexpr double kCostMax = 1e12;

Status wrong(const std::string& at, const std::string& why) {
  return {Code::kInvalidArgument, "the topology" + (at.empty() ? "" : ", " + at) + ": " + why};
}

bool is_all(std::string_view text, char first, char last) {
  return std::all_of(text.begin(), text.end(), [=](char c) { return c >= first && c <= last; });
}

bool is_location(std::string_view name) {
  if (name == "*") return true;
  const size_t colon = name.find(':');
  if (colon == std::string_view::npos) return false;
  const auto kind = name.substr(0, colon), index = name.substr(colon + 1);
  return !kind.empty() && kind.size() <= 16 && is_all(kind, 'a', 'z') && !index.empty() &&
         index.size() <= 4 && is_all(index, '0', '9');
}

bool is_device(std::string_view name) {
  return !name.empty() && name.size() <= kNameSizeMax;
}

}  // namespace

/// Checks the tree and fills a topology from it.
class TopologyReader {
 public:
  Status read(const JsonValue& tree) {
    if (!tree.is(Kind::kObject)) return wrong("", "an object is expected");
    if (tree.find("nics") != nullptr || tree.find("mems") != nullptr) {
      return wrong("", "this is the form of the original's TENT, which is not read");
    }
    const JsonValue* version = tree.find("version");
    const JsonValue* locations = tree.find("locations");
    const bool is_own = version != nullptr || locations != nullptr;
    if (is_own) {
      if (version == nullptr || !version->is(Kind::kNumber) || version->number != kVersion) {
        return wrong("version", "this release reads 1");
      }
      if (locations == nullptr || !locations->is(Kind::kObject)) {
        return wrong("locations", "an object is expected");
      }
    } else {
      locations = &tree;
    }
    if (locations->members.size() > kLocationsMax) return wrong("", "too many locations");
    for (const auto& [name, place] : locations->members) {
      if (!is_location(name)) return wrong("location " + name, "not a place of memory");
      const std::string at = "location " + name;
      Topology::Devices& devices = topology.locations_[name];
      HICACHE_RETURN_IF_ERROR(is_own ? read_own(at, place, devices)
                                     : read_original(at, place, devices));
    }
    return {};
  }

  Topology topology;

 private:
  Status read_original(const std::string& at, const JsonValue& place, Topology::Devices& devices) {
    if (!place.is(Kind::kArray) || place.elements.size() != 2) {
      return wrong(at, "two lists are expected, of preferred and of other devices");
    }
    HICACHE_RETURN_IF_ERROR(read_list(at, place.elements[0], {kPreferredCost, true}, devices));
    return read_list(at, place.elements[1], {kOtherCost, false}, devices);
  }

  Status read_own(const std::string& at, const JsonValue& place, Topology::Devices& devices) {
    if (!place.is(Kind::kObject)) return wrong(at, "an object is expected");
    const JsonValue* costs = nullptr;
    for (const auto& [name, member] : place.members) {
      if (name == "costs") {
        costs = &member;
      } else if (name == "preferred") {
        HICACHE_RETURN_IF_ERROR(read_list(at, member, {kPreferredCost, true}, devices));
      } else if (name == "others") {
        HICACHE_RETURN_IF_ERROR(read_list(at, member, {kOtherCost, false}, devices));
      } else {
        return wrong(at, "unknown member " + name + "; preferred, others and costs are known");
      }
    }
    return costs == nullptr ? Status() : read_costs(at + ", costs", *costs, devices);
  }

  Status read_list(const std::string& at, const JsonValue& list, const Topology::Entry& entry,
                   Topology::Devices& devices) {
    if (!list.is(Kind::kArray) || list.elements.size() > kDevicesMax) {
      return wrong(at, "a list of at most 1024 devices is expected");
    }
    for (const JsonValue& name : list.elements) {
      if (!name.is(Kind::kString) || !is_device(name.string)) {
        return wrong(at, "a device's name is 1 to 64 bytes of text");
      }
      if (!devices.emplace(name.string, entry).second) {
        return wrong(at, name.string + " is named twice");
      }
    }
    return {};
  }

  Status read_costs(const std::string& at, const JsonValue& costs, Topology::Devices& devices) {
    if (!costs.is(Kind::kObject) || costs.members.size() > kDevicesMax) {
      return wrong(at, "an object of at most 1024 devices is expected");
    }
    for (const auto& [device, cost] : costs.members) {
      if (!is_device(device)) return wrong(at, "a device's name is 1 to 64 bytes of text");
      const JsonValue* fixed = cost.find("fixed_ns");
      const JsonValue* per_byte = cost.find("ns_per_byte");
      if (cost.members.size() != 2 || !is_cost(fixed) || !is_cost(per_byte)) {
        return wrong(at + " of " + device,
                     "an object of \"fixed_ns\" and \"ns_per_byte\" is expected, both between 0 "
                     "and 10^12");
      }
      // One that is in no list can be used when nothing else is left.
      const auto entry = devices.try_emplace(device, Topology::Entry{{}, false}).first;
      entry->second.cost = {fixed->number, per_byte->number};
    }
    return {};
  }

  static bool is_cost(const JsonValue* value) {
    return value != nullptr && value->is(Kind::kNumber) && value->number >= 0 &&
           value->number <= kCostMax;
  }
};

Result<Topology> Topology::parse(std::string_view json) {
  auto tree = parse_json(json);
  if (!tree.ok()) {
    return Status(tree.status().code(), "the topology is " + tree.status().message());
  }
  TopologyReader reader;
  if (Status status = reader.read(tree.value()); !status.ok()) return status;
  return std::move(reader.topology);
}

const Topology::Entry* Topology::find(std::string_view location, std::string_view device) const {
  auto place = locations_.find(location);
  if (place == locations_.end()) place = locations_.find("*");
  if (place == locations_.end()) return nullptr;
  const auto entry = place->second.find(device);
  return entry == place->second.end() ? nullptr : &entry->second;
}

std::optional<PathCost> Topology::cost(std::string_view location, std::string_view device) const {
  const Entry* entry = find(location, device);
  if (entry == nullptr) return std::nullopt;
  return entry->cost;
}

std::optional<PathCost> Topology::nearest_cost(std::string_view device) const {
  std::optional<PathCost> nearest;
  for (const auto& [location, devices] : locations_) {
    const auto entry = devices.find(device);
    if (entry == devices.end()) continue;
    const PathCost& cost = entry->second.cost;
    if (!nearest || cost.ns_per_byte < nearest->ns_per_byte) nearest = cost;
  }
  return nearest;
}

bool Topology::is_preferred(std::string_view location, std::string_view device) const {
  const Entry* entry = find(location, device);
  return entry != nullptr && entry->is_preferred;
}

}  // namespace hicache
