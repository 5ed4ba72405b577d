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

/// Unit of direct I/O. Every file system and disk that serves takes multiples of this, whatever
/// smaller ones it would take too.
inline constexpr uint64_t kSectorSize = 4 * kKiB;

inline constexpr size_t kKeySize = 32;

/// Name of a page inside a namespace: a SHA-256 prefix-chain hash, or any other 32 uniformly
/// distributed bytes.
struct Key {
  std::array<uint8_t, kKeySize> bytes{};

  bool operator==(const Key&) const = default;

  /// All 32 bytes count: keys that people choose may differ in any of them.
  uint64_t hash() const {
    uint64_t words[4];
    std::memcpy(words, bytes.data(), sizeof(words));
    return fold(words[0] ^ 0xA0761D6478BD642F, words[1] ^ 0xE7037ED1A0B428DB) ^
           fold(words[2] ^ 0x8EBC6AF09C88C6E3, words[3] ^ 0x589965CC75374CC3);
  }

 private:
  /// Both halves of the product: every bit of the factors reaches every bit of the result.
  static uint64_t fold(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
};

/// Digest over everything that makes two equal keys different data.
using NamespaceDigest = Key;

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace hicache
