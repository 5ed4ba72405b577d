// The only doors to time and randomness. Pure units take both as arguments.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hicache {

/// Milliseconds of CLOCK_MONOTONIC: immune to clocks that jump.
uint64_t monotonic_ms();

/// Nanoseconds of CLOCK_MONOTONIC.
uint64_t monotonic_ns();

/// Seconds of the wall clock, which may jump: to be shown to people, never to be decided upon.
uint64_t unix_time_s();

/// 64 unpredictable bits from the kernel; never 0.
uint64_t random_token();

/// Names a life of a process among others of its name: unpredictable in the low 22 bits, and larger
/// than those made earlier, as far as the wall clock goes. Never 0.
uint64_t life_token();

/// A point in time after which a call gives up. Copied by value down the stack, so that nested
/// waits share one budget.
class Deadline {
 public:
  /// At most 24 days ahead, which every wait of the system can express.
  static Deadline after_ms(uint64_t ms) {
    return Deadline(monotonic_ns() + std::min(ms, kAheadMaxMs) * 1'000'000);
  }

  /// The same budget for waiting, after time spent on work that must not count against it.
  Deadline later_by_ns(uint64_t ns) const { return Deadline(at_ns_ + ns); }

  bool expired() const { return monotonic_ns() >= at_ns_; }
  uint64_t remaining_ns() const {
    const uint64_t now = monotonic_ns();
    return now >= at_ns_ ? 0 : at_ns_ - now;
  }
  /// Rounded up, so that a wait of the result never ends just before the deadline.
  int remaining_ms() const { return static_cast<int>((remaining_ns() + 999'999) / 1'000'000); }

 private:
  static constexpr uint64_t kAheadMaxMs = 24ULL * 24 * 3600 * 1000;

  explicit Deadline(uint64_t at_ns) : at_ns_(at_ns) {}
  uint64_t at_ns_;
};

}  // namespace hicache
