// Calls of the core that block, made without the GIL. Called with the GIL held.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "base/clock.h"
#include "base/status.h"
#include "bind/convert.h"

namespace hicache {

/// Longer is forever; so that no deadline wraps.
inline constexpr uint64_t kTimeoutMaxMs = 24ULL * 24 * 3600 * 1000;

/// Runs `call`, raises what a Status or a Result says, and returns what else it returns.
template <typename Call>
auto without_gil(Call call) {
  auto result = [&] {
    nanobind::gil_scoped_release no_gil;
    return call();
  }();
  if constexpr (std::is_same_v<decltype(result), Status>) {
    raise_if_error(result);
  } else {
    raise_if_error(result.status());
    return std::move(result.value());
  }
}

}  // namespace hicache
