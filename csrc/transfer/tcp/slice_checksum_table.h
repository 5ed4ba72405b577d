// The functions of XXH3, compiled for one set of instructions each. Private to slice_checksum*.cc.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hicache {

struct ChecksumTable {
  void (*start)(void* state);
  void (*add)(void* state, const uint8_t* bytes, size_t size);
  uint64_t (*finish)(const void* state);
  uint64_t (*of)(const uint8_t* bytes, size_t size);
};

extern const ChecksumTable kChecksumAvx2;  // x86 only.

}  // namespace hicache

/// Defines a table out of the xxHash that was included before.
#define HICACHE_CHECKSUM_TABLE                                                                \
  {                                                                                           \
      [](void* state) { XXH3_64bits_reset(static_cast<XXH3_state_t*>(state)); },              \
      [](void* state, const uint8_t* bytes, size_t size) {                                    \
        XXH3_64bits_update(static_cast<XXH3_state_t*>(state), bytes, size);                   \
      },                                                                                      \
      [](const void* state) -> uint64_t {                                                     \
        return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state));                   \
      },                                                                                      \
      [](const uint8_t* bytes, size_t size) -> uint64_t { return XXH3_64bits(bytes, size); }, \
  }
