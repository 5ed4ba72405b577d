// Sizes and the 32-byte key: the few words that every layer uses.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hicache {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

inline constexpr size_t kKeySize = 32;

/// Name of a page inside a namespace: a SHA-256 prefix-chain hash, or any other 32 uniformly
/// distributed bytes.
struct Key {
  std::array<uint8_t, kKeySize> bytes{};

  bool operator==(const Key&) const = default;

  /// The first 8 bytes. Keys are digests already, so this is as good as hashing them again.
  uint64_t hash() const {
    uint64_t value;
    std::memcpy(&value, bytes.data(), sizeof(value));
    return value;
  }
};

/// Digest over everything that makes two equal keys different data.
using NamespaceDigest = Key;

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace hicache
