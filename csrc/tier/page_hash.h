// The 64-bit name of a page inside one process: over its namespace's present life and its key.
// Pure.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace hicache {

/// A namespace's present life: clear() gives it a new one, which hides all older pages at once.
/// Numbers are of this process only; on a disk a namespace is its digest.
using SpaceIndex = uint32_t;
inline constexpr SpaceIndex kAnySpace = UINT32_MAX;

namespace page_hash_detail {

// SplitMix64's finaliser (Steele, Lea, Flood 2014) and its inverse: a bijection.
inline constexpr uint64_t kFirst = 0xBF58476D1CE4E5B9;
inline constexpr uint64_t kSecond = 0x94D049BB133111EB;
inline constexpr uint64_t kFirstInverse = 0x96DE1B173F119089;
inline constexpr uint64_t kSecondInverse = 0x319642B2D24D8EC3;
static_assert(kFirst * kFirstInverse == 1 && kSecond * kSecondInverse == 1);

constexpr uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * kFirst;
  value = (value ^ (value >> 27)) * kSecond;
  return value ^ (value >> 31);
}

constexpr uint64_t unmix(uint64_t value) {
  value = (value ^ (value >> 31) ^ (value >> 62)) * kSecondInverse;
  value = (value ^ (value >> 27) ^ (value >> 54)) * kFirstInverse;
  return value ^ (value >> 30) ^ (value >> 60);
}
static_assert(unmix(mix(0x0123456789ABCDEF)) == 0x0123456789ABCDEF);

}  // namespace page_hash_detail

/// Never 0, which means "no parent". Mixed, because compat keys may be anything.
constexpr uint64_t page_hash(SpaceIndex space, uint64_t key_hash) {
  using page_hash_detail::mix;
  const uint64_t hash = mix(key_hash ^ mix(space + uint64_t{1}));
  return hash == 0 ? 1 : hash;
}

inline uint64_t page_hash(SpaceIndex space, const Key& key) {
  return page_hash(space, key.hash());
}

/// The key hash that page_hash() was made from: what of a parent outlives the process.
constexpr uint64_t key_hash_of(SpaceIndex space, uint64_t page_hash) {
  using page_hash_detail::mix;
  using page_hash_detail::unmix;
  return unmix(page_hash) ^ mix(space + uint64_t{1});
}

}  // namespace hicache
