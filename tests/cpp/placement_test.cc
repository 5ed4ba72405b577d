#include "store/placement.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/bytes.h"

namespace hicache {
namespace {

constexpr PlacementTarget kRoomy{.free_bytes = 8 * kGiB,
                                 .capacity_bytes = 16 * kGiB,
                                 .load_permille = 100,
                                 .is_apart = false,
                                 .is_excluded = false};

PlacementTarget roomy(uint64_t free_bytes) {
  PlacementTarget target = kRoomy;
  target.free_bytes = free_bytes;
  return target;
}

std::optional<size_t> best(std::vector<PlacementTarget> targets, bool may_evict = false) {
  return best_target(targets, 4 * kMiB, may_evict);
}

TEST(Placement, MoreRoomIsBetter) {
  EXPECT_EQ(best({roomy(1 * kGiB), roomy(3 * kGiB), roomy(2 * kGiB)}), 1U);
}

TEST(Placement, WhatIsNotLostTogetherIsWorthLessRoom) {
  PlacementTarget apart = roomy(1 * kGiB);
  apart.is_apart = true;
  EXPECT_EQ(best({roomy(3 * kGiB), apart}), 1U);
  EXPECT_EQ(best({roomy(5 * kGiB), apart}), 0U);
}

TEST(Placement, WhoIsBusyComesAfterWhoIsNot) {
  PlacementTarget busy = kRoomy;
  busy.load_permille = 900;
  EXPECT_EQ(best({busy, kRoomy}), 1U);
  busy.load_permille = 100'000;  // Whatever it says.
  EXPECT_EQ(best({busy}), 0U);
}

TEST(Placement, AFullNodeTakesWhatIsWorthMoreThanItsLeast) {
  EXPECT_EQ(best({roomy(kMiB)}), std::nullopt);
  EXPECT_EQ(best({roomy(kMiB)}, true), 0U);
  EXPECT_EQ(best({roomy(kMiB), roomy(kGiB)}, true), 1U) << "room is better than taking it";
  PlacementTarget tiny = roomy(0);
  tiny.capacity_bytes = kMiB;
  EXPECT_EQ(best({tiny}, true), std::nullopt);
}

TEST(Placement, NobodyIsAskedTwice) {
  PlacementTarget asked = kRoomy;
  asked.is_excluded = true;
  EXPECT_EQ(best({asked, roomy(kGiB)}), 1U);
  EXPECT_EQ(best({asked}, true), std::nullopt);
  EXPECT_EQ(best({}), std::nullopt);
}

}  // namespace
}  // namespace hicache
