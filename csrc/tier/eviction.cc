#include "tier/eviction.h"

#include <array>
#include <utility>

#include "tier/eviction_base.h"

namespace hicache {
namespace {

constexpr std::array<std::pair<EvictionKind, std::string_view>, 3> kKindNames{{
    {EvictionKind::kLru, "lru"},
    {EvictionKind::kS3Fifo, "s3fifo"},
    {EvictionKind::kAdaptive, "adaptive"},
}};

}  // namespace

std::unique_ptr<Eviction> make_eviction(EvictionKind kind, uint64_t capacity_bytes, uint64_t) {
  switch (kind) {
    case EvictionKind::kLru:
      return make_lru_eviction();
    case EvictionKind::kS3Fifo:
      return make_s3fifo_eviction(capacity_bytes);
    case EvictionKind::kAdaptive:
      return make_adaptive_eviction(capacity_bytes);
  }
  return nullptr;
}

std::optional<EvictionKind> parse_eviction_kind(std::string_view name) {
  for (const auto& [kind, kind_name] : kKindNames) {
    if (kind_name == name) return kind;
  }
  return std::nullopt;
}

std::string_view eviction_kind_name(EvictionKind kind) {
  for (const auto& [named, kind_name] : kKindNames) {
    if (named == kind) return kind_name;
  }
  return "?";
}

}  // namespace hicache
