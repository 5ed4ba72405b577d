#include "tier/reuse_model.h"

#include <algorithm>
#include <cmath>

namespace hicache {
namespace {

constexpr double kFirstStepTicks = 16;
constexpr double kStepsPerOctave = 3;

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

void ReuseModel::learn(uint64_t now_tick, double keep_share) {
  for (int c = 0; c < kClassCount; ++c) {
    for (int step = 0; step < kAgeCount; ++step) {
      hits_[c][step] *= keep_share;
      exposure_[c][step] *= keep_share;
    }
  }
  std::array<PerAge, kClassCount> exposure = exposure_;
  for (uint64_t cohort = cohort_first_; cohort <= now_tick / kCohortTicks; ++cohort) {
    const double start = static_cast<double>(cohort * kCohortTicks);
    const double age = std::max(0.0, static_cast<double>(now_tick) - start - kCohortTicks / 2.0);
    const Cohort& counts = cohorts_[cohort % kCohortCount];
    for (int c = 0; c < kClassCount; ++c) {
      if (counts[c] != 0) add_exposure(exposure[c], age, counts[c]);
    }
  }
  for (int c = 0; c < kClassCount; ++c) {
    for (int age = 0; age < kAgeCount; ++age) {
      double hits = 0;
      double ticks = 0;
      double best = 0;
      for (int step = age; step < kAgeCount; ++step) {
        const double width = kEdges.ticks[step + 1] - kEdges.ticks[step];
        hits += hits_[c][step];
        ticks += exposure[c][step] + width * 1e-3;
        best = std::max(best, hits / (ticks + kTicksPerCapacity));
      }
      worth_[c][age] = static_cast<float>(best);
    }
  }
}

}  // namespace hicache
