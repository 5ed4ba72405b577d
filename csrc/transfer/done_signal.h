// Tells waiters that a batch is done: one word, one wake-up, no lock.
//
// One signal serves the batches of one slot, one after the other. The word holds the generation of
// the last one that was done, or one less than that of the one that runs. Generations grow, so a
// waiter of an older batch than the word says does not wait either.
//
// Threads: any may wait; begin() and signal() are called once for each generation.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <ctime>

#include "base/clock.h"

namespace hicache {

class DoneSignal {
 public:
  /// A batch of this generation begins. Generations wrap around, and what the word says of one
  /// that was long ago would mean the opposite.
  void begin(uint32_t generation) { done_.store(generation - 1); }

  /// Changes nothing if a later batch has begun by now: its waiters must not miss their own.
  void signal(uint32_t generation) {
    uint32_t running = generation - 1;
    (void)done_.compare_exchange_strong(running, generation);
    if (sleepers_.load() != 0) {
      (void)syscall(SYS_futex, &done_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }
  }

  bool is_done(uint32_t generation) const {
    return static_cast<int32_t>(done_.load() - generation) >= 0;
  }

  /// Blocks until that generation is done (true) or `deadline_ns` of monotonic_ns() (false).
  /// Polls for `spin_us` before it sleeps.
  bool wait(uint32_t generation, uint64_t deadline_ns, unsigned spin_us) {
    if (spin_us != 0) spin(generation, spin_us);
    if (is_done(generation)) return true;
    sleepers_.fetch_add(1);
    bool is_late = false;
    while (!is_late) {
      const uint32_t seen = done_.load();
      if (static_cast<int32_t>(seen - generation) >= 0) break;
      is_late = wait_for_change(seen, deadline_ns);
    }
    sleepers_.fetch_sub(1);
    return is_done(generation);
  }

 private:
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the kernel reads it");

  void spin(uint32_t generation, unsigned spin_us) const {
    const uint64_t until_ns = monotonic_ns() + uint64_t{spin_us} * 1000;
    while (!is_done(generation) && monotonic_ns() < until_ns) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  /// True if the deadline has passed.
  bool wait_for_change(uint32_t seen, uint64_t deadline_ns) {
    const timespec until{static_cast<time_t>(deadline_ns / 1'000'000'000),
                         static_cast<long>(deadline_ns % 1'000'000'000)};
    const long result =
        syscall(SYS_futex, &done_, FUTEX_WAIT_BITSET_PRIVATE, seen,
                deadline_ns == UINT64_MAX ? nullptr : &until, nullptr, FUTEX_BITSET_MATCH_ANY);
    return result != 0 && errno == ETIMEDOUT;
  }

  std::atomic<uint32_t> done_{0};
  std::atomic<uint32_t> sleepers_{0};
};

}  // namespace hicache
