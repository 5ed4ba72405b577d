#include "transfer/rdma/rdma_options.h"

#include <array>
#include <cmath>
#include <string>

#include "base/json_reader.h"

namespace hicache {
namespace {

struct NumberOption {
  std::string_view name;
  double min;
  double max;
  void (*set)(RdmaSettings&, double);
};

template <auto Member>
void set_number(RdmaSettings& settings, double value) {
  auto& member = settings.*Member;
  member = static_cast<std::remove_reference_t<decltype(member)>>(value);
}

constexpr std::array kNumbers = {
    NumberOption{"gid_index", -1, 65535, set_number<&RdmaSettings::gid_index>},
    NumberOption{"mtu", 0, 4096, set_number<&RdmaSettings::mtu>},
    NumberOption{"traffic_class", 0, 255, set_number<&RdmaSettings::traffic_class>},
    NumberOption{"service_level", 0, 15, set_number<&RdmaSettings::service_level>},
    NumberOption{"queue_pairs", 1, 16, set_number<&RdmaSettings::queue_pairs>},
    NumberOption{"queue_depth", 8, 8192, set_number<&RdmaSettings::queue_depth>},
    NumberOption{"inline_size_bytes", 0, 1024, set_number<&RdmaSettings::inline_size_bytes>},
    NumberOption{"ack_timeout", 1, 31, set_number<&RdmaSettings::ack_timeout>},
    NumberOption{"retry_count", 0, 6, set_number<&RdmaSettings::retry_count>},
    NumberOption{"connections_max", 1, 65536, set_number<&RdmaSettings::connections_max>},
};

struct SwitchOption {
  std::string_view name;
  bool RdmaSettings::* member;
};

constexpr std::array kSwitches = {
    SwitchOption{"odp", &RdmaSettings::odp},
    SwitchOption{"relaxed_ordering", &RdmaSettings::relaxed_ordering},
    SwitchOption{"all_pairs", &RdmaSettings::all_pairs},
};

Status refused(std::string_view name, const std::string& why) {
  return Status(Code::kInvalidArgument,
                "RDMA option \"" + std::string(name) + "\": " + why + "; see rdma_options.h");
}

Status set_option(RdmaSettings& settings, std::string_view name, const JsonValue& value) {
  for (const NumberOption& option : kNumbers) {
    if (option.name != name) continue;
    const bool is_whole =
        value.is(JsonValue::Kind::kNumber) && std::trunc(value.number) == value.number;
    if (!is_whole || value.number < option.min || value.number > option.max) {
      return refused(name, "must be a whole number from " +
                               std::to_string(static_cast<int>(option.min)) + " to " +
                               std::to_string(static_cast<int>(option.max)));
    }
    option.set(settings, value.number);
    return Status();
  }
  for (const SwitchOption& option : kSwitches) {
    if (option.name != name) continue;
    if (!value.is(JsonValue::Kind::kBool)) return refused(name, "must be true or false");
    settings.*option.member = value.boolean;
    return Status();
  }
  return refused(name, "there is no such option");
}

bool is_mtu(unsigned mtu) {
  return mtu == 0 || mtu == 256 || mtu == 512 || mtu == 1024 || mtu == 2048 || mtu == 4096;
}

}  // namespace

Result<RdmaSettings> parse_rdma_settings(std::string_view json) {
  RdmaSettings settings{
      .gid_index = -1,
      .mtu = 0,
      .traffic_class = 0,
      .service_level = 0,
      .queue_pairs = 2,
      .queue_depth = 128,
      .inline_size_bytes = 128,
      .ack_timeout = 14,
      .retry_count = 6,
      .odp = false,
      .relaxed_ordering = false,
      .all_pairs = true,
      .connections_max = 1024,
  };
  if (json.empty()) return settings;
  const Result<JsonValue> parsed = parse_json(json);
  if (!parsed.ok()) {
    return Status(Code::kInvalidArgument, "RDMA options: " + parsed.status().message());
  }
  if (!parsed.value().is(JsonValue::Kind::kObject)) {
    return Status(Code::kInvalidArgument, "RDMA options: a JSON object is wanted, as {\"mtu\": 0}");
  }
  for (const auto& [name, value] : parsed.value().members) {
    HICACHE_RETURN_IF_ERROR(set_option(settings, name, value));
  }
  if (!is_mtu(settings.mtu)) return refused("mtu", "must be 0, 256, 512, 1024, 2048 or 4096");
  return settings;
}

}  // namespace hicache
