// Which entry of a port's GID table packets are sent from.
//
// On Ethernet: RoCE v2 before v1, addresses that are routed (IPv4, global IPv6) before link-local
// ones; among equals an interface that is a bond, because its members come and go, then the lowest
// index. On InfiniBand: the lowest index. An index that people name is taken as it is.
//
// Pure. Threads: any.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace hicache {

using Gid = std::array<uint8_t, 16>;

enum class GidKind : uint8_t { kInfiniband, kRoceV1, kRoceV2 };

struct GidEntry {
  uint32_t index;
  Gid gid;
  GidKind kind;
  bool is_bond;  // Its interface is a bond.
};

/// nullopt: none will do.
std::optional<GidEntry> choose_gid(std::span<const GidEntry> table, int wanted_index);

/// "::ffff:10.77.0.1", for people.
std::string to_string(const Gid& gid);

}  // namespace hicache
