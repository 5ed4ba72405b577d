// What several tests share: seeds that can be replayed, keys, and bytes that name their page.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"

namespace hicache::testing {

/// What a busy machine may add to the duration of anything: upper bounds of durations are to tell
/// what is late from what does not come, and have this much room. How quick a thing is, a bench
/// says.
inline constexpr uint64_t kBusyMs = 5000;

/// HICACHE_SEED of the environment, or a new one per process. Printed by main().
inline uint64_t seed() {
  static const uint64_t value = [] {
    const char* given = std::getenv("HICACHE_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 0) : random_token() >> 32;
  }();
  return value;
}

/// Put it first into every random test: a failure then says how to repeat it.
#define HICACHE_TRACE_SEED() \
  SCOPED_TRACE("HICACHE_SEED=" + std::to_string(::hicache::testing::seed()))

class Random {
 public:
  explicit Random(uint64_t stream = 0) : engine_(seed() * 0x9E3779B97F4A7C15 + stream) {}

  /// 0 … count - 1.
  uint64_t below(uint64_t count) {
    return std::uniform_int_distribution<uint64_t>(0, count - 1)(engine_);
  }
  /// first … last.
  uint64_t between(uint64_t first, uint64_t last) { return first + below(last - first + 1); }
  bool one_in(uint64_t count) { return below(count) == 0; }
  uint64_t bits() { return engine_(); }
  /// 1 … max, each order of magnitude as likely as the others.
  uint64_t size_up_to(uint64_t max) {
    const auto bits_max = static_cast<uint64_t>(std::bit_width(max));
    return std::min(max, between(1, (uint64_t{1} << between(1, bits_max)) - 1));
  }
  template <typename T>
  const T& pick(const std::vector<T>& values) {
    return values[below(values.size())];
  }
  void fill(std::span<uint8_t> bytes) {
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(engine_());
  }

 private:
  std::mt19937_64 engine_;
};

/// The n-th of many well spread keys.
inline Key key_of(uint64_t n) {
  Key key;
  std::mt19937_64 engine(n + 1);
  for (size_t i = 0; i < kKeySize; i += sizeof(uint64_t)) {
    const uint64_t word = engine();
    std::memcpy(key.bytes.data() + i, &word, sizeof(word));
  }
  return key;
}

inline std::vector<Key> keys_of(uint64_t first, uint64_t count) {
  std::vector<Key> keys;
  for (uint64_t i = 0; i < count; ++i) keys.push_back(key_of(first + i));
  return keys;
}

/// Bytes that only the page numbered `n` has.
inline std::vector<uint8_t> bytes_of(uint64_t n, uint64_t size) {
  std::vector<uint8_t> bytes(size);
  uint64_t word = n * 0x9E3779B97F4A7C15 + size;
  for (uint64_t i = 0; i < size; i += sizeof(word)) {
    word = word * 6364136223846793005 + 1442695040888963407;
    std::memcpy(bytes.data() + i, &word, std::min<uint64_t>(sizeof(word), size - i));
  }
  return bytes;
}

/// An abstract socket name that no other test uses.
inline std::string socket_name() {
  return "@hicache-test-" + std::to_string(random_token());
}

/// Milliseconds that `call` took.
template <typename Call>
uint64_t duration_ms(Call call) {
  const uint64_t start = monotonic_ms();
  call();
  return monotonic_ms() - start;
}

/// Calls `is_true` until it is, at most `timeout_ms`.
template <typename IsTrue>
bool eventually(uint64_t timeout_ms, IsTrue is_true) {
  const Deadline deadline = Deadline::after_ms(timeout_ms);
  while (!is_true()) {
    if (deadline.expired()) return false;
    timespec pause{0, 2'000'000};
    nanosleep(&pause, nullptr);
  }
  return true;
}

}  // namespace hicache::testing
