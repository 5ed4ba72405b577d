#include "tier/write_budget.h"

#include <gtest/gtest.h>

#include <deque>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;
using Demand = WriteBudget::Demand;

constexpr uint64_t kHourMs = 3'600'000;
constexpr uint64_t kDayMs = 24 * kHourMs;

TEST(WriteBudget, WithoutALimitAllIsAdmittedAndCounted) {
  WriteBudget budget(0, 5);
  budget.spend(UINT64_MAX / 2, 6);
  budget.spend(1, 6);
  EXPECT_EQ(budget.demand(6), Demand::kNothing);
  EXPECT_EQ(budget.left_bytes(6), UINT64_MAX);
  EXPECT_EQ(budget.written_last_day_bytes(6), UINT64_MAX / 2 + 1);
  budget.spend(UINT64_MAX, 7);
  EXPECT_EQ(budget.written_last_day_bytes(7), UINT64_MAX) << "it saturates";
}

TEST(WriteBudget, BecomesScarceBelowHalfAndIsSpentAtZero) {
  WriteBudget budget(8000, 0);
  EXPECT_EQ(budget.left_bytes(0), 1000U);
  budget.spend(500, 0);
  EXPECT_EQ(budget.demand(0), Demand::kNothing);
  budget.spend(1, 0);
  EXPECT_EQ(budget.demand(0), Demand::kReuse);
  budget.spend(498, 0);
  EXPECT_EQ(budget.demand(0), Demand::kReuse);
  budget.spend(1, 0);
  EXPECT_EQ(budget.left_bytes(0), 0U);
  EXPECT_EQ(budget.demand(0), Demand::kRefuse);
}

TEST(WriteBudget, ADebtIsPaidBeforeAnythingIsAdmitted) {
  WriteBudget budget(24, 0);  // A byte an hour, three at most.
  budget.spend(5, 0);
  EXPECT_EQ(budget.demand(2 * kHourMs), Demand::kRefuse);
  EXPECT_EQ(budget.left_bytes(3 * kHourMs - 1), 0U);
  EXPECT_EQ(budget.left_bytes(3 * kHourMs), 1U);
  EXPECT_EQ(budget.demand(3 * kHourMs), Demand::kReuse);
}

TEST(WriteBudget, NothingIsLostToRounding) {
  WriteBudget budget(24, 0);
  budget.spend(3, 0);
  for (uint64_t now = 0; now < kHourMs; now += 7) (void)budget.left_bytes(now);
  EXPECT_EQ(budget.left_bytes(kHourMs - 1), 0U);
  EXPECT_EQ(budget.left_bytes(kHourMs), 1U);
}

TEST(WriteBudget, TimeThatStandsStillOrRunsBackBringsNothing) {
  WriteBudget budget(8000, kDayMs);
  budget.spend(1000, kDayMs);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(budget.left_bytes(kDayMs), 0U);
  EXPECT_EQ(budget.left_bytes(0), 0U);
  budget.spend(1, 0);
  EXPECT_EQ(budget.written_last_day_bytes(3), 1001U);
  // From the latest time on, not from the one before it.
  EXPECT_EQ(budget.left_bytes(kDayMs + kHourMs), 8000 / 24 - 1U);
}

TEST(WriteBudget, AJumpFarAheadFillsTheBucketAndForgetsTheDay) {
  WriteBudget budget(8000, 0);
  budget.spend(1'000'000, 0);
  EXPECT_EQ(budget.written_last_day_bytes(0), 1'000'000U);
  EXPECT_EQ(budget.left_bytes(UINT64_MAX), 1000U);
  EXPECT_EQ(budget.written_last_day_bytes(UINT64_MAX), 0U);
  budget.spend(7, UINT64_MAX);
  EXPECT_EQ(budget.left_bytes(UINT64_MAX), 993U);
  EXPECT_EQ(budget.written_last_day_bytes(UINT64_MAX), 7U);
}

TEST(WriteBudget, HoldsAtTheLargestAndTheSmallestLimit) {
  const uint64_t most = uint64_t{1} << 63;
  WriteBudget large(most, 0);
  EXPECT_EQ(large.left_bytes(0), most / 8);
  for (int i = 0; i < 4; ++i) large.spend(UINT64_MAX, 0);
  EXPECT_EQ(large.demand(7 * kDayMs), Demand::kRefuse) << "that takes nearly eight days";
  EXPECT_EQ(large.left_bytes(9 * kDayMs), most / 8);
  EXPECT_EQ(large.left_bytes(UINT64_MAX), most / 8);
  WriteBudget small(1, 0);
  EXPECT_EQ(small.demand(0), Demand::kNothing);
  small.spend(1, 0);
  EXPECT_EQ(small.demand(kDayMs - 1), Demand::kRefuse);
  EXPECT_EQ(small.demand(kDayMs), Demand::kNothing);
}

TEST(WriteBudget, ADayIsNeverWrittenTwice) {
  // Whoever writes whenever it is admitted stays within a day's worth, the bucket and one write.
  HICACHE_TRACE_SEED();
  Random random(700);
  const uint64_t per_day = 1'000'000;
  WriteBudget budget(per_day, 0);
  uint64_t written = 0;
  for (uint64_t now = 0; now < kDayMs; now += random.below(20'000)) {
    const uint64_t size = random.size_up_to(5000);
    if (budget.demand(now) == Demand::kRefuse) continue;
    budget.spend(size, now);
    written += size;
  }
  EXPECT_LE(written, per_day + per_day / 8 + 5000);
  EXPECT_GE(written, per_day);
}

TEST(WriteBudget, TheLastDayAgreesWithAListOfAllWrites) {
  HICACHE_TRACE_SEED();
  Random random(701);
  for (int world = 0; world < 20; ++world) {
    struct Write {
      uint64_t at_ms;
      uint64_t size;
    };
    std::deque<Write> writes;
    uint64_t now = random.bits() >> random.between(1, 60);
    WriteBudget budget(random.one_in(2) ? 0 : 1000, now);
    for (int step = 0; step < 500; ++step) {
      now += random.below(random.one_in(20) ? 30 * kHourMs : kHourMs);
      if (random.one_in(2)) {
        writes.push_back({now, random.below(1000)});
        budget.spend(writes.back().size, now);
      }
      uint64_t day = 0;
      uint64_t hour_more = 0;
      uint64_t by_hours = 0;
      for (const Write& write : writes) {
        if (now - write.at_ms <= kDayMs) day += write.size;
        if (now - write.at_ms < kDayMs + kHourMs) hour_more += write.size;
        if (now / kHourMs - write.at_ms / kHourMs <= 24) by_hours += write.size;
      }
      const uint64_t told = budget.written_last_day_bytes(now);
      ASSERT_EQ(told, by_hours);
      ASSERT_GE(told, day);
      ASSERT_LE(told, hour_more);
    }
  }
}

}  // namespace
}  // namespace hicache
