// Durations counted in buckets of powers of two, from 1 µs to 0.5 s and beyond.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace hicache {

struct DurationHistogram {
  // Bucket i holds up to 2^i µs; one more holds the rest.
  static constexpr size_t kBoundCount = 20;

  std::array<uint64_t, kBoundCount + 1> counts{};
  uint64_t sum_ns = 0;

  void add(uint64_t duration_ns) {
    const uint64_t whole_us = (duration_ns + 999) / 1000;
    const auto bucket = static_cast<size_t>(std::bit_width(whole_us > 1 ? whole_us - 1 : 0));
    ++counts[std::min(bucket, kBoundCount)];
    sum_ns += duration_ns;
  }

  void add(const DurationHistogram& other) {
    for (size_t i = 0; i < counts.size(); ++i) counts[i] += other.counts[i];
    sum_ns += other.sum_ns;
  }

  static constexpr double bound_seconds(size_t bucket) {
    return static_cast<double>(uint64_t{1} << bucket) * 1e-6;
  }
};

}  // namespace hicache
