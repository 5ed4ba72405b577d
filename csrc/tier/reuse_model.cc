#include "tier/reuse_model.h"

#include <algorithm>
#include <cmath>

namespace hicache {
namespace {

constexpr double kFirstStepTicks = 16;
constexpr double kStepsPerOctave = 3;
// One page held for the time in which the whole capacity is filled, for nothing: keeps a class of
// which little is known from seeming precious after one hit.
constexpr double kDoubtTicks = ReuseModel::kTicksPerCapacity;

struct AgeEdges {
  AgeEdges() {
    for (int step = 0; step <= ReuseModel::kAgeCount; ++step) {
      ticks[step] = kFirstStepTicks * (std::exp2(step / kStepsPerOctave) - 1);
    }
  }
  double ticks[ReuseModel::kAgeCount + 1];
};

const AgeEdges kEdges;

}  // namespace

int ReuseModel::age_step(uint64_t ticks) {
  const double age = static_cast<double>(ticks);
  int step = static_cast<int>(kStepsPerOctave * std::log2(age / kFirstStepTicks + 1));
  return std::min(step, kAgeCount - 1);
}

ReuseModel::ReuseModel() : cohorts_(kCohortCount) {}

void ReuseModel::add_exposure(PerAge& exposure, double ticks, double count) {
  for (int step = 0; step < kAgeCount && kEdges.ticks[step] < ticks; ++step) {
    const double end = step + 1 == kAgeCount ? ticks : std::min(ticks, kEdges.ticks[step + 1]);
    exposure[step] += count * (end - kEdges.ticks[step]);
  }
}

void ReuseModel::retire_until(uint64_t cohort, uint64_t now_tick) {
  cohort = std::min(cohort, now_tick / kCohortTicks);
  const uint64_t retired_end = std::min(cohort, cohort_first_ + kCohortCount);
  for (uint64_t old = cohort_first_; old < retired_end; ++old) {
    const double age = static_cast<double>(now_tick - old * kCohortTicks) - kCohortTicks / 2.0;
    Cohort& counts = cohorts_[old % kCohortCount];
    for (int c = 0; c < kClassCount; ++c) {
      if (counts[c] != 0) add_exposure(exposure_[c], age, counts[c]);
    }
    counts.fill(0);
  }
  cohort_first_ = std::max(cohort_first_, cohort);
}

void ReuseModel::add_use(int page_class, uint64_t now_tick) {
  const uint64_t cohort = now_tick / kCohortTicks;
  if (cohort >= cohort_first_ + kCohortCount) retire_until(cohort - kCohortCount + 1, now_tick);
  ++cohort_of(now_tick)[page_class];
}

void ReuseModel::change_class(int old_class, int new_class, uint64_t tick) {
  if (!is_counted(tick)) return;
  Cohort& counts = cohort_of(tick);
  if (counts[old_class] == 0) return;
  --counts[old_class];
  ++counts[new_class];
}

void ReuseModel::add_reuse(int page_class, uint64_t tick, uint64_t now_tick) {
  if (!is_counted(tick)) return;
  hits_[page_class][age_step(now_tick - tick)] += 1;
  drop(page_class, tick, now_tick);
}

void ReuseModel::drop(int page_class, uint64_t tick, uint64_t now_tick) {
  if (!is_counted(tick)) return;
  uint32_t& count = cohort_of(tick)[page_class];
  if (count > 0) --count;
  add_exposure(exposure_[page_class], static_cast<double>(now_tick - tick), 1);
}

void ReuseModel::forget_before(uint64_t tick, uint64_t now_tick) {
  retire_until(tick / kCohortTicks, now_tick);
}

// What was observed, and the time that pages of the cohorts have waited so far.
std::array<ReuseModel::PerAge, ReuseModel::kClassCount> ReuseModel::exposure_with_waiting(
    uint64_t now_tick) const {
  std::array<PerAge, kClassCount> exposure = exposure_;
  std::array<PerAge, kClassCount> waiting{};  // pages by the step that they have reached
  for (uint64_t cohort = cohort_first_; cohort <= now_tick / kCohortTicks; ++cohort) {
    const uint64_t middle = cohort * kCohortTicks + kCohortTicks / 2;
    const uint64_t age = now_tick - std::min(middle, now_tick);
    const int step = age_step(age);
    const double ticks_in_step = static_cast<double>(age) - kEdges.ticks[step];
    const Cohort& counts = cohorts_[cohort % kCohortCount];
    for (int c = 0; c < kClassCount; ++c) {
      exposure[c][step] += counts[c] * ticks_in_step;
      waiting[c][step] += counts[c];
    }
  }
  for (int c = 0; c < kClassCount; ++c) {
    double passed = 0;  // pages that are past this step
    for (int step = kAgeCount - 1; step >= 0; --step) {
      exposure[c][step] += passed * (kEdges.ticks[step + 1] - kEdges.ticks[step]);
      passed += waiting[c][step];
    }
  }
  return exposure;
}

void ReuseModel::learn(uint64_t now_tick, double keep_share) {
  for (int c = 0; c < kClassCount; ++c) {
    for (int step = 0; step < kAgeCount; ++step) {
      hits_[c][step] *= keep_share;
      exposure_[c][step] *= keep_share;
    }
  }
  const std::array<PerAge, kClassCount> exposure = exposure_with_waiting(now_tick);
  for (int c = 0; c < kClassCount; ++c) {
    for (int age = 0; age < kAgeCount; ++age) {
      double hits = 0;
      double ticks = kDoubtTicks;
      double best = 0;
      for (int step = age; step < kAgeCount; ++step) {
        hits += hits_[c][step];
        ticks += exposure[c][step];
        best = std::max(best, hits / ticks);
      }
      worth_[c][age] = static_cast<float>(best);
    }
  }
}

}  // namespace hicache
