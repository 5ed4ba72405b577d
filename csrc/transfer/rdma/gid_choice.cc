#include "transfer/rdma/gid_choice.h"

#include <algorithm>
#include <tuple>

namespace hicache {
namespace {

constexpr std::array<uint8_t, 12> kIpv4Prefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool is_ipv4(const Gid& gid) {
  return std::equal(kIpv4Prefix.begin(), kIpv4Prefix.end(), gid.begin());
}

bool is_link_local(const Gid& gid) {
  return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80;
}

bool is_zero(const Gid& gid) {
  return std::ranges::all_of(gid, [](uint8_t byte) { return byte == 0; });
}

/// The smaller the better.
auto rank(const GidEntry& entry) {
  const int kind = entry.kind == GidKind::kRoceV1 ? 1 : 0;
  const int reach = is_ipv4(entry.gid) ? 0 : is_link_local(entry.gid) ? 2 : 1;
  const bool is_ethernet = entry.kind != GidKind::kInfiniband;
  return std::tuple(kind, is_ethernet ? reach : 0, !entry.is_bond, entry.index);
}

}  // namespace

std::optional<GidEntry> choose_gid(std::span<const GidEntry> table, int wanted_index) {
  const GidEntry* best = nullptr;
  for (const GidEntry& entry : table) {
    if (is_zero(entry.gid)) continue;
    if (wanted_index >= 0 && entry.index != static_cast<uint32_t>(wanted_index)) continue;
    if (best == nullptr || rank(entry) < rank(*best)) best = &entry;
  }
  if (best == nullptr) return std::nullopt;
  return *best;
}

std::string to_string(const Gid& gid) {
  if (is_ipv4(gid)) {
    std::string text = "::ffff:";
    for (size_t i = 12; i < gid.size(); ++i) {
      text += std::to_string(gid[i]) + (i + 1 < gid.size() ? "." : "");
    }
    return text;
  }
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < gid.size(); ++i) {
    if (i != 0 && i % 2 == 0) text += ':';
    text += kDigits[gid[i] >> 4];
    text += kDigits[gid[i] & 15];
  }
  return text;
}

}  // namespace hicache
