// How much may be written to the SSDs, to protect their endurance: a token bucket.
//
// Pure. `now_ms` is any clock; a time before the latest one counts as that one. Threads: one owner.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace hicache {

class WriteBudget {
 public:
  /// What a write must show to be admitted now.
  enum class Demand : uint8_t {
    kNothing,  // The budget is ample.
    kReuse,    // Scarce: only what was read again.
    kRefuse,   // Spent.
  };

  /// `bytes_per_day` 0: no limit; at most 2^63. The bucket starts full and holds an eighth of a
  /// day's worth: what was not written in the last three hours may be written at once. Scarce:
  /// below half.
  WriteBudget(uint64_t bytes_per_day, uint64_t now_ms);

  Demand demand(uint64_t now_ms);
  /// Takes what was written; the budget may go below zero by one write.
  void spend(uint64_t bytes, uint64_t now_ms);
  /// Bytes left now; UINT64_MAX without a limit.
  uint64_t left_bytes(uint64_t now_ms);
  /// Written in the last 24 hours, by hours: at most an hour more.
  uint64_t written_last_day_bytes(uint64_t now_ms);

 private:
  __extension__ using Signed128 = __int128;
  static constexpr uint64_t kHourMs = 3'600'000;
  static constexpr uint64_t kDayMs = 24 * kHourMs;
  static constexpr size_t kHourCount = 25;  // The one that has begun, and 24 whole ones.

  void advance(uint64_t now_ms);
  void forget_hours(uint64_t now_ms);

  uint64_t bytes_per_day_;
  // In bytes * kDayMs: a millisecond brings `bytes_per_day_` of it, and nothing is lost to
  // rounding.
  Signed128 capacity_;
  Signed128 level_;
  uint64_t latest_ms_;
  std::array<uint64_t, kHourCount> written_bytes_{};  // By hour of the clock, modulo kHourCount.
};

}  // namespace hicache
