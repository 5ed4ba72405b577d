// How soon pages of a class are used again, learned from all pages seen lately, resident or ghosts,
// and what holding one on is worth.
//
// The worth of a page of class c that was last used `age` ago is
//     max over h > age of   P(used again between age and h) / E(time until used again or h)
// (the Gittins index): the best rate of hits per byte and time that holding it can bring.  Evicting
// the least worth is the best greedy rule when all that is known of a page is its class and age.
// Time is counted in ticks of bytes inserted, so that it measures what a held page displaces.
//
// Pages not used again yet count too: cohorts say how many of a class were last used when.
// Pure; one owner, not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hicache {

class ReuseModel {
 public:
  static constexpr int kClassCount = 64;
  static constexpr int kAgeCount = 36;  // geometric steps, three to an octave
  static constexpr uint64_t kTicksPerCapacity = 1024;

  ReuseModel();

  // Which age step a page last used `ticks` ago is in.
  static int age_step(uint64_t ticks);

  // A page of this class was used now.
  void add_use(int page_class, uint64_t now_tick);
  // A page used at `tick` is now of another class.
  void change_class(int old_class, int new_class, uint64_t tick);
  // A page used at `tick` was used again.
  void add_reuse(int page_class, uint64_t tick, uint64_t now_tick);
  // A page used at `tick` will not be seen again.
  void drop(int page_class, uint64_t tick, uint64_t now_tick);
  // Pages used before `tick` are no longer remembered: their next use would not be noticed.
  void forget_before(uint64_t tick, uint64_t now_tick);

  // Computes worth() anew, and lets old observations fade by `keep_share`.
  void learn(uint64_t now_tick, double keep_share);
  float worth(int page_class, int age_step) const { return worth_[page_class][age_step]; }

  size_t memory_size_bytes() const { return cohorts_.capacity() * sizeof(cohorts_[0]); }

 private:
  static constexpr int kCohortCount = 256;
  static constexpr uint64_t kCohortTicks = kTicksPerCapacity / 8;

  using PerAge = std::array<double, kAgeCount>;
  using Cohort = std::array<uint32_t, kClassCount>;

  static void add_exposure(PerAge& exposure, double ticks, double count);
  bool is_counted(uint64_t tick) const { return tick / kCohortTicks >= cohort_first_; }
  Cohort& cohort_of(uint64_t tick) { return cohorts_[tick / kCohortTicks % kCohortCount]; }
  std::array<PerAge, kClassCount> exposure_with_waiting(uint64_t now_tick) const;
  void retire_until(uint64_t cohort, uint64_t now_tick);

  std::vector<Cohort> cohorts_;  // ring
  uint64_t cohort_first_ = 0;    // oldest that is counted
  std::array<PerAge, kClassCount> hits_{};
  std::array<PerAge, kClassCount> exposure_{};  // page ticks spent at that age
  std::array<std::array<float, kAgeCount>, kClassCount> worth_{};
};

}  // namespace hicache
