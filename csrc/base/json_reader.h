// Reads one JSON text into a tree. Strict (RFC 8259, no name twice in an object, valid UTF-8) and
// bounded: by the size of the text, its depth and the count of its values. For what people and
// other languages hand in, such as a topology; nothing on a hot path. json.h writes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace hicache {

inline constexpr size_t kJsonSizeMax = 1 << 20;
inline constexpr size_t kJsonDepthMax = 32;
inline constexpr size_t kJsonValuesMax = 1 << 16;

struct JsonValue {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  std::string string;
  std::vector<JsonValue> elements;
  std::vector<std::pair<std::string, JsonValue>> members;  // As written.

  bool is(Kind other) const { return kind == other; }
  /// The member of that name; nullptr if there is none, or this is no object.
  const JsonValue* find(std::string_view name) const;
};

/// kInvalidArgument says at which byte and why.
Result<JsonValue> parse_json(std::string_view text);

}  // namespace hicache
