// Named objects as pages: what stands before the bytes of an object in its page.
//
//   offset 0   8 bytes   "hcobject"
//          8   4 bytes   version
//         12   4 bytes   length of the name
//         16             the name, then zeros up to a multiple of 64
//                        the object's bytes, to the end of the page
//
// The page's key is the SHA-256 of the name. The head follows from the name alone, so a reader
// knows how large it is and compares it whole: a page of another name is no page. It is there so
// that objects can be listed, and so that no hash has to be believed. Not a place for anything that
// may change.
//
// Pure. Threads: any.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace hicache {

inline constexpr size_t kObjectNameSizeMax = 64 * kKiB;
inline constexpr uint64_t kObjectHeadUnit = 64;
/// The largest head.
inline constexpr uint64_t kObjectHeadSizeMax = round_up(16 + kObjectNameSizeMax, kObjectHeadUnit);

Key object_key(std::string_view name);

/// Requires: the name is not longer than kObjectNameSizeMax.
std::vector<uint8_t> object_head(std::string_view name);

/// The name in a head, or nothing if these bytes, of which there may be more or less than a head,
/// do not begin with one, or with one that belongs to another key.
std::optional<std::string> object_name(std::span<const uint8_t> bytes, const Key& key);

}  // namespace hicache
