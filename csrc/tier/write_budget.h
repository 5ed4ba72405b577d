// How much may be written to the SSDs, to protect their endurance: a token bucket.  Pure.
#pragma once

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

  /// `bytes_per_day` 0: no limit. The bucket starts full and holds an eighth of a day's worth:
  /// what was not written in the last three hours may be written at once. Scarce: below half.
  WriteBudget(uint64_t bytes_per_day, uint64_t now_ms);

  Demand demand(uint64_t now_ms);
  /// Takes what was written; the budget may go below zero by one write.
  void spend(uint64_t bytes, uint64_t now_ms);
  /// Bytes left now; UINT64_MAX without a limit.
  uint64_t left_bytes(uint64_t now_ms);
  /// Written in the last 24 hours, by hours: at most an hour more.
  uint64_t written_last_day_bytes(uint64_t now_ms);

 private:
  // The implementation's.
};

}  // namespace hicache
